"""`mlx_speech eval`: how good transcripts or turns of speakers are, beside references."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from mlx_speech.cli import scoring
from mlx_speech.cli.parser import add_command, add_models, add_options
from mlx_speech.cli.screen import Bars, Say, failure
from mlx_speech.cli.setup import make_pipeline
from mlx_speech.errors import AudioError, OutOfMemory, SourceError
from mlx_speech.fields import options_of
from mlx_speech.options import SpeakerOptions

if TYPE_CHECKING:
    from pathlib import Path

    from mlx_speech.evaluation.accounts import Account

DESCRIPTION = (
    "Score transcripts beside references: word and character errors, with speakers cpWER, tcpWER, ORC-WER, DER and "
    f"JER, with times of words their boundaries; each with a 95 % interval. It reads {scoring.FORMATS}."
)


def add_parser(group: Any) -> None:
    """The command and its flags."""
    from mlx_speech.evaluation.options import EvaluationOptions

    parser = add_command(group, run, "eval", "scores beside references", DESCRIPTION, only_given=True)
    parser.add_argument("hypothesis", metavar="HYP", help="file or folder of transcripts, or recordings to transcribe")
    parser.add_argument("reference", metavar="REF", help="file or folder; files of the same name are paired")
    scoring.add_scoring(parser)
    parser.add_argument("--alignment", action="store_true", default=False, help="show what was heard for what")
    parser.add_argument("--per-speaker", action="store_true", default=False, help="a line for each speaker, too")
    add_options(parser, options_of(EvaluationOptions).values())
    recordings = parser.add_argument_group("where HYP is a recording")
    recordings.add_argument("--model", metavar="NAME", help="Whisper that transcribes it, as of transcribe")
    recordings.add_argument("--align-model", metavar="NAME", help="wav2vec2 (default: the one of the language)")
    add_options(recordings, options_of(SpeakerOptions).values())
    add_models(recordings)


def run(
    hypothesis: str,
    reference: str,
    uem: str | None,
    json: bool,
    alignment: bool,
    per_speaker: bool,
    verbose: bool,
    say: Say,
    **given: Any,
) -> int:
    """Print the scores of a hypothesis; 1 where a recording could not be transcribed."""
    from mlx_speech.evaluation import report
    from mlx_speech.evaluation.accounts import files_of, is_recording, read_accounts
    from mlx_speech.evaluation.options import EvaluationOptions

    chosen = {name: given.pop(name) for name in options_of(EvaluationOptions) if name in given}
    options = EvaluationOptions(**chosen)
    said = scoring.read(reference)
    files = files_of(hypothesis)
    recordings = {name: paths[0] for name, paths in files.items() if is_recording(paths[0])}
    failed: list[str] = []
    if recordings:
        wanted = recordings if len(recordings) == len(said) == 1 else _wanted(recordings, said)
        heard = _transcribed(wanted, options.language, given, verbose, say, failed)
    else:
        if "model" in given:
            say("--model has no meaning where the hypothesis is no recording")
        heard = read_accounts(files)
    if heard:
        evaluations = scoring.score(scoring.pairs_of(hypothesis, heard, said, say), options, uem)
        scoring.tell(evaluations, say)
        if json:
            scoring.print_json(report.as_dict(evaluations, with_alignment=alignment))
        else:
            print(report.table(evaluations), end="")
            for found in evaluations:
                details: list[str] = []
                if per_speaker and found.speakers:
                    details.append(report.speaker_table(found.speakers))
                if alignment and found.alignment:
                    details.append(report.alignment(found.alignment))
                if details:
                    heading = f"\n# {found.name}\n" if len(evaluations) > 1 else "\n"
                    print(heading + "\n".join(details), end="")
    for message in failed:
        say(message)
    return 1 if failed else 0


def _wanted(recordings: dict[str, Path], said: dict[str, Account]) -> dict[str, Path]:
    """Those that have a reference. Raises `SourceError` where none has."""
    wanted = {name: path for name, path in recordings.items() if name in said}
    if not wanted:
        raise SourceError("no recording of the hypothesis has a reference of the same name: rename them")
    return wanted


def _transcribed(
    recordings: dict[str, Path],
    language: str | None,
    given: dict[str, Any],
    verbose: bool,
    say: Say,
    failed: list[str],
) -> dict[str, Account]:
    """What the pipeline hears in recordings. failed : gets a message for each that failed"""
    from mlx_speech.evaluation.accounts import account_of
    from mlx_speech.evaluation.measures import check_packages

    check_packages()
    bars = Bars(given.pop("print_progress"))
    pipeline = make_pipeline(given, say)
    names = {str(path): name for name, path in recordings.items()}
    heard: dict[str, Account] = {}
    with closing(bars) as report:
        for source, result in pipeline.transcribe(list(names), language=language, on_progress=report, **given):
            report.close(source)
            if isinstance(result, (AudioError, OutOfMemory)):
                failed.append(failure(str(source), result, verbose))
            elif isinstance(result, Exception):
                raise result
            else:
                heard[names[str(source)]] = account_of(result)
    return heard
