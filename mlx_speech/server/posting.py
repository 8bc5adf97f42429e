"""POST /v1/audio/jobs: a form in, a job out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mlx_speech import media
from mlx_speech.errors import AudioError
from mlx_speech.server import fields
from mlx_speech.server.admission import stated_duration, too_long
from mlx_speech.server.errors import ApiError
from mlx_speech.server.fields import Work
from mlx_speech.server.forms import Upload, received_form
from mlx_speech.server.jobs.job import Job
from mlx_speech.server.jobs.runner import Runner
from mlx_speech.server.service import Service, owner_of
from mlx_speech.server.transcriptions import prefers_async, required

# first name of FFmpeg's format → what a browser plays; none of it can be taken for a page
MEDIA_TYPES = {
    "wav": "audio/wav",
    "mp3": "audio/mpeg",
    "mov": "audio/mp4",
    "ogg": "audio/ogg",
    "flac": "audio/flac",
    "matroska": "audio/webm",
    "aac": "audio/aac",
}
OTHER = "application/octet-stream"
MAX_KEY = 255  # characters of an Idempotency-Key


async def add_job(request: Request, service: Service, runner: Runner) -> Response:
    """Take in a form, and answer at once with the job that it becomes."""
    owner = owner_of(request)
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= MAX_KEY:
        raise ApiError(400, "invalid_value", f"Idempotency-Key has more than {MAX_KEY} characters", "Idempotency-Key")
    with service.admission.upload(owner):
        receiving = received_form(
            request,
            service.settings,
            service.uploads,
            lambda given: fields.transcription(given, service) if "model" in given else None,
        )
        async with receiving as form:
            work = fields.transcription(form.fields, service)
            if work.known_speakers or work.stream or work.logprobs:
                name = "known_speaker_names" if work.known_speakers else "stream" if work.stream else "include"
                raise ApiError(400, "invalid_value", f"{name} is for requests that are answered at once", name)
            upload = required(form)
            if await run_sync(stated_duration, upload.path) > service.settings.max_job_duration:
                raise too_long(service.settings.max_job_duration)
            job = await run_sync(_add, runner, work, upload, owner, key)
    runner.wake()
    position = await run_sync(runner.store.position, job.id)
    headers = {"Location": f"/v1/audio/jobs/{job.id}"}
    if prefers_async(request):
        headers["Preference-Applied"] = "respond-async"
    return JSONResponse(job.body(position), 202, headers=headers)


def _add(runner: Runner, work: Work, upload: Upload, owner: str, key: str | None) -> Job:
    digest = hashlib.sha256()
    digest.update(upload.sha256.encode())
    digest.update(json.dumps([work.model, work.options, work.response_format], sort_keys=True).encode())
    return runner.store.add(
        upload.path,
        filename=upload.filename,
        media_type=media_type(upload.path),
        model=work.model,
        options=work.options,
        response_format=work.response_format,
        owner=owner,
        idempotency_key=key,
        digest=digest.hexdigest(),
    )


def media_type(path: Path) -> str:
    """What a recording is to a browser, by its content."""
    try:
        with path.open("rb") as file, media.open_media(file, "the recording") as container:
            kind = container.format.name.split(",")[0]
    except (AudioError, OSError):
        return OTHER
    return MEDIA_TYPES.get(kind, OTHER)
