"""The diarization that comes with the package is what tests/make_speakers.py makes of the originals."""

from __future__ import annotations

import json
from pathlib import Path

import make_speakers
import pytest
import real_weights as fetched
from conftest import real_weights

from mlx_speech import package_data
from mlx_speech.tensors import read_safetensors

FOLDER = package_data.BUNDLED[package_data.SPEAKERS]
SIZE_LIMIT = 21_000_000  # bytes
PARTS = ("segmentation", "embedding", "plda")
SOURCES = {"segmentation": "segmentation-3.0/pytorch_model.bin", "embedding": "campplus/campplus_cn_en_common.pt"}


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder made again."""
    for source in SOURCES.values():
        real_weights(source)
    folder = tmp_path_factory.mktemp("made")
    make_speakers.make(folder, verify=False)
    return folder


@pytest.mark.parametrize("part", PARTS)
def test_the_weights_are_those_of_the_originals(part: str, made: Path) -> None:
    again, kept = (read_safetensors(folder / part / "model.safetensors") for folder in (made, FOLDER))
    assert list(again) == list(kept) and len(kept) >= 3
    for name, tensor in kept.items():
        assert (again[name].shape, again[name].dtype) == (tensor.shape, tensor.dtype), name
    assert (made / part / "model.safetensors").read_bytes() == (FOLDER / part / "model.safetensors").read_bytes()


def test_so_are_the_configurations(made: Path) -> None:
    """But for what was measured when they were made."""
    assert config(made) == config(FOLDER)
    for part in PARTS:
        kept = config(FOLDER / part)
        assert ("verified" in kept["source"]) == (part in SOURCES)
        kept["source"].pop("verified", None)
        assert config(made / part) == kept


def test_no_other_file_is_there(made: Path) -> None:
    again, kept = (
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        for folder in (made, FOLDER)
    )
    assert kept - again == {"README.md", "NOTICE"} and again < kept


@pytest.mark.parametrize("part", SOURCES)
def test_the_sources_are_the_files_that_are_fetched(part: str) -> None:
    digests = {one.name: one.sha256 for one in fetched.FILES}
    name = SOURCES[part]
    assert config(FOLDER / part)["source"]["files"] == {Path(name).name: digests[name]}


def test_licences_stand_beside_them() -> None:
    notice = (FOLDER / "NOTICE").read_text(encoding="utf-8")
    for said in ("MIT", "CNRS", "Apache License", "3D-Speaker", "segmentation-3.0"):
        assert said in notice
    for part in SOURCES:
        source = config(FOLDER / part)["source"]
        assert source["licence"] in ("mit", "apache-2.0") and source["attribution"]


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= SIZE_LIMIT
