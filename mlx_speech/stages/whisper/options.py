"""How to decode: the options of Whisper's decoder. Importing them imports no MLX."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from mlx_speech.errors import OptionError, brief
from mlx_speech.fields import check, option

TOKEN_ADVICE = "give ids with commas, such as -1,50257"


def _one_or_several(name: str, value: Any) -> Any:
    """One number stands for a tuple of it."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return (value,)
    return value


def _token_ids(name: str, value: Any) -> Any:
    """Text stays; None is no tokens; the rest becomes a tuple of ids."""
    if value is None:
        return ()
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        return value
    try:
        return tuple(int(token) for token in value if token != "")
    except (TypeError, ValueError) as error:
        raise OptionError(f"{name} is {brief(value)}: {TOKEN_ADVICE}") from error


@dataclass(frozen=True)
class DecodingOptions:
    """How to decode; names and meanings are openai/whisper's, of its `DecodingOptions` and `transcribe`, but for
    `suppress_numerals` (WhisperX) and `hotwords` (faster-whisper).

    Raises `OptionError`, naming the option, for values of another type or out of range.
    """

    task: Literal["transcribe", "translate"] = option("transcribe", "translate: into English")
    temperature: tuple[float, ...] = option(
        (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        "of sampling, tried in turn until the result passes the thresholds; at 0 without samples, greedily or by beams",
        low=0,
        high=100,
        advice="give a number from 0 to 100, or several to be tried in turn",
        read=_one_or_several,
        accepts=float | Sequence[float],
    )
    sample_len: int | None = option(
        None, "most tokens a chunk", unset="half of the decoder's context, 224 in OpenAI's", low=1
    )
    best_of: int | None = option(5, "samples at a temperature above 0, of which the best is taken", low=1, high=100)
    beam_size: int | None = option(None, "beams at temperature 0", unset="greedy", low=1, high=100)
    patience: float | None = option(None, "of beam search, with `beam_size`", unset="1", low=0, high=100)
    length_penalty: float | None = option(
        None, "alpha of Google's length penalty", unset="log-probabilities are divided by the length", low=0, high=1
    )
    suppress_tokens: str | tuple[int, ...] = option(
        "-1",
        "comma-separated ids of tokens that are never said; -1: all symbols that are not spoken",
        advice=TOKEN_ADVICE,
        read=_token_ids,
        accepts=str | Sequence[int] | None,
    )
    suppress_blank: bool = option(True, "no text begins with a space or is empty")
    suppress_numerals: bool = option(False, "spell numbers out")
    without_timestamps: bool = option(False, "text only: one segment a chunk")
    max_initial_timestamp: float | None = option(
        1.0, "latest start of the text in seconds; None or 0: no limit", unset="no limit", low=0, high=30
    )
    compression_ratio_threshold: float | None = option(2.4, "text that compresses better has failed; None: never")
    logprob_threshold: float | None = option(-1.0, "a lower mean log-probability has failed; None: never")
    no_speech_threshold: float | None = option(
        0.6, "above this probability of silence a low log-probability is no failure, and there is no text"
    )
    initial_prompt: str | None = option(None, "text that is taken to come before")
    prefix: str | None = option(None, "text that every chunk begins with")
    hotwords: str | None = option(None, "names and terms to expect: text before the prompt, where there is no `prefix`")
    seed: int = option(0, "of the samples")

    def __post_init__(self) -> None:
        check(self)
        if not self.temperature:
            raise OptionError("temperature is empty: give at least one, such as 0")
        if self.patience is not None and self.beam_size is None:
            raise OptionError("patience needs beam_size: give both or neither")
        if self.beam_size is not None and self.candidates < 1:
            raise OptionError(
                f"patience {self.patience} with beam_size {self.beam_size} leaves no candidates: raise it"
            )
        self.suppressed()

    @property
    def group(self) -> Hashable:
        """What has to be equal within a batch: jobs whose options have equal groups may share one. All else is looked
        at row by row."""
        return (
            self.task,
            self.temperature,
            self.best_of,
            self.beam_size,
            self.patience,
            tuple(self.suppressed()),
            self.suppress_blank,
            self.suppress_numerals,
            self.without_timestamps,
            self.max_initial_timestamp,
        )

    @property
    def candidates(self) -> int:
        """Finished beams that end the search."""
        return round((self.beam_size or 1) * (self.patience or 1.0))

    def suppressed(self) -> list[int]:
        """`suppress_tokens` as a list. Raises `OptionError` where they are no ids."""
        tokens = self.suppress_tokens
        if not isinstance(tokens, str):
            return list(tokens)
        try:
            return [int(token) for token in tokens.split(",") if token != ""]
        except ValueError as error:
            raise OptionError(f"suppress_tokens is {brief(tokens)}: {TOKEN_ADVICE}") from error
