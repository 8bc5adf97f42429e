"""What becomes of a live session's events: the journal, the screen or lines of JSON, and the file of its sound."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mlx_speech import writers
from mlx_speech.cli.live_screen import LiveScreen, is_live
from mlx_speech.cli.screen import Say
from mlx_speech.json_objects import to_plain
from mlx_speech.live.events import Ended, LiveEvent
from mlx_speech.live.journal import Continued, Journal
from mlx_speech.live.saved import SavedSound
from mlx_speech.transcript import Transcript


class Output:
    """A context: leaving it closes files, and the terminal is as it was.

    journal : where what is final is kept; None for nowhere
    lines : events as lines of JSON, instead of the screen
    quiet : no screen either
    with_speakers : whether the screen has room for who speaks
    """

    def __init__(self, journal: Path | None, *, lines: bool, quiet: bool, with_speakers: bool, say: Say) -> None:
        self.saved: SavedSound | None = None
        self._say = say
        self._lines = lines
        self._ended: Ended | None = None
        self._continued = Continued()
        self._journal = None if journal is None else Journal(journal)
        self._screen: LiveScreen | None = None
        self._show_warning = warnings.showwarning
        if not lines and not quiet:
            self._screen = LiveScreen(sys.stdout, live=is_live(sys.stdout), with_speakers=with_speakers)

    def __enter__(self) -> Output:
        warnings.showwarning = self._warn
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        warnings.showwarning = self._show_warning
        if self._screen is not None:
            self._screen.close()
        try:
            self.close_sound()
        finally:
            self._close_journal()

    def _close_journal(self) -> None:
        if self._journal is None:
            return
        self._journal.close()
        if self._ended is not None or self._journal.says_something:
            return
        # the journal is gone, and nothing goes on with the sound's file: one without sound would be in the way
        if self.saved is not None and not self.saved.seconds:
            self.saved.path.unlink(missing_ok=True)

    @property
    def offset(self) -> float:
        """Seconds of sound in the sessions before this one."""
        return self._continued.offset

    @property
    def left(self) -> str:
        """What is left of the session where it does not end by itself, in words."""
        if self._journal is None:
            return "nothing is written"
        if not self._journal.says_something:
            return "nothing was final yet"
        return f"what is final is in {self._journal.path}: --recover writes files of it, the same command goes on"

    def begin(self, options: Mapping[str, str], save_audio: Path | None, *, comes_again: bool = False) -> None:
        """Before the first sample.

        options : of the session
        save_audio : where its sound goes
        comes_again : whether the source still has the sound of the sessions before, and can begin at any place of it

        Raises `OutputError`.
        """
        goes_on = self._journal is not None and self._journal.recovered.sessions > 0
        if save_audio is not None:
            self.saved = SavedSound(save_audio, goes_on=goes_on)
        if self._journal is None:
            return
        if comes_again:
            self._continued = self._journal.begin_again(options)
        else:
            seconds = self.saved.seconds if self.saved is not None else 0.0
            self._continued = self._journal.begin(options, offset=seconds)
        if self.saved is not None:
            self.saved.cut(self.offset)  # what comes again is not saved twice
            self.saved.fill(self.offset)
        if goes_on:
            self.say(f"{self._journal.path}: {self.offset:.1f} s are there already: this goes on behind them")

    def take(self, event: LiveEvent) -> None:
        """Keep and show an event."""
        event = self._continued.event(event)
        if self._journal is not None:
            self._journal.add(event)
        if isinstance(event, Ended):
            self._ended = event  # its line is the last, when the files are there
        elif self._lines:
            _print({"type": _name(event), **to_plain(event)})
        if self._screen is not None:
            self._screen.show(event)

    def tick(self) -> None:
        """Now and then: what is due on the screen and on the disk."""
        if self._screen is not None:
            self._screen.tick()
        if self._journal is not None:
            self._journal.sync()

    def say(self, message: str) -> None:
        """Tell the user a line, above what is on the screen."""
        if self._screen is None:
            self._say(message)
            return
        with self._screen.above():
            self._say(message)

    @property
    def transcript(self) -> Transcript | None:
        """Of this session and those that it goes on with; None before the end."""
        return None if self._ended is None else self._ended.transcript

    def close_sound(self) -> None:
        """The file of the sound is whole. Raises `OutputError`."""
        if self.saved is not None:
            self.saved.close()

    def finish(self, speaker_embeddings: bool) -> None:
        """The files are written: the journal goes, and the last line of JSON comes."""
        if self._journal is not None:
            self._journal.remove()
        if self._lines and self._ended is not None:
            transcript = writers.as_dict(self._ended.transcript, speaker_embeddings=speaker_embeddings)
            _print({"type": "end", "at": self._ended.at, "reason": self._ended.reason, "transcript": transcript})

    def _warn(self, *arguments: Any, **keywords: Any) -> None:
        if self._screen is None:
            self._show_warning(*arguments, **keywords)
            return
        with self._screen.above():
            self._show_warning(*arguments, **keywords)


def _name(event: LiveEvent) -> str:
    """The type of an event in snake case."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()


def _print(content: Mapping[str, Any]) -> None:
    print(json.dumps(content, ensure_ascii=False), flush=True)
