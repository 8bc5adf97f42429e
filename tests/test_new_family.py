"""A family from outside the package: its three files and one entry in the registry, and everything works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import originals as make
import pytest
import torch
from newcomer.parity import network

import mlx_speech
from mlx_speech import checkpoint, models
from mlx_speech.convert import convert
from mlx_speech.convert.parity import measures
from mlx_speech.errors import OptionError, UnknownFamily, WeightsMismatch

FAMILY = models.Family(
    "Recognition of tones",
    model="newcomer.model",
    converter="newcomer.converter",
    parity="newcomer.parity",
)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.FAMILIES, "tones", FAMILY)


@pytest.fixture
def original() -> Any:
    torch.manual_seed(1)
    model = network(channels=64, kernel=10, num_tones=5)
    with torch.no_grad():
        make.balance(model.classifier, model(make.babble(4)[None]))
    return model


@pytest.fixture
def source(original: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    torch.save({"state_dict": original.state_dict(), "epoch": 3}, folder / "pytorch_model.bin")
    (folder / "tones.json").write_text(json.dumps(["a", "b", "c", "d", "e"]))
    return folder


def outputs_agree(original: Any, model: Any) -> bool:
    waveform = make.babble(2)[None]
    with torch.no_grad():
        expected = original(waveform).numpy()
    return bool(np.abs(np.array(model(mx.array(waveform.numpy()))) - expected).max() < 1e-5)


def test_a_conversion_gives_what_the_original_gives(
    registered: None, original: Any, source: Path, tmp_path: Path
) -> None:
    report = convert(str(source), tmp_path / "out")
    assert report.family == "tones" and report.parameters == sum(p.numel() for p in original.parameters())
    model = mlx_speech.load(tmp_path / "out")
    assert type(model).__module__ == "newcomer.model" and model.args.num_tones == 5
    assert outputs_agree(original, model)
    config = checkpoint.read_config(tmp_path / "out")
    assert (config["model_type"], config["source"]["original"]) == ("tones", "torch")
    assert json.loads((tmp_path / "out" / "tones.json").read_text()) == ["a", "b", "c", "d", "e"]
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "Recognition of tones, converted to MLX" in readme and "- tones" in readme


def test_an_original_is_loaded_by_way_of_the_cache(
    registered: None, original: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_SPEECH_CACHE", str(tmp_path / "cache"))
    assert outputs_agree(original, mlx_speech.load(source))
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_its_parity_case_is_run(registered: None, original: Any, source: Path, tmp_path: Path) -> None:
    report = convert(str(source), tmp_path / "out", verify=True)
    assert "scores, max difference" in report.tables[""]
    assert checkpoint.read_config(tmp_path / "out")["source"]["verified"]["scores, max difference"] <= 1e-4
    inputs = measures.Inputs(make.babble(10).numpy(), varied=True)
    rows = measures.measure("tones", original, mlx_speech.load(tmp_path / "out"), inputs)
    assert len(rows) == 1 and rows[0].ok


def test_options_hold_for_it(registered: None, original: Any, source: Path, tmp_path: Path) -> None:
    convert(str(source), tmp_path / "q", quantize=True, q_bits=8)
    assert checkpoint.read_config(tmp_path / "q")["quantization"] == {"group_size": 64, "bits": 8, "mode": "affine"}
    assert mlx_speech.load(tmp_path / "q").args.channels == 64
    lines = convert(str(source), dry_run=True, dtype="float16").lines
    assert "classifier.weight → head.weight [5, 64] float16" in lines
    assert "steps → dropped: a counter of training" in lines
    with pytest.raises(OptionError, match="only wav2vec2 models have languages"):
        convert(str(source), tmp_path / "de", language="de")


def test_its_weights_are_checked(registered: None, original: Any, source: Path, tmp_path: Path) -> None:
    state = dict(original.state_dict())
    state["other.weight"] = state.pop("classifier.bias")
    torch.save(state, source / "pytorch_model.bin")
    with pytest.raises(WeightsMismatch, match=r"missing: head\.bias.*unexpected: other\.weight"):
        convert(str(source), tmp_path / "out")


def test_without_its_entry_it_is_unknown(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownFamily, match=r"classifier\.bias"):
        convert(str(source), tmp_path / "out")
