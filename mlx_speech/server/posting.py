"""POST /v1/audio/jobs: a form in, a job out."""

from __future__ import annotations

from typing import Any

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mlx_speech.server import fields
from mlx_speech.server.admission import too_long
from mlx_speech.server.errors import ApiError
from mlx_speech.server.fields import Work
from mlx_speech.server.idempotency import key_of
from mlx_speech.server.jobs.runner import Runner
from mlx_speech.server.service import Service, owner_of
from mlx_speech.server.sounds import stated_duration
from mlx_speech.server.transcriptions import prefers_async, required, taken_in


async def add_job(request: Request, service: Service, runner: Runner) -> Response:
    """Take in a form, and answer at once with the job that it becomes."""
    owner = owner_of(request)
    key = key_of(request)
    async with taken_in(request, service, fields.early_check(service)) as form:
        work = fields.transcription(form.fields, service)
        _check_for_job(work)
        upload = required(form)
        seconds = await run_sync(stated_duration, upload.path)
        if seconds > service.settings.max_job_duration:
            raise too_long(service.settings.max_job_duration, is_job=True)
        options: Any = work.options
        job = await runner.add(
            audio=upload.path,
            filename=upload.filename,
            model=work.model,
            options=options,
            response_format=work.response_format,
            owner=owner,
            audio_seconds=seconds or None,
            idempotency_key=key,
            sha256=upload.sha256,
            known_speakers=work.known_speakers,
        )
    headers = {"Location": f"/v1/audio/jobs/{job.id}"}
    if prefers_async(request):
        headers["Preference-Applied"] = "respond-async"
    return JSONResponse(job.body(), 202, headers=headers)


def _check_for_job(work: Work) -> None:
    """Raises `ApiError` for what only an answer at once can have."""
    unheard = {"stream": work.stream, "include": work.logprobs}
    for name, asked in unheard.items():
        if asked:
            raise ApiError(400, "invalid_value", f"{name} is for requests that are answered at once", name)
