"""What `eval` and `compare` share: their flags, and reading, pairing and scoring of both sides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlx_speech.cli.screen import Say

if TYPE_CHECKING:
    from mlx_speech.evaluation.accounts import Account, Pair
    from mlx_speech.evaluation.measures import Evaluation, EvaluationOptions

FORMATS = "json (of mlx_speech or WhisperX), srt, vtt, txt, ctm, stm, rttm, TextGrid"


def add_scoring(group: Any) -> None:
    """The flags of what is scored, and how it is printed; those of `EvaluationOptions` are in `add_evaluation`."""
    group.add_argument(
        "--uem", default=None, metavar="FILE|START:END", help="what is scored, in seconds (default: all of it)"
    )
    group.add_argument("--json", action="store_true", default=False, help="all figures as JSON, at full precision")


def read(source: str) -> dict[str, Account]:
    """What a file or folder of transcripts says, by recording. Raises `SourceError`."""
    from mlx_speech.errors import OptionError
    from mlx_speech.evaluation.accounts import files_of, is_recording, read_accounts

    files = files_of(source)
    for paths in files.values():
        if any(is_recording(path) for path in paths):
            raise OptionError(f"{source}: is no transcript: give {FORMATS}, or a folder of them")
    return read_accounts(files)


def pairs_of(source: str, heard: Mapping[str, Account], said: Mapping[str, Account], say: Say) -> list[Pair]:
    """Both sides by recording; the user hears what only one side has. source : of `heard`. Raises `SourceError`."""
    from mlx_speech.evaluation.accounts import paired, unpaired

    pairs = paired(heard, said)
    message = unpaired(heard, said)
    if message:
        say(f"{source}: {message}")
    return pairs


def score(pairs: Sequence[Pair], options: EvaluationOptions, uem: str | None) -> list[Evaluation]:
    """The scores of all recordings. Raises `MLXSpeechError`."""
    from mlx_speech.errors import SourceError
    from mlx_speech.evaluation.accounts import read_stretches
    from mlx_speech.evaluation.measures import evaluate

    stretches = {} if uem is None else read_stretches(uem, [pair.name for pair in pairs])
    evaluations = [evaluate(pair, options, stretches.get(pair.name)) for pair in pairs]
    if not any(evaluation.scores for evaluation in evaluations):
        raise SourceError("hypothesis and reference have neither text nor speakers in common: nothing can be scored")
    return evaluations


def tell(evaluations: Sequence[Evaluation], say: Say) -> None:
    """Say what a user has to know to understand the scores."""
    texts = [found for found in evaluations if "wer" in found.scores]
    if any(found.language is None for found in texts):
        say("language is not known: Whisper's normaliser for English is not used; say en where it is English")
    for note in dict.fromkeys(note for found in evaluations for note in found.notes):
        say(note)


def print_json(content: Mapping[str, Any]) -> None:
    """As readable JSON."""
    print(json.dumps(content, ensure_ascii=False, indent=1))
