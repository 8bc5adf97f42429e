"""A stand-in for the Hugging Face hub on localhost, with the routes that huggingface_hub uses for models.

    with HubServer({"org/name": Repo({"config.json": b"{}", "model.safetensors": b"..."}, licence="mit")}) as hub:
        ...  # a process with HF_ENDPOINT=hub.url

Like the real one it redirects weights to another host (here "localhost" in place of 127.0.0.1), which must never see a
token, and gives their SHA-256 as entity tag; other files have git's hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

READER = "hf_reader"  # a token that may read whatever is gated or private, but write nothing
WRITER = "hf_writer"  # a token that may do everything
STRANGER = "hf_stranger"  # a token of an account that was granted nothing
WEIGHTS = (".safetensors", ".bin", ".npz", ".pt", ".pth", ".ckpt", ".jit", ".h5", ".msgpack", ".onnx")


@dataclass
class Repo:
    """files : of the branch main; branches : those of further branches; licence : goes into a README.md if given."""

    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    licence: str | None = None
    branches: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.licence and "README.md" not in self.files:
            self.files = {**self.files, "README.md": f"---\nlicense: {self.licence}\n---\n# Model\n".encode()}

    def revision(self, name: str) -> dict[str, bytes] | None:
        """The files of a branch or of a commit."""
        for branch, files in {"main": self.files, **self.branches}.items():
            if name in (branch, commit(files)):
                return files
        return None


def commit(files: dict[str, bytes]) -> str:
    """The commit hash the server gives to these files."""
    return hashlib.sha1(b"".join(key.encode() + hashlib.sha1(files[key]).digest() for key in sorted(files))).hexdigest()


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]  # names in lower case


class HubServer:
    """log : every request so far
    fail : part of a path → the status that such requests get
    cut : name of a file → after how many bytes of the answer each of its downloads breaks off, the last entry for all
        further ones; None sends everything
    commits : what was uploaded, one {path: bytes} a commit
    """

    def __init__(self, repos: dict[str, Repo] | None = None) -> None:
        self.repos = dict(repos or {})
        self.log: list[Request] = []
        self.fail: dict[str, int] = {}
        self.cut: dict[str, list[int | None]] = {}
        self.commits: list[dict[str, bytes]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.cdn = f"http://localhost:{self._server.server_port}/cdn"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def downloads(self, name: str) -> list[Request]:
        """The requests for the content of a file so far."""
        return [request for request in self.log if request.method == "GET" and request.path.endswith(f"/{name}")]

    def downloaded(self) -> set[str]:
        """The names of the files whose content was asked for."""
        paths = [request.path for request in self.log if request.method == "GET"]
        return {match[1] for path in paths if (match := re.search(r"/resolve/[^/]+/(.+)", path))}


def closed_port() -> str:
    """The URL of a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route(b"")

    def do_GET(self) -> None:
        self._route(b"")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._route(body)

    def _route(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.log.append(Request(self.command, path, headers))
        self.token = headers.get("authorization", "").removeprefix("Bearer ")
        for part, status in self.hub.fail.items():
            if part in path:
                return self._error(status, "", "told to fail")
        repo = r"((?:[^/]+/)?[^/]+)"
        for method, pattern, answer in (
            ("POST", "/api/repos/create", self._create),
            ("POST", "/api/validate-yaml", self._validate),
            ("POST", f"/api/models/{repo}/preupload/[^/]+", self._preupload),
            ("POST", f"/api/models/{repo}/commit/[^/]+", self._commit),
            ("GET", f"/api/models/{repo}/revision/(.+)", self._info),
            ("GET", f"/api/models/{repo}", self._info),
            ("GET HEAD", f"/{repo}/resolve/([^/]+)/(.+)", self._resolve),
            ("GET HEAD", f"/cdn/{repo}/([^/]+)/(.+)", self._content),
        ):
            if self.command in method.split() and (match := re.fullmatch(pattern, path)):
                return answer(*([body] if method == "POST" else []), *match.groups())
        return self._error(404, "", f"no route {path}")

    # reading

    def _files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """The files of a revision, None after having answered why there are none."""
        found = self.hub.repos.get(repo)
        if found is None or (found.private and self.token not in (READER, WRITER)):
            return self._error(404 if self.token else 401, "RepoNotFound", "Repository not found")
        files = found.revision(revision)
        return files if files is not None else self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def _info(self, repo: str, revision: str = "main") -> None:
        files = self._files(repo, revision)
        if files is None:
            return
        found, sized = self.hub.repos[repo], "blobs" in urlsplit(self.path).query
        siblings = [{"rfilename": name, **({"size": len(files[name])} if sized else {})} for name in files]
        card = {"license": found.licence} if found.licence else None
        answer = {"_id": "0", "id": repo, "modelId": repo, "sha": commit(files), "private": found.private, "tags": []}
        gated = "manual" if found.gated else False
        self._json({**answer, "gated": gated, "downloads": 0, "cardData": card, "siblings": siblings})

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        files = self._files(repo, revision)
        if files is None:
            return
        if self.hub.repos[repo].gated and self.token not in (READER, WRITER):
            return self._error(403 if self.token else 401, "GatedRepo", f"Access to model {repo} is restricted")
        if name not in files:
            return self._error(404, "EntryNotFound", "Entry not found")
        if not name.endswith(WEIGHTS):
            return self._content(repo, revision, name)
        self.send_response(302)
        self.send_header("Location", f"{self.hub.cdn}/{repo}/{commit(files)}/{name}")
        self.send_header("X-Repo-Commit", commit(files))
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(files[name]).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(files[name])))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _content(self, repo: str, revision: str, name: str) -> None:
        files = self.hub.repos[repo].revision(revision) or {}
        data = files[name]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        if start >= len(data) and wanted:
            return self._error(416, "", "range not satisfiable")
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        self.send_header("ETag", f'"{blob}"')
        self.send_header("X-Repo-Commit", commit(files))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        plan = self.hub.cut.get(name, [None])
        limit = plan.pop(0) if len(plan) > 1 else plan[0]
        self.wfile.write(data[start:] if limit is None else data[start : start + limit])
        if limit is not None:
            self.close_connection = True

    # writing

    def _create(self, body: bytes) -> None:
        wanted = json.loads(body)
        repo = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        if self._may_write():
            if repo in self.hub.repos:
                return self._json({"url": f"{self.hub.url}/{repo}", "error": "You already created this model"}, 409)
            self.hub.repos[repo] = Repo({})
            self._json({"url": f"{self.hub.url}/{repo}", "name": repo})

    def _validate(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def _preupload(self, body: bytes, repo: str) -> None:
        if self._may_write():
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for path in paths]
            self._json({"files": modes})

    def _commit(self, body: bytes, repo: str) -> None:
        if self._may_write():
            lines = [json.loads(line) for line in body.splitlines()]
            sent = [line["value"] for line in lines if line["key"] == "file"]
            files = {file["path"]: base64.b64decode(file["content"]) for file in sent}
            self.hub.commits.append(files)
            self.hub.repos[repo].files = {**self.hub.repos[repo].files, **files}
            sha = commit(self.hub.repos[repo].files)
            self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})

    def _may_write(self) -> bool:
        if not self.token:
            self._error(401, "", "Invalid username or password.")
        elif self.token != WRITER:
            self._error(403, "", "You don't have the rights to do this")
        return self.token == WRITER

    # answering

    def _json(self, answer: dict, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _error(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._json({"error": message}, status, headers)
