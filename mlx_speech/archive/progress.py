"""How far an archive is."""

from __future__ import annotations

from dataclasses import dataclass

HOUR = 3600.0


@dataclass(frozen=True)
class Progress:
    """How far an archive is, at a moment.

    files, of_files : done or failed, and all; failed : of them
    hours, of_hours : of sound, done and all; all is a guess where manifests do not say it
    rate : hours of sound an hour of this run; 0 while nobody knows
    left : seconds until the end, at this rate; None while nobody knows
    processes : that transcribe
    """

    files: int
    of_files: int
    failed: int
    hours: float
    of_hours: float
    rate: float
    left: float | None
    processes: int


class Tally:
    """Counts what is done. waiting : seconds of sound that are to be done, as far as is known"""

    def __init__(self, of_files: int, waiting: float) -> None:
        self.files = 0
        self.failed = 0
        self._of_files = of_files
        self._before = 0.0  # seconds of sound, of earlier runs
        self._done = 0.0  # of this one
        self._waiting = waiting

    def there(self, seconds: float, *, failed: bool = False) -> None:
        """A recording was done, or has failed, before this run. seconds : of sound"""
        self.files += 1
        self.failed += failed
        self._before += seconds

    def done(self, guessed: float, seconds: float) -> None:
        """A recording is done. guessed, seconds : how long it was taken for, and how long it is"""
        self.files += 1
        self._waiting -= guessed
        self._done += seconds

    def failure(self, guessed: float) -> None:
        """A recording has failed."""
        self.files += 1
        self.failed += 1
        self._waiting -= guessed

    @property
    def heard(self) -> float:
        """Seconds of sound of this run."""
        return self._done

    def progress(self, elapsed: float, processes: int) -> Progress:
        """elapsed : seconds of this run, without the time that models took to load"""
        waiting = max(self._waiting, 0.0)
        rate = self._done / elapsed if elapsed > 0 else 0.0
        done = self._before + self._done
        return Progress(
            files=self.files,
            of_files=self._of_files,
            failed=self.failed,
            hours=done / HOUR,
            of_hours=(done + waiting) / HOUR,
            rate=rate,
            left=waiting / rate if rate > 0 else None,
            processes=processes,
        )
