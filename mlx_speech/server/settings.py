"""What a server is told when it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from mlx_speech.errors import OptionError
from mlx_speech.languages import to_language_code

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30
HOUR = 3600.0
LARGEST_PORT = 65_535
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Settings:
    """Addresses, keys and limits of a server.

    host, port : where it listens
    keys : a request has to bring one of them; without any, everybody who reaches the server may use it
    no_auth : an address that others reach is wanted without a key
    allowed_hosts : names that a request may call the server by, beside the loopback's and `host`
    cors : origins of pages that may use it, beside its own: "https://a.b", or "*" where there are keys
    data_dir : jobs, their sound and uploads under way
    max_upload : bytes of a recording
    max_duration, max_job_duration : seconds of a recording that is answered at once, and of a job's
    max_fields, max_field : bytes of all text fields of a form, and of one
    max_parts : parts of a form
    max_queue : requests that wait or are under way
    max_waiting_seconds : their sound
    max_uploads, max_uploads_per_key : uploads at once; others wait, `upload_patience` seconds at most
    min_upload_rate : bytes a second, over `upload_window` seconds
    disk_reserve : bytes of the disk that stay free
    jobs_at_once : jobs that are under way; others wait
    keep_results : seconds that a job's result and sound are kept
    max_live : live sessions at once
    grace : seconds that requests get to end when the server stops
    wyoming : where Home Assistant's protocol is spoken, "PORT" or "HOST:PORT"
    preload : languages: what tells speakers and times words of these is loaded before the first request, too; None for
        Whisper alone
    offline : nothing is downloaded once the models are loaded, by anything in this process
    keep_alive_json : an answer in JSON that takes long has status 200, also a failure, and spaces come ahead of it
    log_text : texts may stand in the log
    metrics_open : figures are for everybody, without a key

    Raises `OptionError` for an address that others reach without a key, for a place that is none, for a language that
    Whisper does not know, and for a number that is no limit.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    no_auth: bool = False
    allowed_hosts: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    data_dir: Path = field(default_factory=lambda: Path("mlx_speech_data"))
    max_upload: int = 2 * GIBIBYTE
    max_duration: float = 4 * HOUR
    max_job_duration: float = 24 * HOUR
    max_fields: int = 16 * MEBIBYTE
    max_field: int = 4 * MEBIBYTE
    max_parts: int = 1100
    max_queue: int = 64
    max_waiting_seconds: float = 8 * HOUR
    max_uploads: int = 16
    max_uploads_per_key: int = 4
    upload_patience: float = 30.0
    min_upload_rate: float = 8_000.0
    upload_window: float = 30.0
    disk_reserve: int = 2 * GIBIBYTE
    jobs_at_once: int = 1
    keep_results: float = 24 * HOUR
    max_live: int = 8
    grace: float = 30.0
    wyoming: str | None = None
    preload: tuple[str, ...] | None = None
    offline: bool = False
    keep_alive_json: bool = False
    log_text: bool = False
    metrics_open: bool = False

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not self.keys and not self.no_auth:
            raise OptionError(
                f"host is {self.host!r}, which others reach: give api_key_file, or no_auth if everybody may use it"
            )
        if not 0 <= self.port <= LARGEST_PORT:
            raise OptionError(f"port is {self.port}: give 0 to {LARGEST_PORT}")
        if self.wyoming is not None and not _is_port(self.wyoming.rpartition(":")[2]):
            raise OptionError(f"wyoming is {self.wyoming!r}: give a port, or an address and a port, as 0.0.0.0:10300")
        if "*" in self.cors and not self.keys:
            raise OptionError('cors is "*", any page: give api_key_file, or name the pages')
        for language in self.preload or ():
            try:
                to_language_code(language)
            except OptionError as error:
                raise OptionError(f"preload is {language!r}: give languages that Whisper knows, as en,de") from error
        for name in _NUMBERS:
            number = getattr(self, name)
            if not 0 <= number < math.inf:  # which nan is not, either
                raise OptionError(f"{name} is {number}: give a number from 0")
        if self.jobs_at_once == 0:
            raise OptionError("jobs_at_once is 0, and no job would ever begin: give a number from 1")


_NUMBERS = (
    "max_upload",
    "max_duration",
    "max_job_duration",
    "max_fields",
    "max_field",
    "max_parts",
    "max_queue",
    "max_waiting_seconds",
    "max_uploads",
    "max_uploads_per_key",
    "upload_patience",
    "min_upload_rate",
    "upload_window",
    "disk_reserve",
    "jobs_at_once",
    "keep_results",
    "max_live",
    "grace",
)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text[:6]) <= LARGEST_PORT
