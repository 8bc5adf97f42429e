"""parity.md and the README's table: what `make tables` measured, and how far another run may be from it.

One table for float32 with its bars, one for smaller precisions without. The tests measure the same again, wherever they
run, and compare: cases, measures, bars and verdicts have to be those of the tables. A rounding error differs from CPU
to CPU and from BLAS to BLAS, so that only its order of magnitude is asked for, and where the port is compared with
itself only the bar.
"""

from __future__ import annotations

import re

HEAD = """# Parity with the originals

Written by `make tables`, on one machine's CPU; every test run measures it again and compares. Same input, PyTorch
original beside MLX. Weights are random unless the case says real; norms and statistics are randomised so that none is
the identity, and a case whose output is one token, label or class throughout is refused. Real recordings: 20 windows of
at most 30 s in English, Japanese, Swedish and Chinese; of German, Spanish and Italian, synthetic ones.
"""
SHOWN = (  # in the README
    "Whisper base (real)",
    "Whisper tiny.en (real)",
    "PyanNet 3.0 (real), dev00.wav",
    "PyanNet 3.0 (real), dev01.wav",
    "PyanNet 2022.07 (real), dev00.wav",
    "PyanNet 2022.07 (real), dev01.wav",
    "Silero VAD 6.2 (real), 60 s",
    "CAM++ (real), dev00.wav",
    "CAM++ (real), dev01.wav",
    "PLDA of community-1 (real)",
    "WeSpeaker ResNet34",
    "wav2vec2-base",
)
MINOR = ("batch", "padded", "step", "filterbank, share")  # measures that the README leaves to parity.md
TWO_WAYS = ("batch", "padded", "step")  # the port beside itself: nothing at all with one BLAS, rounding with another
BEGIN, END = "<!-- parity: make tables -->", "<!-- /parity -->"

MAGNITUDE = 10.0  # how many times larger or smaller a rounding error may be than the table's
NOTHING = 1e-3  # of the bar: errors below are all the same
SHARE = 0.02  # by how much a share may differ where there is no bar
OWN_ROUNDING = re.compile(r" \(the original's own rounding: [^)]*\)")
MOVED_BAR = 2.0  # how many times larger or smaller a bar may be that follows from the original's own rounding


def render(cases: list[dict]) -> str:
    """The Markdown text of parity.md: real weights first, those of the README in its order."""
    cases = sorted(cases, key=_rank)
    lines = [HEAD, "## float32\n", "| case | original | measure | value | bar |", "|---|---|---|---|---|"]
    for case in cases:
        if case["precision"] == "float32":
            for row in case["rows"]:
                lines.append(f"| {case['case']} | {case['original']} | {row[0]} | {_with_bar(row)} |")
    lines += [
        "\n## Smaller precisions, against the float32 original\n",
        "float16 is computed in float16. 8 and 4 bits are what the CPU computes: the quantized weights in float32.\n",
        "| case | original | precision | measure | value |",
        "|---|---|---|---|---|",
    ]
    for case in cases:
        if case["precision"] != "float32":
            for row in _kept(case):
                lines.append(
                    f"| {case['case']} | {case['original']} | {case['precision']} | {row[0]} | {_without_bar(row)} |"
                )
    return "\n".join(lines) + "\n"


def _rank(case: dict) -> tuple:
    name = case["case"]
    place = SHOWN.index(name) if name in SHOWN else len(SHOWN)
    return ("(real)" not in name, place, name, case["precision"])


def _with_bar(row: list) -> str:
    _, value, bar, at_least = row
    return f"{value:.7g} | ≥ {bar:g}" if at_least else f"{value:.1e} | ≤ {bar:.3g}"


def _without_bar(row: list) -> str:
    _, value, _, at_least = row
    return f"{value:.5g}" if at_least else f"{value:.1e}"


def _kept(case: dict) -> list[list]:
    """The measures that are shown of a smaller precision."""
    return [row for row in case["rows"] if not row[0].startswith((*MINOR, "filterbank"))]


