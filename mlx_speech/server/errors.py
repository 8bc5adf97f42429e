"""What a server answers when it can not: OpenAI's shape of errors, from every place, in one way.

Source: openai-openapi `ErrorResponse`; which status the official client retries is in openai `_base_client`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.responses import JSONResponse

from mlx_speech.errors import AudioError, MLXSpeechError, OptionError, OutOfMemory, PipelineClosed

NEVER_AGAIN = {"x-should-retry": "false"}  # the official client would send 409 and 5xx again
TYPES = {401: "authentication_error", 429: "rate_limit_error"}


@dataclass
class ApiError(Exception):
    """An answer that is an error.

    status : of HTTP
    code : for programs: "invalid_value", "file_too_large" …
    message : for people: what is wrong, and what to do
    param : the field of the request that is wrong
    headers : beside those of every answer
    """

    status: int
    code: str
    message: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """OpenAI's classes of errors."""
        if self.status in TYPES:
            return TYPES[self.status]
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self) -> dict[str, object]:
        """The error as JSON has it; the official client needs all four keys."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The error as an answer."""
        return JSONResponse(self.body(), self.status, headers=self.headers)


def api_error(error: Exception) -> ApiError:
    """What the package raised, as an answer; of what it did not mean to raise, nothing is told."""
    message = " ".join(str(error).split())
    if isinstance(error, ApiError):
        return error
    if isinstance(error, AudioError):
        return ApiError(400, "invalid_audio", message, "file")
    if isinstance(error, OutOfMemory):
        return ApiError(503, "out_of_memory", message, headers={"Retry-After": "10"})
    if isinstance(error, PipelineClosed):
        return shutting_down()
    if isinstance(error, OptionError):
        return ApiError(400, "invalid_value", message)
    if not isinstance(error, MLXSpeechError):
        message = "something went wrong here; the server's log has it"
    return ApiError(500, "internal_error", message, headers=dict(NEVER_AGAIN))


def shutting_down() -> ApiError:
    """Of a server that has been told to stop."""
    return ApiError(503, "shutting_down", "the server is stopping: try again later", headers={"Retry-After": "30"})
