"""Word errors of texts, beside what was said in `models.spoken`: `python -m benchmarks.word_errors SECONDS`.

Counted as in the README's table, in a process of its own: what counts takes memory that contenders would be charged.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

from benchmarks import models


class Errors(NamedTuple):
    """wrong : substitutions, deletions and insertions, beside `words` that were said"""

    wrong: int
    words: int

    def __str__(self) -> str:
        return f"{self.wrong} of {self.words} words wrong ({self.wrong / self.words:.1%})"


def count(texts: Mapping[str, str], seconds: float) -> dict[str, Errors]:
    """texts : what was heard in `models.spoken(seconds)`, by contender"""
    command = [sys.executable, "-m", "benchmarks.word_errors", f"{seconds:g}"]
    given = json.dumps(dict(texts))
    done = subprocess.run(command, cwd=models.ROOT, input=given, capture_output=True, text=True, check=True)
    return {name: Errors(*pair) for name, pair in json.loads(done.stdout).items()}


def main() -> None:
    """Texts by contender as JSON from standard input → [wrong, words] of each."""
    models.know_tests()
    import hearing

    said = models.spoken(float(sys.argv[1]))
    sample = hearing.Sample("", "en", said.samples, said.text)
    found = {name: hearing.errors_of(sample, text) for name, text in json.load(sys.stdin).items()}
    json.dump({name: (errors.total, errors.words) for name, errors in found.items()}, sys.stdout)


if __name__ == "__main__":
    main()
