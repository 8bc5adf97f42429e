"""Speakers and known voices: the assignment beside all others, whatever the order in which voices were enrolled."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mlx_speech.voices.matching import DEFAULT, THRESHOLDS, Thresholds, Voices, assign, match, thresholds_of, unit

LIMITS = Thresholds(certain=0.6, doubtful=0.4, margin=0.05)


def best_by_trying(scores: np.ndarray, lowest: float) -> float:
    """The largest sum above `lowest` of any assignment of rows to columns, or to none."""
    rows, columns = scores.shape
    best = 0.0
    for chosen in itertools.product([None, *range(columns)], repeat=rows):
        taken = [column for column in chosen if column is not None]
        if len(set(taken)) < len(taken):
            continue
        pairs = [(row, column) for row, column in enumerate(chosen) if column is not None]
        if all(scores[pair] >= lowest for pair in pairs):
            best = max(best, sum(scores[pair] - lowest for pair in pairs))
    return best


@pytest.mark.parametrize("seed", range(60))
def test_no_assignment_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-0.2, 1.0, (int(rng.integers(1, 5)), int(rng.integers(1, 5))))
    rows, columns = assign(scores, 0.4)
    assert len(set(rows)) == len(rows) and len(set(columns)) == len(columns)
    assert (scores[rows, columns] >= 0.4).all()
    assert (scores[rows, columns] - 0.4).sum() == pytest.approx(best_by_trying(scores, 0.4))


def voices(**directions: list[float]) -> Voices:
    vectors = np.array(list(directions.values()))
    return Voices.of(list(directions), vectors, [1.0] * len(directions), "family:0")


def test_no_name_is_given_up_for_one_that_does_not_count() -> None:
    """The largest sum of cosines would give A the name Bob, at 0.3, and Ann to B."""
    scores = np.array([[0.9, 0.3], [0.85, 0.1]])
    rows, columns = assign(scores, 0.4)
    assert (rows.tolist(), columns.tolist()) == ([0], [0])


def test_each_name_goes_to_one_speaker() -> None:
    known = voices(Ann=[1.0, 0.0, 0.0], Bob=[0.0, 1.0, 0.0])
    speakers = {
        "SPEAKER_00": [0.9, 0.1, 0.2],
        "SPEAKER_01": [5.0, 0.0, 0.5],  # sounds more like Ann; its length says nothing
        "SPEAKER_02": [0.0, 0.3, 1.0],
        "SPEAKER_03": [0.0, 0.0, 0.0],
    }
    found = match(speakers, known, LIMITS)
    assert {label: (m.name, m.doubtful) for label, m in found.items()} == {
        "SPEAKER_00": ("Ann", True),
        "SPEAKER_01": ("Ann", False),
    }
    assert found["SPEAKER_01"].score == pytest.approx(5.0 / np.hypot(5.0, 0.5))


@pytest.mark.parametrize(
    "cosine, other, expected",
    [
        (0.61, 0.0, False),
        (0.59, 0.0, True),
        (0.41, 0.0, True),
        (0.39, 0.0, None),
        (0.70, 0.64, False),
        (0.70, 0.66, True),  # who of the two it is, nobody can say
    ],
)
def test_what_is_certain_and_what_is_in_doubt(cosine: float, other: float, expected: bool | None) -> None:
    known = voices(Ann=[1.0, 0.0, 0.0], Bob=[0.0, 1.0, 0.0])
    rest = np.sqrt(1 - cosine**2 - other**2)
    found = match({"A": [cosine, other, rest]}, known, LIMITS)
    assert found == {} if expected is None else found["A"].doubtful == expected


def test_the_order_of_enrolment_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    names = [f"name {k % 7}" for k in range(40)]
    vectors = rng.normal(size=(40, 192)).astype(np.float32)
    seconds = rng.uniform(1, 60, 40).tolist()
    first = Voices.of(names, vectors, seconds, "family:0")
    for _ in range(10):
        order = rng.permutation(40)
        again = Voices.of([names[k] for k in order], vectors[order], [seconds[k] for k in order], "family:0")
        assert again.names == first.names and again.vectors.tobytes() == first.vectors.tobytes()


def test_a_name_is_the_mean_direction_of_its_vectors() -> None:
    found = Voices.of(["Ann", "Ann"], np.array([[2.0, 0.0], [0.0, 9.0]]), [3.0, 1.0], "family:0")
    assert found.vectors[0] == pytest.approx(np.array([3.0, 1.0]) / np.sqrt(10))


def test_a_thousand_names() -> None:
    rng = np.random.default_rng(4)
    directions = rng.normal(size=(1000, 192))
    known = Voices.of([f"{k:03d}" for k in range(1000)], directions, [1.0] * 1000, "family:0")
    heard = {str(k): directions[k] + 0.3 * rng.normal(size=192) for k in (999, 0, 500)}
    found = match({label: vector.tolist() for label, vector in heard.items()}, known)
    assert {label: m.name for label, m in found.items() if not m.doubtful} == {"999": "999", "0": "000", "500": "500"}


def test_what_has_no_direction_is_like_nothing() -> None:
    assert (unit(np.array([[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])) == 0).all()
    assert match({"A": [np.nan, 1.0, 0.0]}, voices(Ann=[1.0, 0.0, 0.0])) == {}
    assert match({}, voices(Ann=[1.0])) == {} and match({"A": [1.0]}, Voices.of([], np.zeros((0, 0)), [], "x:0")) == {}


def test_thresholds_are_the_familys() -> None:
    assert thresholds_of("campplus:0123") == THRESHOLDS["campplus"] and thresholds_of("unheard:0") == DEFAULT
    for limits in (*THRESHOLDS.values(), DEFAULT):
        assert 0 < limits.doubtful < limits.certain < 1
