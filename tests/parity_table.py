"""parity.md: what the test run measured, one table for float32 with its bars, one for smaller precisions without."""

from __future__ import annotations

HEAD = """# Parity with the originals

Written by the test run (`make test`), on this machine's CPU. Same input, PyTorch original beside MLX. Weights are
random unless the case says real; norms and statistics are randomised so that none is the identity, and a case whose
output is one token, label or class throughout is refused.
"""
SHOWN = (  # in the README
    "Silero VAD 6.2 (real), 60 s",
    "PyanNet 2022.07 (real), dev00.wav",
    "PyanNet 2022.07 (real), dev01.wav",
    "PyanNet 10 s powerset",
    "WeSpeaker ResNet34",
    "PLDA of community-1 (real)",
    "wav2vec2-base",
    "Whisper tiny.en (real, random embedding)",
    "Whisper tiny",
    "Whisper base",
)
MINOR = ("batch", "padded", "step", "filterbank, share")  # measures that the README leaves to parity.md
BEGIN, END = "<!-- parity: written by the test run -->", "<!-- /parity -->"


def render(cases: list[dict]) -> str:
    """The Markdown text."""
    full = [case for case in cases if case["precision"] == "float32"]
    small = [case for case in cases if case["precision"] != "float32"]
    lines = [HEAD, "## float32\n", "| case | original | measure | value | bar |", "|---|---|---|---|---|"]
    for case in full:
        for measure, value, bar, at_least in case["rows"]:
            said = f"{value:.7g} | ≥ {bar:g}" if at_least else f"{value:.1e} | ≤ {bar:g}"
            lines.append(f"| {case['case']} | {case['original']} | {measure} | {said} |")
    lines += [
        "\n## Smaller precisions, against the float32 original\n",
        "float16 is computed in float16. 8 and 4 bits are what the CPU computes: the quantized weights in float32.\n",
        "| case | precision | measure | value |",
        "|---|---|---|---|",
    ]
    for case in small:
        for measure, value, _, at_least in case["rows"]:
            if measure.startswith((*MINOR, "filterbank")):
                continue
            said = f"{value:.5g}" if at_least else f"{value:.1e}"
            lines.append(f"| {case['case']} | {case['precision']} | {measure} | {said} |")
    return "\n".join(lines) + "\n"


def summary(cases: list[dict]) -> str:
    """The README's table: real weights and real sizes, in float32."""
    known = {case["case"]: case for case in cases if case["precision"] == "float32"}
    lines = ["| case | measure | value | bar |", "|---|---|---|---|"]
    for case in (known[name] for name in SHOWN):
        for measure, value, bar, at_least in case["rows"]:
            if measure.startswith(MINOR):
                continue
            said = f"{value:.7g} | ≥ {bar:g}" if at_least else f"{value:.1e} | ≤ {bar:.2g}"
            lines.append(f"| {case['case']} | {measure} | {said} |")
    lines += ["", "| smaller, against the float32 original | precision | measure | value |", "|---|---|---|---|"]
    for case in cases:
        if case["precision"] == "float32" or case["case"] not in SHOWN:
            continue
        kept = [row for row in case["rows"] if not row[0].startswith((*MINOR, "filterbank"))]
        agreement = next((row for row in kept if row[3]), kept[0])
        for measure, value, _, at_least in dict.fromkeys((tuple(kept[0]), tuple(agreement))):
            said = f"{value:.5g}" if at_least else f"{value:.1e}"
            lines.append(f"| {case['case']} | {case['precision']} | {measure} | {said} |")
    return "\n".join(lines)


def complete(cases: list[dict]) -> bool:
    """Whether a run measured all that is shown, and not a part of it."""
    return set(SHOWN) <= {case["case"] for case in cases}


def put_into_readme(readme: str, cases: list[dict]) -> str:
    """The README with its table replaced."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{summary(cases)}\n{END}{after}" if after else readme
