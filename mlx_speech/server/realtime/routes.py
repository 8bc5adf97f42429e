"""Where live sessions begin: who gets one, and with which model."""

from __future__ import annotations

from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket

from mlx_speech.errors import brief
from mlx_speech.server.errors import ApiError, shutting_down
from mlx_speech.server.realtime import tokens
from mlx_speech.server.realtime.configuration import Configuration, default_configuration
from mlx_speech.server.realtime.limits import Limits
from mlx_speech.server.realtime.session import MakeRecogniser, Session
from mlx_speech.server.realtime.tokens import Secrets
from mlx_speech.server.realtime.turns import Turns
from mlx_speech.server.service import Service, owner_of

INTENT = "transcription"  # the only one that there is here


def routes(
    service: Service,
    secrets: Secrets | None = None,
    limits: Limits | None = None,
    make_recogniser: MakeRecogniser = Turns,
) -> list[BaseRoute]:
    """The socket, and what gives out keys for it.

    Host, origin and key are checked before; where a key of `secrets` was taken, its hash is `state.owner`.
    make_recogniser : gives what hears a session
    """
    secrets = secrets or Secrets()
    door = _Door(service, secrets, limits or Limits(), make_recogniser)
    return [WebSocketRoute("/v1/realtime", door.open), *tokens.routes(service, secrets)]


class _Door:
    """Lets as many sessions in as there may be at once."""

    def __init__(self, service: Service, secrets: Secrets, limits: Limits, make_recogniser: MakeRecogniser) -> None:
        self._service = service
        self._secrets = secrets
        self._limits = limits
        self._make_recogniser = make_recogniser

    async def open(self, socket: WebSocket) -> None:
        """A session, or an answer of HTTP that says why not."""
        try:
            most = self._service.settings.max_live
            if self._service.state == "shutting down":
                raise shutting_down()
            if len(self._service.live) >= most:
                problem = f"{most} live sessions are open, and no more may be: try again later, or raise max_live"
                raise ApiError(503, "too_many_sessions", problem, headers={"Retry-After": "10"})
            configuration = self._configuration(socket)
            session = Session(socket, self._service, configuration, self._limits, self._make_recogniser)
        except ApiError as error:
            self._secrets.give_back(owner_of(socket))
            await socket.send_denial_response(error.response())
            return
        self._service.live.add(session)
        try:
            await session.run()
        finally:
            self._service.live.remove(session)

    def _configuration(self, socket: WebSocket) -> Configuration:
        """Of the address, or of the key. Raises `ApiError`."""
        intent = socket.query_params.get("intent", INTENT)
        if intent != INTENT:
            raise ApiError(400, "invalid_value", f"intent is {brief(intent)}: give {INTENT}", "intent")
        given = self._secrets.configuration(owner_of(socket))
        if given is not None:
            return given
        return default_configuration(self._service, socket.query_params.get("model"))
