"""The page that a browser shows at the server's address, from files that come with the package, and no others."""

from __future__ import annotations

import hashlib
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlx_speech.package_data import ASSETS
from mlx_speech.server.errors import ApiError

PAGE = ASSETS / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
# scripts and styles from these files alone; sound also from what the page has fetched with a key, or is given by hand
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "media-src 'self' blob:",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, and asked for again: after an update all files are of one version
}


def routes() -> list[Route]:
    """`/`, and under `/page/` what it is made of. The files are read once, here."""
    files = {path.name: path.read_bytes() for path in sorted(PAGE.iterdir()) if path.suffix in TYPES}

    async def index(request: Request) -> Response:
        return _answer(request, "index.html", files["index.html"])

    async def part(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            error = ApiError(404, "not_found", "there is no such file of the page: go to /")
            return error.response()
        return _answer(request, name, files[name])

    return [Route("/", index), Route("/page/{name}", part)]


def _answer(request: Request, name: str, content: bytes) -> Response:
    """The file, or 304 where the browser has it already."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": tag}
    if tag in request.headers.get("If-None-Match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=TYPES[PurePath(name).suffix])
