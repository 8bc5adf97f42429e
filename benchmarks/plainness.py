"""How plain Python code is, a row a folder: `python benchmarks/plainness.py mlx_speech [FOLDER …]`.

A description, not a limit: no test bounds the package by it. What is counted, in all `.py` files below a folder:

- lines of code: all but blank lines, comments on lines of their own and docstrings; the other columns are per line of
  code, too
- nodes: statements and expressions of the syntax tree
- tuple assignments: those of a tuple to a tuple, as in `a, b = 1, 2`
- conditional expressions: `a if b else c`
- comprehensions of lists, sets and dicts, and generator expressions
- long lines: lines of code over 100 columns
- comments: lines that begin with `#`, beside 100 lines of code
"""

from __future__ import annotations

import argparse
import ast
from dataclasses import dataclass
from pathlib import Path

LONG_LINE = 100  # columns
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
TABLE_HEAD = """\
| folder | lines of code | nodes of syntax per line | tuple assignments per 1000 lines | conditional expressions \
| comprehensions | lines over 100 columns | lines of comment |
|---|---|---|---|---|---|---|---|"""


@dataclass
class Counts:
    """What stands in some files, all of them together."""

    code_lines: int = 0
    long_lines: int = 0
    comment_lines: int = 0
    nodes: int = 0
    tuple_assignments: int = 0
    conditional_expressions: int = 0
    comprehensions: int = 0

    def add(self, source: str) -> None:
        """Count one file's text. Raises `SyntaxError`."""
        tree = ast.parse(source)
        docstrings: set[int] = set()
        for node in ast.walk(tree):
            self._add_node(node)
            docstrings.update(docstring_lines(node))
        for number, line in enumerate(source.splitlines(), start=1):
            text = line.strip()
            if not text or number in docstrings:
                continue
            if text.startswith("#"):
                self.comment_lines += 1
                continue
            self.code_lines += 1
            if len(line) > LONG_LINE:
                self.long_lines += 1

    def _add_node(self, node: ast.AST) -> None:
        if isinstance(node, (ast.stmt, ast.expr)):
            self.nodes += 1
        if isinstance(node, ast.IfExp):
            self.conditional_expressions += 1
        if isinstance(node, COMPREHENSIONS):
            self.comprehensions += 1
        if is_tuple_assignment(node):
            self.tuple_assignments += 1

    def row(self, name: str) -> str:
        """A row of the table."""
        lines = max(self.code_lines, 1)
        cells = [
            name,
            str(self.code_lines),
            f"{self.nodes / lines:.1f}",
            f"{1000 * self.tuple_assignments / lines:.1f}",
            f"{1000 * self.conditional_expressions / lines:.1f}",
            f"{1000 * self.comprehensions / lines:.1f}",
            f"{self.long_lines / lines:.1%}",
            f"{self.comment_lines / lines:.1%}",
        ]
        return f"| {' | '.join(cells)} |"


def is_tuple_assignment(node: ast.AST) -> bool:
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    return any(isinstance(target, ast.Tuple) for target in node.targets)


def docstring_lines(node: ast.AST) -> range:
    """The numbers of the lines of a node's own docstring, of which there may be none."""
    if not isinstance(node, DOCUMENTED) or ast.get_docstring(node, clean=False) is None:
        return range(0)
    docstring = node.body[0]
    return range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1)


def count(folder: Path) -> Counts:
    """Counts of all Python files in a folder and the folders below it."""
    counts = Counts()
    for file in sorted(folder.rglob("*.py")):
        counts.add(file.read_text(encoding="utf-8"))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="How plain Python code is, a row a folder.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    folders: list[Path] = parser.parse_args().folders
    print(TABLE_HEAD)
    for folder in folders:
        print(count(folder).row(folder.as_posix()))


if __name__ == "__main__":
    main()
