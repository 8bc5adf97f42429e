"""What a live session may take."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_speech.server.settings import HOUR, MEBIBYTE

# What uvicorn has to be given: an append of 15 MiB is 20 MiB in base64, and messages that wait are held in memory.
WS_MAX_SIZE = 21 * MEBIBYTE
WS_MAX_QUEUE = 4


@dataclass(frozen=True)
class Limits:
    """Bounds of a session; times in seconds, of the wall's clock but for those of sound.

    append : bytes of sound in a message
    late : sound that came in time may wait so long to be heard
    unheard : sound that waits to be heard, or to be committed, however fast it came: 38 MB
    shortest_turn : less sound than this is no turn
    longest_turn : a turn that is found is cut before it grows longer: what Whisper hears at once
    turns_at_once : of a session that are being recognised; sound waits behind them
    first_sound : until the first sound
    silence : without speech, without sound where the client says what a turn is, and without another message
    length : of a session
    farewell : for a client to take the last messages
    waiting_events : messages that a client has not taken; more are not answered before it does
    """

    append: int = 15 * MEBIBYTE
    late: float = 30.0
    unheard: float = 600.0
    shortest_turn: float = 0.1
    longest_turn: float = 28.0
    turns_at_once: int = 4
    first_sound: float = 30.0
    silence: float = 600.0
    length: float = 8 * HOUR
    farewell: float = 5.0
    waiting_events: int = 1000