def read(text: str) -> list[dict]:
    """The cases of a parity.md; of smaller precisions without bars."""
    cases: dict[tuple[str, str], dict] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 5 or cells[0] in ("case", "---"):
            continue
        if cells[4][0] in "≤≥":
            name, original, measure, value, bar = cells
            precision, row = "float32", [measure, float(value), float(bar[2:]), bar[0] == "≥"]
        else:
            name, original, precision, measure, value = cells
            row = [measure, float(value), None, "e" not in value]  # errors are written with an exponent, shares without
        case = {"case": name, "original": original, "precision": precision, "rows": []}
        cases.setdefault((name, precision), case)["rows"].append(row)
    return list(cases.values())


def summary(cases: list[dict]) -> str:
    """The README's table: real weights and real sizes."""
    known = {case["case"]: case for case in cases if case["precision"] == "float32"}
    lines = ["| case | measure | value | bar |", "|---|---|---|---|"]
    for case in (known[name] for name in SHOWN if name in known):
        for row in case["rows"]:
            if not row[0].startswith(MINOR):
                lines.append(f"| {case['case']} | {row[0]} | {_with_bar(row)} |")
    lines += ["", "| smaller, against the float32 original | precision | measure | value |", "|---|---|---|---|"]
    for case in sorted(cases, key=_rank):
        if case["precision"] == "float32" or case["case"] not in SHOWN:
            continue
        kept = _kept(case)
        agreement = next((row for row in kept if row[3]), kept[0])
        for row in dict.fromkeys((tuple(kept[0]), tuple(agreement))):
            lines.append(f"| {case['case']} | {case['precision']} | {row[0]} | {_without_bar(list(row))} |")
    return "\n".join(lines)


def updated(published: list[dict], measured: list[dict], names: set[str]) -> list[dict]:
    """`published` with the cases that were measured in place of older ones, and without those not in `names`."""
    known = {(case["case"], case["precision"]): case for case in published}
    known |= {(case["case"], case["precision"]): case for case in measured}
    return [case for case in known.values() if case["case"] in names]


def put_into_readme(readme: str, cases: list[dict]) -> str:
    """The README with its table replaced. Raises ValueError where it has no place for it."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"README.md has no {BEGIN} … {END}")
    return f"{before}{begin}\n{summary(cases)}\n{end}{after}"


def differences(measured: dict, published: list[dict]) -> list[str]:
    """What the tables say otherwise than a case that was measured, a line each."""
    precision = measured["precision"]
    rows = measured["rows"] if precision == "float32" else _kept(measured)
    found = [case for case in published if (case["case"], case["precision"]) == (measured["case"], precision)]
    if not found:
        return [f"{measured['case']}, {precision}: not in the table"]
    if [OWN_ROUNDING.sub("", row[0]) for row in rows] != [OWN_ROUNDING.sub("", row[0]) for row in found[0]["rows"]]:
        return [f"{measured['case']}, {precision}: other measures than the table's"]
    said = []
    moved = tuple(any(OWN_ROUNDING.search(row[0]) for row in one) for one in (rows, found[0]["rows"]))
    for own, theirs in zip(rows, found[0]["rows"], strict=True):
        if not _agree(own, theirs, moved):
            said.append(f"{measured['case']}, {precision}, {own[0]}: {own[1]:.3g}, and {theirs[1]:.3g} in the table")
    return said


def _agree(own: list, table: list, moved: tuple[bool, ...]) -> bool:
    """Whether a row that was measured is that of the table, which has no bars for smaller precisions.

    moved : whether the bars of the case follow from the original's own rounding, here and where the table was written;
        where they do in one place alone, since each CPU rounds in its own way, each value has to be within its own bar
    """
    measure, value, bar, at_least = own
    _, published, published_bar, published_at_least = table
    if at_least != published_at_least:
        return False
    if published_bar is None:
        return abs(value - published) <= SHARE if at_least else _near(value, published, MAGNITUDE)
    digits = "g" if at_least else ".3g"  # that the table has
    if not any(moved) and f"{bar:{digits}}" != f"{published_bar:{digits}}":
        return False
    if all(moved) and not _near(bar, published_bar, MOVED_BAR):
        return False
    if at_least:
        return value >= bar and published >= published_bar
    if not (value <= bar and published <= published_bar):
        return False
    least = NOTHING * bar
    return measure.startswith(TWO_WAYS) or _near(max(value, least), max(published, least), MAGNITUDE)


def _near(one: float, other: float, factor: float) -> bool:
    """Whether neither is more than `factor` times the other."""
    return one == other or (one <= factor * other and other <= factor * one)
