"""Results as text in the usual formats. Pure functions: they take results and give a string, and read no file but the
package's own.

What writes a transcript can be called the same way for every format: `FORMATS[name](transcript, uri=…, **layout)`, with
the fields of `cues.Layout` as keywords. `read_json` reads what `to_json` has written, and WhisperX's results.
Importing this loads neither MLX nor NumPy: a command line may list the names of the formats.
"""

from __future__ import annotations

from collections.abc import Callable

from mlx_speech.writers.cues import Layout
from mlx_speech.writers.html import to_html
from mlx_speech.writers.stems import unique_stems
from mlx_speech.writers.subtitles import to_srt, to_vtt
from mlx_speech.writers.text import (
    regions_to_json,
    regions_to_rttm,
    regions_to_text,
    to_aud,
    to_ctm,
    to_rttm,
    to_screen,
    to_tsv,
    to_txt,
)
from mlx_speech.writers.whisperx_json import as_dict, read_json, to_json

__all__ = [
    "FORMATS",
    "Layout",
    "as_dict",
    "read_json",
    "regions_to_json",
    "regions_to_rttm",
    "regions_to_text",
    "to_aud",
    "to_ctm",
    "to_html",
    "to_json",
    "to_rttm",
    "to_screen",
    "to_srt",
    "to_tsv",
    "to_txt",
    "to_vtt",
    "unique_stems",
]

# the extension of its files → what writes a transcript in it, `write(transcript, uri=…, **layout)`
FORMATS: dict[str, Callable[..., str]] = {
    "txt": to_txt,
    "srt": to_srt,
    "vtt": to_vtt,
    "tsv": to_tsv,
    "json": to_json,
    "rttm": to_rttm,
    "ctm": to_ctm,
    "aud": to_aud,
    "html": to_html,
}
