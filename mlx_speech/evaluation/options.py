"""How is counted: the options of an evaluation. Importing this loads nothing heavy: help has to be quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mlx_speech.fields import check, option

NormaliserName = Literal["whisper", "plain"]


def _language_code(name: str, value: Any) -> Any:
    from mlx_speech.languages import to_language_code

    return to_language_code(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class EvaluationOptions:
    """How is counted. Raises `OptionError`."""

    language: str | None = option(
        None,
        "code or name; Whisper's normaliser knows spellings and numbers in English only",
        unset="the transcripts' own",
        read=_language_code,
    )
    normaliser: NormaliserName = option("whisper", "of the text for cpWER, tcpWER, ORC-WER and the alignment")
    word_collar: float = option(5.0, "seconds by which the time of a word may be off in tcpWER", low=0)
    collar: float = option(0.0, "seconds around boundaries that DER and JER leave out, half to either side", low=0)
    skip_overlap: bool = option(False, "DER and JER leave out speech of several at once")

    def __post_init__(self) -> None:
        check(self)
