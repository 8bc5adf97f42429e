"""Shared by all tests: one thread per library, the folders of real data and weights, and what parity tests measured:
it is compared with parity.md, or written there and into the README where `make tables` runs them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

# two workers on two cores: libraries that start a thread per core would fight for them
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYANNOTE_METRICS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from parity_table import differences, put_into_readme, read, render, updated
from real_weights import folder as weights_folder

import mlx_speech

if TYPE_CHECKING:
    from page_server import Fake

mlx_speech.configure()  # OpenBLAS, before anything imports mlx
ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("MLX_SPEECH_TEST_DATA", ROOT.parent / "shared"))
RESULTS = ROOT / ".parity"
WRITING = False  # whether `make tables` runs the tests


def real(name: str) -> Path:
    """A file or folder of the real test data; skips with a reason where it is absent, but fails in CI."""
    path = DATA / name
    if not path.exists():
        absent(f"{name} is not here: set MLX_SPEECH_TEST_DATA to the folder that has it")
    return path


def real_weights(name: str) -> Path:
    """A file or folder of tests/real_weights.py; skips with a reason where it was not fetched, but fails in CI."""
    path = weights_folder() / name
    if not path.exists():
        absent(f"{path} is not here: python tests/real_weights.py fetches it")
    return path


def absent(reason: str) -> NoReturn:
    """Skip a parity test for want of its original; in CI that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; in CI every parity test has to run")
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_SPEECH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What fixtures of a module load is converted once, and not into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_SPEECH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_configure(config: pytest.Config) -> None:
    import torch

    global WRITING
    torch.set_num_threads(1)
    WRITING = config.getoption("--tables")
    if WRITING and not hasattr(config, "workerinput"):
        RESULTS.mkdir(exist_ok=True)
        for old in RESULTS.glob("*.json"):
            old.unlink()


def record(case: str, original: str, precision: str, rows: list) -> None:
    """Compare a case's figures with those of parity.md, or keep them for it. Figures that miss their bar are left to
    the test."""
    measured = {"case": case, "original": original, "precision": precision}
    measured["rows"] = [[row.measure, row.value, row.bar, row.at_least] for row in rows]
    if WRITING:
        (RESULTS / f"{case} {precision}.json".replace("/", "-")).write_text(json.dumps(measured))
        return
    if precision != "float32" or all(row.ok for row in rows):
        said = differences(measured, read((ROOT / "parity.md").read_text(encoding="utf-8")))
        assert not said, "\n".join([*said, "make tables writes what was measured"])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tables", action="store_true", help="write parity.md and the README's table")
    parser.addoption("--shots", metavar="FOLDER", help="where tests of the page leave pictures")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Merge what the workers recorded into parity.md and the README."""
    if hasattr(session.config, "workerinput") or not WRITING:
        return
    from test_parity import CASES
    from test_real_parity import NAMES

    measured = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    names = {case.name for case in CASES} | set(NAMES)
    table = ROOT / "parity.md"
    cases = updated(read(table.read_text(encoding="utf-8")), measured, names)
    table.write_text(render(cases), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(put_into_readme(readme.read_text(encoding="utf-8"), cases), encoding="utf-8")


SLOW = ("real_whisper", "real_pyannet", "Whisper base", "Whisper tiny", "wav2vec2-base")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left alone with them at the end."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in SLOW))


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from browser import chromium

    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def served() -> Iterator[Fake]:
    """The server whose page is tested; another app may take its place here."""
    from page_server import Fake
    from serving import running

    fake = Fake()
    with running(fake.app()) as origin:
        fake.origin = origin
        yield fake


@pytest.fixture
def server(served: Fake) -> Fake:
    """The same without jobs."""
    served.clear()
    return served


@pytest.fixture
def page(browser: Any, server: Fake) -> Iterator[Any]:
    """A page of a desktop's size, which is checked at the end."""
    from browser import watched_page

    with watched_page(browser, server.origin, viewport={"width": 1100, "height": 800}) as made:
        yield made


@pytest.fixture
def shots(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where pictures go: into the folder of `--shots`, or away."""
    folder = Path(request.config.getoption("--shots") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
