"""`mlx_speech compare`: two hypotheses beside one reference, and whether one is better by more than chance."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mlx_speech.cli import scoring
from mlx_speech.cli.parser import add_command, add_options
from mlx_speech.cli.screen import Say
from mlx_speech.errors import SourceError
from mlx_speech.fields import options_of

DESCRIPTION = (
    "Compare two models or settings by what they made of the same recordings: the scores of eval side by side, with "
    "the 95 % interval of each difference (paired bootstrap)."
)


def add_parser(group: Any) -> None:
    """The command and its flags."""
    from mlx_speech.evaluation.options import EvaluationOptions

    parser = add_command(group, run, "compare", "two hypotheses side by side", DESCRIPTION, only_given=True)
    parser.add_argument("first", metavar="A", help=f"file or folder: {scoring.FORMATS}")
    parser.add_argument("second", metavar="B", help="of the same recordings")
    parser.add_argument("--reference", required=True, metavar="REF", help="what was said, file or folder")
    scoring.add_scoring(parser)
    add_options(parser, options_of(EvaluationOptions).values())
    parser.add_argument("-v", "--verbose", action="store_true", default=False, help="tracebacks of errors")


def run(
    first: str, second: str, reference: str, uem: str | None, json: bool, verbose: bool, say: Say, **given: Any
) -> int:
    """Print the scores of two hypotheses, and what their difference says."""
    from mlx_speech.evaluation import comparison, report
    from mlx_speech.evaluation.options import EvaluationOptions

    options = EvaluationOptions(**given)
    said = scoring.read(reference)
    left = scoring.pairs_of(first, scoring.read(first), said, say)
    right = scoring.pairs_of(second, scoring.read(second), said, say)
    shared = {pair.name for pair in left} & {pair.name for pair in right}
    if not shared:
        raise SourceError(f"{first} and {second} have no recording in common: compare what was made of the same ones")
    left = [pair for pair in left if pair.name in shared]
    right = [pair for pair in right if pair.name in shared]
    ours = scoring.score(left, options, uem)
    theirs = scoring.score(right, options, uem)
    scoring.tell([*ours, *theirs], say)
    differences = comparison.compare(ours, theirs)
    names = _names(first, second)
    conclusion = comparison.sentence(*names, differences)
    if json:
        scoring.print_json(report.comparison_as_dict(*names, differences, len(ours), conclusion))
    else:
        print(report.comparison_table(*names, differences, len(ours)) + conclusion)
    return 0


def _names(first: str, second: str) -> tuple[str, str]:
    """As short as they can be told apart: of files or folders their names, or else the paths from where they part."""
    left = Path(first).resolve()
    right = Path(second).resolve()
    if left.name != right.name or left == right:
        return left.name, right.name
    shared = os.path.commonpath([left, right])
    return str(left.relative_to(shared)), str(right.relative_to(shared))
