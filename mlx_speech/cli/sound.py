"""The sound of a page (`-f html`): where the recording is, or the recording itself, and the peaks of its waveform."""

from __future__ import annotations

import base64
import io
import os
import warnings
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mlx_speech.errors import AudioError, OptionError

if TYPE_CHECKING:
    import numpy as np

PEAKS = 2000  # about as many as a screen has columns
PEAK_RATE = 8_000  # Hz; enough to see who is loud
EMBEDDED_RATE = 24_000  # Hz; speech has little above half of it
EMBEDDED_BITS = 48_000  # a second: 22 MB an hour, at which speech sounds as it was
FRAME = 1 << 16  # samples that are encoded at once


def check_embedding(embed_audio: bool, formats: list[str]) -> None:
    """Raises `OptionError` where sound is to be put into a page that nobody asked for."""
    if embed_audio and "html" not in formats:
        raise OptionError("--embed-audio needs --output-format html: give both")


def page_keywords(
    source: str | None, folder: Path, *, embed: bool = False, audio_track: int | str | None = None
) -> dict[str, Any]:
    """Keywords of `writers.to_html` for the sound of a recording; none for standard input, which is gone.

    source : the recording
    folder : where the page is written
    embed : whether the page is to hold the sound, as MP3, instead of its address
    audio_track : as of `load_audio`

    Raises `AudioError` as `load_audio`.
    """
    if source is None or source == "-":
        return {}
    from mlx_speech.audio import open_audio

    rate = EMBEDDED_RATE if embed else PEAK_RATE
    samples = open_audio(source, sample_rate=rate, audio_track=audio_track)
    audio = data_url(samples) if embed else address(source, folder)
    return {"audio": audio, "peaks": peaks_of(samples)}


def keywords_if_readable(
    source: str, folder: Path, *, embed: bool = False, audio_track: int | str | None = None
) -> dict[str, Any]:
    """As `page_keywords`, of a recording that was heard before: one that cannot be read once more, as from a pipe,
    leaves a page without sound, with a warning."""
    try:
        return page_keywords(source, folder, embed=embed, audio_track=audio_track)
    except AudioError as error:
        warnings.warn(f"the page has no sound: {error}", stacklevel=2)
        return {}


def address(source: str, folder: Path) -> str:
    """The path of a recording as a page in `folder` names it: relative, so that both can move together."""
    path = Path(source).absolute()
    try:
        relative = os.path.relpath(path, folder.absolute())
    except ValueError:  # on another drive
        return path.as_uri()
    return quote(os.fsencode(Path(relative).as_posix()))  # names may hold bytes that are no text


def peaks_of(samples: np.ndarray) -> list[float]:
    """The largest absolute values of equal parts, 0..1 with the loudest as 1. samples : (samples,), any rate"""
    import numpy as np

    from mlx_speech.samples import peak_of

    if not samples.size:
        return []
    starts = np.linspace(0, samples.size, min(PEAKS, samples.size), endpoint=False).astype(np.int64).tolist()
    parts = pairwise([*starts, samples.size])
    peaks = np.array([peak_of(samples[start:end]) for start, end in parts], np.float32)
    loudest = float(peaks.max())
    return (peaks / loudest).tolist() if loudest > 0 else [0.0] * len(peaks)


def data_url(samples: np.ndarray) -> str:
    """Sound as a data URL: MP3, or a WAV file where PyAV was built without its encoder.

    samples : (samples,) float32 in [-1, 1] at `EMBEDDED_RATE`
    """
    import av
    from av.codec.codec import UnknownCodecError

    try:
        av.Codec("libmp3lame", "w")
    except UnknownCodecError:
        return _as_url("audio/wav", _encoded(samples, "wav", "pcm_s16le"))
    return _as_url("audio/mpeg", _encoded(samples, "mp3", "libmp3lame"))


def _encoded(samples: np.ndarray, container: str, codec: str) -> bytes:
    import av
    import numpy as np
    from av.audio.stream import AudioStream

    from mlx_speech.sample_file import let_go

    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=EMBEDDED_RATE)
        if not isinstance(stream, AudioStream):
            raise TypeError(f"{codec} is no encoder of sound")
        stream.bit_rate = EMBEDDED_BITS
        stream.layout = "mono"
        for start in range(0, samples.size, FRAME):
            block = np.ascontiguousarray(samples[np.newaxis, start : start + FRAME], dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate = EMBEDDED_RATE
            frame.pts = start
            output.mux(stream.encode(frame))
            let_go(samples)
        output.mux(stream.encode(None))
    return file.getvalue()


def _as_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
