"""Several channels → one.

Two channels are averaged, surround is mixed by libswresample's weights. Where two cancel each other in the mean (a
cable wired wrongly, an effect of a jingle), one of them is heard instead; this is chosen a second at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import av
import numpy as np
from av.error import FFmpegError

if TYPE_CHECKING:
    from av.audio.layout import AudioLayout

CANCELLED_ENERGY = 0.1  # of the energy of the louder of two channels; a mean that has less has lost what is in both
AUDIBLE_RMS = 1e-3  # RMS: -60 dBFS; softer seconds do not count
CANCELLED_SHARE = 0.1  # of the audible seconds; less is not worth a word
LOUDER_ENERGY = 2.0  # times the energy; by less, the one heard before stays
SHORTEST_TO_CHOOSE = 0.25  # seconds; a shorter rest is too little to choose by
FADE_SECONDS = 0.01  # from one choice to another
SIDES = ("left", "right")
PROBE_RATE = 16_000  # Hz, of the frame that asks for weights; any would do


def weights(layout: AudioLayout) -> np.ndarray | None:
    """What each channel counts for in a mix to mono, (channels,); None where all count the same.

    They are libswresample's (centre 1, left and right 0.707, surround 0.5, deep effects 0), asked of itself with a one
    in each channel, and divided by their sum, as it does for integers.
    """
    count = layout.nb_channels
    if count < 3 or any(channel.name == "NONE" for channel in layout.channels):  # nobody knows their places
        return None
    try:
        frame = av.AudioFrame.from_ndarray(np.eye(count).reshape(1, -1), format="dbl", layout=layout)
        frame.sample_rate = PROBE_RATE
        resampler = av.AudioResampler(format="dbl", layout="mono", rate=PROBE_RATE)
        mixed = [*resampler.resample(frame), *resampler.resample(None)]
    except FFmpegError:  # it has no mix of these
        return None
    mix = np.concatenate([part.to_ndarray().ravel() for part in mixed])
    total = float(mix.sum())
    if len(mix) != count or total <= 0:
        return None
    return (mix / total).astype(np.float32)


class Pair:
    """Makes one channel of two, a second at a time: their mean, or where they cancel each other in it, one of them.

    rate : samples in a second
    """

    def __init__(self, rate: int) -> None:
        self.waiting = 0  # samples that the current second has
        self._rate = rate
        self._parts: list[np.ndarray] = []  # of that second
        self._choice: int | None = None  # of the second before: a channel, or None for the mean
        self._begun = False
        self._audible = 0  # seconds
        self._cancelled = [0, 0]  # of them, those in which the left one is heard, and the right one

    def add(self, channels: np.ndarray) -> list[np.ndarray]:
        """channels : (samples, 2). Returns the seconds that are complete with these, (samples,) each."""
        seconds = []
        while len(channels):
            part, channels = np.split(channels, [self._rate - self.waiting])
            self._parts.append(part)
            self.waiting += len(part)
            if self.waiting == self._rate:
                seconds.append(self._mono())
        return seconds

    def end(self) -> np.ndarray:
        """The rest, (samples,). More may follow."""
        if not self._parts:
            return np.zeros(0, np.float32)
        return self._mono()

    def verdict(self) -> str | None:
        """What to say of the choices: None where the channels have cancelled each other nowhere, or hardly."""
        seconds = sum(self._cancelled)
        if not seconds or seconds < CANCELLED_SHARE * self._audible:
            return None
        side = int(np.argmax(self._cancelled))
        heard = "one alone is heard"
        if seconds == self._cancelled[side]:
            heard = f"the {SIDES[side]} one alone is heard"
        fact = "its two channels are in opposite phase and cancel each other"
        if seconds == self._audible:
            return f"{fact}: {heard}"
        return f"{fact} for {seconds} of {self._audible} s: {heard} there"

    def _mono(self) -> np.ndarray:
        """The current second, (samples,), which ends with it."""
        second = self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts)
        self._parts = []
        self.waiting = 0
        mean = second.mean(axis=1, dtype=np.float32)
        choice_before = self._choice
        self._choice = self._choose(second, mean)
        mono = self._heard(second, mean, self._choice)
        if self._begun and choice_before != self._choice:
            fade = np.linspace(0, 1, round(FADE_SECONDS * self._rate), dtype=np.float32)[: len(mono)]
            fading = self._heard(second, mean, choice_before)[: len(fade)]
            mono = mono.copy()
            mono[: len(fade)] = fade * mono[: len(fade)] + (1 - fade) * fading
        self._begun = True
        return mono

    def _choose(self, second: np.ndarray, mean: np.ndarray) -> int | None:
        """What is heard of a second (samples, 2), whose mean is (samples,): a channel, or None for the mean."""
        left = _energy(second[:, 0])
        right = _energy(second[:, 1])
        short = self._begun and len(second) < SHORTEST_TO_CHOOSE * self._rate
        audible = max(left, right) > AUDIBLE_RMS**2 * len(second)
        if short or not audible:
            return self._choice
        self._audible += 1
        if _energy(mean) >= CANCELLED_ENERGY * max(left, right):
            return None
        choice = int(right > left)
        if self._choice is not None and max(left, right) < LOUDER_ENERGY * min(left, right):
            choice = self._choice
        self._cancelled[choice] += 1
        return choice

    @staticmethod
    def _heard(second: np.ndarray, mean: np.ndarray, choice: int | None) -> np.ndarray:
        return mean if choice is None else second[:, choice]


def _energy(sound: np.ndarray) -> float:
    """sound : (samples,)"""
    return float(np.dot(sound, sound))
