"""Which diarization is taken where nobody names one: the gated one if it is in reach, else that of the package."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from mlx_speech import Pipeline, hub, loading
from mlx_speech.cli import main
from mlx_speech.convert import convert
from mlx_speech.errors import HubError, Notice
from mlx_speech.folders import cache_folder
from mlx_speech.loading import DIARIZATION, Models
from mlx_speech.package_data import DEMO, SPEAKERS


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What the hub's library finds for a token, in a list of one; no copy of any repository."""
    found: list[str | None] = [None]
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: found[0])
    monkeypatch.setattr(hub, "is_cached", lambda repo: False)
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The repositories that were looked for; the hub refuses all of them."""
    names: list[str] = []
    load = loading.load

    def refuse(name: str | Path) -> object:
        names.append(str(name))
        if str(name) == DIARIZATION:
            raise HubError(f"{DIARIZATION}: access to it is restricted")
        return load(name)

    monkeypatch.setattr(loading, "load", refuse)
    return names


def test_without_a_token_the_hub_is_not_asked(token: list[str | None], asked: list[str]) -> None:
    models = Models()
    with pytest.warns(Notice, match="come with the package.*accept its conditions.*hf auth login") as told:
        model = models.diarization()
    assert len(told) == 1
    assert models.names["diarization"] == SPEAKERS == model.folder.name  # type: ignore[union-attr]
    assert asked == [SPEAKERS]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert models.diarization() is model  # told once


def test_a_refusal_is_told_with_its_reason(token: list[str | None], asked: list[str]) -> None:
    token[0] = "hf_something"
    models = Models()
    with pytest.warns(Notice, match="access to it is restricted"):
        models.diarization()
    assert asked == [DIARIZATION, SPEAKERS]
    assert models.names["diarization"] == SPEAKERS


@pytest.mark.parametrize("how", ["token", "hub's cache"])
def test_the_gated_one_is_taken_where_it_can_be_had(
    how: str, token: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "token":
        token[0] = "hf_something"
    else:
        monkeypatch.setattr(hub, "is_cached", lambda repo: repo == DIARIZATION)
    demo = loading.load(DEMO / "diarization")
    monkeypatch.setattr(loading, "load", lambda name: {DIARIZATION: demo}[name])
    models = Models()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert models.diarization() is demo
    assert models.names["diarization"] == DIARIZATION


def test_a_copy_that_was_converted_needs_no_token(token: list[str | None], asked: list[str]) -> None:
    folder = cache_folder() / f"{DIARIZATION.rpartition('/')[2]}-0123"
    convert(str(DEMO / "diarization"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["source"] = {"repo": DIARIZATION}
    (folder / "config.json").write_text(json.dumps(config))
    models = Models()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert models.diarization().folder == folder
    assert asked[0] == DIARIZATION  # it may have changed there


def test_what_is_named_is_what_is_taken(token: list[str | None], asked: list[str]) -> None:
    for name in (SPEAKERS, str(DEMO / "diarization")):
        models = Models(diarize_model=name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            models.diarization()
        assert models.names["diarization"] == name
    with pytest.raises(HubError, match="its conditions are accepted at"):
        Models(diarize_model=DIARIZATION).diarization()


def test_the_result_says_which(token: list[str | None]) -> None:
    with Pipeline(diarize_model="auto") as pipeline, pytest.warns(Notice):
        assert pipeline.diarize(np.zeros(16000, np.float32)).turns == ()
        assert pipeline.models.names["diarization"] == SPEAKERS


def test_the_command_says_which_in_one_line(
    token: list[str | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diarize", str(DEMO / "pauses.flac"), str(DEMO / "conversation.flac")]) == 0
    output, errors = capsys.readouterr()
    assert output.startswith("SPEAKER pauses 1 ") and "SPEAKER conversation 1 " in output
    assert errors.count("come with the package") == 1 and "warning" not in errors
