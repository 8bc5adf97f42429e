"""Forms of multipart/form-data, read from a request as they come: text fields into memory, the recording to disk.

Starlette's own reader has no limit for files, and gives a form only when all of it is there. The official client sends
its fields first: read this way, a wrong option is answered before the recording has been sent.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import BinaryIO

from anyio.to_thread import run_sync
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from starlette.requests import Request

from mlx_speech.server.bodies import blocks_of
from mlx_speech.server.errors import NEVER_AGAIN, ApiError
from mlx_speech.server.settings import Settings

FILE_FIELD = "file"
WRITE_SIZE = 1 << 20  # bytes that are written to disk at once
MAX_NAME = 100  # characters of a file's or a field's name that are kept
UNNAMED = "upload"

Fields = dict[str, list[str]]
Check = Callable[[Fields], object]


@dataclass(frozen=True)
class Upload:
    """A recording as it was sent.

    path : where it lies; its holder deletes it
    filename : the client's own name of it, for messages alone
    sha256 : of its bytes, in hexadecimal digits
    """

    path: Path
    filename: str
    sha256: str


@dataclass
class Form:
    """fields : name → its values, in order; `name[]` and `name` are one"""

    fields: Fields = field(default_factory=dict)
    upload: Upload | None = None


@asynccontextmanager
async def received_form(request: Request, settings: Settings, folder: Path, check: Check) -> AsyncIterator[Form]:
    """The form of a request; its recording is deleted at the end, unless it was moved away.

    folder : where the recording is kept meanwhile
    check : is given the fields that have come so far, before the recording is read; may raise `ApiError`

    Raises `ApiError`: 415 for what is no form, 400 for a malformed one, 413 for one that is too large, 408 for one that
    comes too slowly, 507 where the disk is full; `ClientDisconnect` where the client has gone.
    """
    reader = _Reader(_boundary(request), settings, folder)
    try:
        await _read(request, reader, settings, check)
        yield reader.form
    finally:
        reader.close()


async def _read(request: Request, reader: _Reader, settings: Settings, check: Check) -> None:
    reader.expect(_length(request))
    checked = False
    async for block in blocks_of(request, settings, settings.max_upload + settings.max_fields):
        reader.feed(block)
        if reader.in_file and not checked and reader.form.fields:
            check(reader.form.fields)
            checked = True
        if reader.has_much():
            await run_sync(reader.write)
    reader.finish()
    await run_sync(reader.write)
    reader.end_of_file()


def _boundary(request: Request) -> bytes:
    message = Message()
    message["content-type"] = request.headers.get("content-type", "")
    boundary = message.get_param("boundary")
    if message.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary:
        raise ApiError(415, "unsupported_media_type", "send a form: multipart/form-data with a boundary")
    try:
        return boundary.encode("ascii")
    except UnicodeEncodeError:
        raise ApiError(400, "invalid_form", "the form's boundary has letters that are not ASCII") from None


def _length(request: Request) -> int:
    """Bytes of the whole form as the client says; 0 where it does not."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() and len(length) < 20 else 0


