"""What benchmarks/plainness.py counts. It describes code: no test bounds the package by it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "plainness.py"
LONG_SUM = "1" + " + 1" * 30
# Statements and expressions stand beside each line; a docstring is one of each.
SNIPPET = f'''"""A module,
described in two lines."""  # 1 + 1

# a comment of its own
import os  # 1 + 0


def choose(flag):  # 1 + 0
    """One line."""  # 1 + 1
    first, second = 1, 2  # 1 + 6
    first, second = flag  # 1 + 4
    pair = first, second  # 1 + 4
    return pair if flag else 0  # 1 + 4


LISTED = [n for n in os.environ]  # 1 + (target, comprehension, n, n, os.environ: 2)
SUMMED = sum(n for n in LISTED)  # 1 + (target, call, sum, generator, n, n, LISTED)
UNIQUE = {{n for n in LISTED}}  # 1 + (target, comprehension, n, n, LISTED)
MAPPED = {{n: n for n in LISTED}}  # 1 + (target, comprehension, n, n, n, LISTED)
TOTAL = {LONG_SUM}  # 1 + (target, 31 numbers, 30 sums)
'''
CODE_LINES = 11
STATEMENTS = 13
EXPRESSIONS = 1 + 1 + 6 + 4 + 4 + 4 + 6 + 7 + 5 + 6 + 62


def test_a_snippet_is_counted(tmp_path: Path) -> None:
    (tmp_path / "package" / "inner").mkdir(parents=True)
    (tmp_path / "package" / "inner" / "snippet.py").write_text(SNIPPET, encoding="utf-8")
    (tmp_path / "package" / "text.txt").write_text("no code", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    command = [sys.executable, str(SCRIPT), "package", "empty"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    *_, package, empty = done.stdout.splitlines()
    nodes = (STATEMENTS + EXPRESSIONS) / CODE_LINES
    cells = ["package", "11", f"{nodes:.1f}", "90.9", "90.9", "363.6", "9.1%", "9.1%"]
    assert package == f"| {' | '.join(cells)} |"
    assert empty == "| empty | 0 | 0.0 | 0.0 | 0.0 | 0.0 | 0.0% | 0.0% |"
