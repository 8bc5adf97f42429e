"""parity.md: what the test run measured, one table for float32 with its bars, one for smaller precisions without."""

from __future__ import annotations

HEAD = """# Parity with the originals

Written by the test run (`make test`), on this machine's CPU. Same input, PyTorch original beside MLX. Weights are
random unless the case says real; norms and statistics are randomised so that none is the identity, and a case whose
output is one token, label or class throughout is refused.
"""


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
            if measure.startswith(("batch", "padded", "step", "filterbank")):
                continue
            said = f"{value:.5g}" if at_least else f"{value:.1e}"
            lines.append(f"| {case['case']} | {case['precision']} | {measure} | {said} |")
    return "\n".join(lines) + "\n"