class _Reader:
    """Takes a form's bytes, and has its fields and its recording.

    in_file : whether the recording has begun
    """

    def __init__(self, boundary: bytes, settings: Settings, folder: Path) -> None:
        self.form = Form()
        self.in_file = False
        self._settings = settings
        self._folder = folder
        self._parts = 0
        self._bytes_of_fields = 0
        self._header = b""
        self._value = b""
        self._headers: dict[str, str] = {}
        self._name = ""
        self._filename: str | None = None
        self._text = bytearray()
        self._pending = bytearray()
        self._file: BinaryIO | None = None
        self._path: Path | None = None
        self._file_name = UNNAMED
        self._size = 0
        self._hash = hashlib.sha256()
        self._ended = False
        self._parser = self._make_parser(boundary)

    def _make_parser(self, boundary: bytes) -> MultipartParser:
        callbacks = {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }
        try:
            return MultipartParser(boundary, callbacks)  # pyright: ignore[reportArgumentType]
        except FormParserError as error:
            raise ApiError(400, "invalid_form", f"the form cannot be read: {error}") from None

    def expect(self, length: int) -> None:
        """Raises `ApiError` where a form of so many bytes is too large, or the disk too full for it."""
        if length > self._settings.max_upload + self._settings.max_fields:
            raise self._too_large()
        self._check_disk(length)

    def feed(self, data: bytes) -> None:
        """Raises `ApiError` for what is no form, or too much of one."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise ApiError(
                400, "invalid_form", f"the form cannot be read: {error}", headers=dict(NEVER_AGAIN)
            ) from None

    def finish(self) -> None:
        """All bytes have come. Raises `ApiError` where the form is not whole."""
        if not self._ended:
            raise ApiError(400, "invalid_form", "the form ends before its last boundary: send all of it")

    def has_much(self) -> bool:
        """Whether enough of the recording has come to be written."""
        return len(self._pending) >= WRITE_SIZE

    def write(self) -> None:
        """Put what has come of the recording on disk. Raises `ApiError` 507 where that is full."""
        if self._file is None or not self._pending:
            return
        self._check_disk(len(self._pending))
        self._hash.update(self._pending)
        try:
            self._file.write(self._pending)
            self._file.flush()
        except OSError as error:
            raise disk_full() from error
        self._pending.clear()

    def end_of_file(self) -> None:
        """The recording is whole."""
        if self._file is None or self._path is None:
            return
        self._file.close()
        self.form.upload = Upload(self._path, self._file_name, self._hash.hexdigest())

    def close(self) -> None:
        """Delete what was not taken over."""
        if self._file is not None:
            self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _check_disk(self, count: int) -> None:
        if shutil.disk_usage(self._folder).free < count + self._settings.disk_reserve:
            raise disk_full()

    def _too_large(self) -> ApiError:
        limit = self._settings.max_upload
        return ApiError(
            413,
            "file_too_large",
            f"Maximum content size limit ({limit}) exceeded",
            FILE_FIELD,
            headers=dict(NEVER_AGAIN),
        )

    # --- of the parser -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > self._settings.max_parts:
            most = self._settings.max_parts
            raise ApiError(400, "too_many_fields", f"the form has more than {most} parts", headers=dict(NEVER_AGAIN))
        self._headers = {}
        self._header = b""
        self._value = b""
        self._text = bytearray()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._value.decode("utf-8", "replace")
        self._header = b""
        self._value = b""

    def _headers_end(self) -> None:
        parameters = _disposition(self._headers.get("content-disposition", ""))
        name = parameters.get("name")
        if name is None:
            raise ApiError(400, "invalid_form", "a part of the form has no name", headers=dict(NEVER_AGAIN))
        self._name = name.removesuffix("[]")
        self._filename = parameters.get("filename")
        if self._name != FILE_FIELD:
            if self._filename is not None:
                name = shown(self._name)
                raise ApiError(
                    400, "invalid_form", f"{name} is a file: only `file` may be one", headers=dict(NEVER_AGAIN)
                )
            return
        if self._path is not None:
            raise ApiError(400, "invalid_value", "there are two files: send one", FILE_FIELD, headers=dict(NEVER_AGAIN))
        self.in_file = True
        self._file_name = clean_name(self._filename or UNNAMED)
        self._path = self._folder / secrets.token_hex(16)
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise disk_full() from error
        self._file = os.fdopen(descriptor, "wb")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == FILE_FIELD:
            self._size += end - start
            if self._size > self._settings.max_upload:
                raise self._too_large()
            self._pending += data[start:end]
            return
        self._text += data[start:end]
        self._bytes_of_fields += end - start
        if len(self._text) > self._settings.max_field:
            raise self._field_too_large(f"{shown(self._name)} is too long")
        if self._bytes_of_fields > self._settings.max_fields:
            raise self._field_too_large(f"the fields have more than {self._settings.max_fields} bytes together")

    def _field_too_large(self, problem: str) -> ApiError:
        return ApiError(413, "field_too_large", problem, shown(self._name), headers=dict(NEVER_AGAIN))

    def _part_end(self) -> None:
        if self._name == FILE_FIELD:
            return
        try:
            value = self._text.decode("utf-8")
        except UnicodeDecodeError:
            name = shown(self._name)
            raise ApiError(400, "invalid_value", f"{name} is not UTF-8", name, headers=dict(NEVER_AGAIN)) from None
        self.form.fields.setdefault(self._name, []).append(value)

    def _end(self) -> None:
        self._ended = True


def _disposition(header: str) -> dict[str, str]:
    """The parameters of a Content-Disposition. Browsers write a quote in a name as %22."""
    message = Message()
    message["content-disposition"] = header.replace("\r", " ").replace("\n", " ")
    found: dict[str, str] = {}
    parameters = message.get_params(failobj=[], header="content-disposition") or []
    for name, value in parameters[1:]:
        found[name.lower()] = value[2] if isinstance(value, tuple) else value
    return found


def clean_name(name: str) -> str:
    """The last part of a path as a message may show it."""
    return shown(name.replace("\\", "/").split("/")[-1])


def shown(name: str) -> str:
    """A name as a message may show it: printable, on one line, and not long."""
    printable = "".join(character for character in name if character.isprintable())
    return printable[:MAX_NAME].strip() or UNNAMED


def disk_full() -> ApiError:
    """What is answered where nothing can be written any more."""
    return ApiError(507, "disk_full", "there is no room for the recording here", headers=dict(NEVER_AGAIN))


def single(fields: Mapping[str, list[str]], name: str) -> str | None:
    """The value of a field; None where it is absent or empty. Raises `ApiError` where it was given twice."""
    values = [value for value in fields.get(name, []) if value]
    if len(values) > 1:
        raise ApiError(400, "invalid_value", f"{name} was given {len(values)} times: give it once", name)
    return values[0] if values else None
