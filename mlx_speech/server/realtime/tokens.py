"""Keys for one session, which a server of somebody's own may hand to a page: the page need not know the lasting key.

The two routes give them out; the check of keys takes them back (`Secrets.redeem`).
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_speech.server.bodies import bounded_body
from mlx_speech.server.errors import ApiError
from mlx_speech.server.guard import TOKEN_PREFIX
from mlx_speech.server.realtime.configuration import Configuration, default_configuration
from mlx_speech.server.realtime.events import new_id, session_of
from mlx_speech.server.realtime.fields import Fields, parsed
from mlx_speech.server.service import Service
from mlx_speech.server.settings import Settings

SECONDS = 60.0  # that a token is valid
SHORTEST_LIFE = 10  # seconds that a client may ask for; more than `SECONDS` it does not get
LONGEST_LIFE = 7_200
MOST_TOKENS = 1_000  # that have been given out and not used
LONGEST_BODY = 1 << 20  # bytes


@dataclass(frozen=True)
class Grant:
    """What a token stands for.

    configuration : of the session that it opens
    expires_at : by the clock of `time.time`
    """

    configuration: Configuration
    expires_at: float


class Secrets:
    """Tokens in memory, by their hashes. clock : tells seconds"""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._issued: dict[str, Grant] = {}  # and not used
        self._used: dict[str, Grant] = {}  # by a session that has not begun

    def issue(self, configuration: Configuration, seconds: float = SECONDS) -> tuple[str, Grant]:
        """A token for one session, and what it stands for. Raises `ApiError` 429 where too many are about."""
        self._forget_old()
        if len(self._issued) >= MOST_TOKENS:
            advice = "use those that you have, or wait a minute"
            raise ApiError(429, "too_many_tokens", f"{MOST_TOKENS} tokens wait to be used: {advice}")
        token = TOKEN_PREFIX.decode() + secrets.token_urlsafe(32)
        grant = Grant(configuration, self._clock() + min(seconds, SECONDS))
        self._issued[_hash(token)] = grant
        return token, grant

    def redeem(self, token: str) -> bool:
        """Whether a token is good: once. What it stands for is kept for `configuration`."""
        self._forget_old()
        owner = _hash(token)
        grant = self._issued.pop(owner, None)
        if grant is None:
            return False
        self._used[owner] = grant
        return True

    def configuration(self, owner: str) -> Configuration | None:
        """Of the session that a token opens, once; None for another key. owner : the hash of the key"""
        grant = self._used.pop(owner, None)
        return None if grant is None else grant.configuration

    def give_back(self, owner: str) -> None:
        """The session was not opened: the token is good once more. owner : the hash of the key, of any kind"""
        grant = self._used.pop(owner, None)
        if grant is not None:
            self._issued[owner] = grant

    def _forget_old(self) -> None:
        now = self._clock()
        for grants in (self._issued, self._used):
            for owner, grant in list(grants.items()):
                if grant.expires_at <= now:
                    del grants[owner]


def routes(service: Service, tokens: Secrets) -> list[Route]:
    """The two that give tokens out: today's, and that of older clients."""

    async def client_secrets(request: Request) -> Response:
        """`{"expires_after": {"anchor", "seconds"}, "session": {…}}` → `{"value", "expires_at", "session"}`"""
        body = Fields(await _body(request, service.settings), "the body")
        body.allow("expires_after", "session")
        life = body.inner("expires_after")
        life.allow("anchor", "seconds")
        life.choice("anchor", ("created_at",), "created_at")
        seconds = life.integer("seconds", SHORTEST_LIFE, LONGEST_LIFE, round(SECONDS))
        configuration = default_configuration(service).updated(body.value("session"))
        configuration.recognition_settings(service)
        token, grant = tokens.issue(configuration, seconds)
        session = session_of(configuration, grant.expires_at)
        return _answer({"value": token, "expires_at": int(grant.expires_at), "session": session})

    async def transcription_sessions(request: Request) -> Response:
        """The session in the body, the token in `client_secret`."""
        configuration = default_configuration(service).updated_by_older(await _body(request, service.settings))
        configuration.recognition_settings(service)
        token, grant = tokens.issue(configuration)
        secret = {"value": token, "expires_at": int(grant.expires_at)}
        session: dict[str, object] = {"id": new_id("sess"), "object": "realtime.transcription_session"}
        return _answer({**session, **configuration.as_older_json(), "client_secret": secret})

    return [
        Route("/v1/realtime/client_secrets", client_secrets, methods=["POST"]),
        Route("/v1/realtime/transcription_sessions", transcription_sessions, methods=["POST"]),
    ]


async def _body(request: Request, settings: Settings) -> object:
    """JSON; an empty body is an empty object. Raises `ApiError` 400, 408 and 413."""
    data = await bounded_body(request, settings, LONGEST_BODY, "body_too_large")
    if not data:
        return {}
    return parsed(data.decode("utf-8", "replace"))


def _answer(content: Mapping[str, object]) -> Response:
    return JSONResponse(content, headers={"Cache-Control": "no-store"})


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
