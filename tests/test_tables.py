"""The tables of parity in the repository: of all cases, the same in both places; what another run may differ by."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from parity_table import SHOWN, differences, put_into_readme, read, render, updated
from test_parity import CASES
from test_real_parity import NAMES

ROOT = Path(__file__).parent.parent
PUBLISHED = read((ROOT / "parity.md").read_text(encoding="utf-8"))


def test_the_table_has_every_case_and_no_other() -> None:
    wanted = {(case.name, precision) for case in CASES for precision in ("float32", *case.smaller)}
    wanted |= {(name, "float32") for name in NAMES}
    wanted |= {("Whisper tiny.en (real)", precision) for precision in ("float16", "8 bits", "4 bits")}
    assert {(case["case"], case["precision"]) for case in PUBLISHED} == wanted
    assert set(SHOWN) <= {case["case"] for case in PUBLISHED}


def test_the_table_is_as_it_is_written() -> None:
    assert render(PUBLISHED) == (ROOT / "parity.md").read_text(encoding="utf-8")


def test_the_readme_has_the_same_figures() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert put_into_readme(readme, PUBLISHED) == readme


CASE = {
    "case": "Whisper",
    "original": "openai-whisper",
    "precision": "float32",
    "rows": [["encoder, max difference", 2e-5, 1e-3, False], ["same next token, share", 1.0, 0.999, True]],
}
ROUNDING = "output, max difference (the original's own rounding: {})"
SEGMENTATION = {
    **CASE,
    "case": "PyanNet",
    "rows": [
        [ROUNDING.format("4.0e-04"), 1e-4, 1.2e-3, False],
        ["batch and singles, max difference", 1e-5, 2.4e-3, False],
    ],
}
NEAR_ITS_BAR = {**CASE, "case": "Whisper base", "rows": [["encoder, max difference", 9.1e-4, 1e-3, False]]}
ROUNDS_MORE = "encoder, max difference (the original's own rounding: 1.3e-03)"
BEYOND_IT = {**NEAR_ITS_BAR, "rows": [[ROUNDS_MORE, 1.27e-3, 3.9e-3, False]]}
SMALLER = {
    **CASE,
    "precision": "8 bits",
    "rows": [["encoder, max difference", 0.02, 1e-3, False], ["same next token, share", 0.95, 0.999, True]],
}


def changed(case: dict, row: int, column: int, value: object) -> dict:
    result = copy.deepcopy(case)
    result["rows"][row][column] = value
    return result


@pytest.mark.parametrize(
    "case",
    [
        CASE,
        changed(CASE, 0, 1, 1.9e-4),
        changed(CASE, 0, 1, 3e-6),
        changed(CASE, 1, 1, 0.9995),
        SEGMENTATION,
        changed(changed(SEGMENTATION, 0, 0, ROUNDING.format("5.0e-04")), 0, 2, 1.5e-3),
        changed(SEGMENTATION, 1, 1, 0.0),
        changed(SEGMENTATION, 1, 1, 2e-3),
        SMALLER,
        BEYOND_IT,
        changed(SMALLER, 0, 1, 0.05),
        changed(SMALLER, 1, 1, 0.94),
    ],
)
def test_a_run_elsewhere_agrees(case: dict) -> None:
    assert differences(case, read(render([CASE, SMALLER, SEGMENTATION, NEAR_ITS_BAR]))) == []
    assert differences(NEAR_ITS_BAR, read(render([BEYOND_IT]))) == []


@pytest.mark.parametrize(
    "case, said",
    [
        ({**CASE, "case": "Silero"}, "not in the table"),
        ({**CASE, "precision": "4 bits"}, "not in the table"),
        (changed(CASE, 0, 0, "decoder, max difference"), "other measures"),
        ({**CASE, "rows": CASE["rows"][:1]}, "other measures"),
        (changed(CASE, 0, 1, 2.5e-4), "2e-05 in the table"),
        (changed(CASE, 0, 1, 1e-6), "2e-05 in the table"),
        (changed(CASE, 0, 1, float("nan")), "nan"),
        (changed(CASE, 0, 2, 2e-3), "encoder"),
        (changed(CASE, 1, 2, 0.99), "same next token"),
        (changed(CASE, 1, 1, 0.9), "same next token"),
        (changed(SMALLER, 0, 1, 0.3), "encoder"),
        (changed(SMALLER, 1, 1, 0.9), "same next token"),
    ],
)
def test_another_result_is_told(case: dict, said: str) -> None:
    found = differences(case, read(render([CASE, SMALLER])))
    assert len(found) == 1 and said in found[0]


def test_batches_have_to_keep_to_their_bar() -> None:
    for value in (2.5e-3, float("nan")):
        assert len(differences(changed(SEGMENTATION, 1, 1, value), read(render([SEGMENTATION])))) == 1


def test_each_value_has_to_be_within_its_own_bar() -> None:
    """Also where the bars come from different rounding, here and there."""
    assert len(differences(changed(BEYOND_IT, 0, 1, 5e-3), read(render([NEAR_ITS_BAR])))) == 1
    assert len(differences(changed(NEAR_ITS_BAR, 0, 1, 1.1e-3), read(render([BEYOND_IT])))) == 1


def test_a_bar_that_follows_from_another_rounding_is_told() -> None:
    case = changed(SEGMENTATION, 0, 2, 3e-3)  # 1.2e-3 in the table
    assert len(differences(case, read(render([SEGMENTATION])))) == 1


def test_only_what_was_measured_is_replaced() -> None:
    new = changed(CASE, 0, 1, 1e-5)
    assert updated([CASE, SMALLER, SEGMENTATION | {"case": "gone"}], [new], {"Whisper"}) == [new, SMALLER]
