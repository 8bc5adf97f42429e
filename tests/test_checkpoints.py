"""Good checkpoints that look odd: wrapped by training, with one of two tied tensors, without a configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import originals as make
import pytest
import torch
from safetensors.torch import save_file
from test_convert import (
    PYANNET,
    WESPEAKER,
    config,
    hf_config,
    same,
    wav2vec2_hf,
    weights,
    whisper_openai,
    whisper_state,
)
from test_convert import _torchaudio as save_torchaudio

import mlx_speech
from mlx_speech.convert import convert
from mlx_speech.convert.read import open_source
from mlx_speech.errors import ConfigError, CorruptFile, WeightsMismatch

State = dict[str, torch.Tensor]
# what training puts before the names of all tensors, or inside of them
WRAPPED: dict[str, Callable[[str], str]] = {
    "data parallel": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "Lightning": lambda name: f"model.{name}",
    "Lightning, compiled": lambda name: f"model._orig_mod.{name}",
    "compiled Lightning": lambda name: f"_orig_mod.model.{name}",
    "data parallel of compiled Lightning": lambda name: f"module._orig_mod.model.{name}",
    "twice": lambda name: f"module.module.model.model.{name}",
    "Fabric": lambda name: f"_forward_module.model.{name}",
    "sharded": lambda name: f"_fsdp_wrapped_module.{name}",
    "a part compiled": lambda name: name.replace("encoder.", "encoder._orig_mod."),
    "layers compiled": lambda name: name.replace("layers.0.", "layers.0._orig_mod.").replace("s.1.", "s.1._orig_mod."),
    "layers checkpointed": lambda name: name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
    "layers sharded": lambda name: name.replace("layers.1.", "layers.1._fsdp_wrapped_module."),
}


def openai_state() -> State:
    return {name: tensor.detach().clone() for name, tensor in whisper_openai().state_dict().items()}


def renamed(state: State, wrapped: str) -> State:
    return {WRAPPED[wrapped](name): tensor for name, tensor in state.items()}


def as_lightning(state: State, path: Path) -> Path:
    """With what Lightning keeps beside the weights."""
    moments = {"state": {0: {"exp_avg": torch.zeros(3), "step": 1}}, "param_groups": [{"lr": 1e-4}]}
    content = {"epoch": 3, "global_step": 900, "pytorch-lightning_version": "2.6.6", "state_dict": state}
    content |= {"optimizer_states": [moments], "lr_schedulers": [], "loops": {}, "hyper_parameters": {"lr": 1e-4}}
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Whisper from OpenAI's own format."""
    folder = tmp_path_factory.mktemp("reference")
    convert(str(make.save_openai(whisper_openai(), folder / "narrow.pt")), folder / "out")
    return folder / "out"


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_whisper_of_openai(wrapped: str, reference: Path, tmp_path: Path) -> None:
    dims = dict(whisper_openai().dims.__dict__)
    state = renamed(openai_state(), wrapped)
    torch.save({"dims": dims, "model_state_dict": state}, tmp_path / "a.pt")
    torch.save(
        {"dims": dims, "model": state, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}, tmp_path / "b.pt"
    )
    for name in ("a", "b"):
        convert(str(tmp_path / f"{name}.pt"), tmp_path / name)
        assert same(weights(tmp_path / name), weights(reference))
        assert {**config(tmp_path / name), "source": 0} == {**config(reference), "source": 0}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_whisper_of_transformers(wrapped: str, reference: Path, tmp_path: Path) -> None:
    """Its own names begin with model. already, those of all tensors but the output layer's."""
    state = whisper_state()
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"].clone()
    state = renamed(state, wrapped)
    hf_config(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    convert(str(tmp_path), tmp_path / "a")
    (tmp_path / "model.safetensors").unlink()
    as_lightning(state, tmp_path / "epoch=3.ckpt")
    convert(str(tmp_path), tmp_path / "b")
    for name in ("a", "b"):
        assert same(weights(tmp_path / name), weights(reference))
        assert config(tmp_path / name)["alignment_heads"] == config(reference)["alignment_heads"]


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_wav2vec2(wrapped: str, tmp_path: Path) -> None:
    make.save_wav2vec2(wav2vec2_hf("group"), tmp_path)
    convert(str(tmp_path), tmp_path / "expected")
    (tmp_path / "model.safetensors").unlink()
    torch.save(renamed(dict(wav2vec2_hf("group").state_dict()), wrapped), tmp_path / "pytorch_model.bin")
    convert(str(tmp_path), tmp_path / "a")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "expected"))
    (tmp_path / "pytorch_model.bin").unlink()
    bundle = save_torchaudio(tmp_path)
    convert(str(bundle), tmp_path / "torchaudio")
    torch.save(renamed(torch.load(bundle), wrapped), bundle)
    convert(str(bundle), tmp_path / "b")
    assert same(weights(tmp_path / "b"), weights(tmp_path / "torchaudio"))


@pytest.mark.parametrize("wrapped", list(WRAPPED)[:8])
def test_pyannote(wrapped: str, tmp_path: Path) -> None:
    for family, build in (("pyannet", make.pyannet(**PYANNET)), ("wespeaker", make.wespeaker(**WESPEAKER))):
        path = make.save_lightning(build, tmp_path / f"{family}.ckpt")
        convert(str(path), tmp_path / f"{family} expected")
        content = torch.load(path, weights_only=False)
        torch.save({**content, "state_dict": renamed(content["state_dict"], wrapped)}, path)
        convert(str(path), tmp_path / family)
        assert same(weights(tmp_path / family), weights(tmp_path / f"{family} expected"))


def test_names_that_would_be_the_same(tmp_path: Path) -> None:
    state = {**openai_state(), "module.encoder.conv1.weight": torch.zeros(128, 80, 3)}
    torch.save({"dims": dict(whisper_openai().dims.__dict__), "model_state_dict": state}, tmp_path / "a.pt")
    with pytest.raises(CorruptFile, match=r"a\.pt: two tensors are named encoder\.conv1\.weight") as caught:
        convert(str(tmp_path / "a.pt"), tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_what_is_not_known_is_still_refused(tmp_path: Path) -> None:
    """With the name it has in the bare model."""
    state = renamed({**openai_state(), "criterion.weight": torch.zeros(3)}, "Lightning")
    path = tmp_path / "a.ckpt"
    torch.save({"dims": dict(whisper_openai().dims.__dict__), "state_dict": state}, path)
    with pytest.raises(WeightsMismatch, match=r"1 tensors unexpected: criterion\.weight"):
        convert(str(path), tmp_path / "out")


def test_a_dry_run_says_the_names_of_the_file(tmp_path: Path) -> None:
    path = as_lightning(renamed(openai_state(), "data parallel of compiled Lightning"), tmp_path / "a.ckpt")
    with pytest.raises(ConfigError):  # of a width that is not OpenAI's
        convert(str(path), dry_run=True)
    dims = dict(whisper_openai().dims.__dict__)
    torch.save({"dims": dims, "state_dict": renamed(openai_state(), "data parallel")}, path)
    lines = convert(str(path), dry_run=True).lines
    assert "module.encoder.ln_post.bias → encoder.ln_post.bias [128] float32" in lines


def test_our_own_names_are_left_alone(tmp_path: Path, reference: Path) -> None:
    tensors = open_source(reference).tensors
    assert set(tensors) == set(weights(reference))


# --- tied tensors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("saved", ["both", "embedding", "output layer"])
@pytest.mark.parametrize("wrapped", ["", "Lightning", "data parallel"])
def test_either_of_two_tied_tensors(saved: str, wrapped: str, reference: Path, tmp_path: Path) -> None:
    """transformers' output layer is its token embedding; a file that keeps shared memory once has either name."""
    state = whisper_state()
    embedding = state.pop("model.decoder.embed_tokens.weight")
    if saved != "output layer":
        state["model.decoder.embed_tokens.weight"] = embedding
    if saved != "embedding":
        state["proj_out.weight"] = embedding.clone()
    if wrapped:
        state = renamed(state, wrapped)
    hf_config(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    convert(str(tmp_path), tmp_path / "out")
    assert same(weights(tmp_path / "out"), weights(reference))
    assert mlx_speech.load(tmp_path).args.n_vocab == 1000


def test_neither_of_them(tmp_path: Path) -> None:
    state = whisper_state()
    del state["model.decoder.embed_tokens.weight"]
    hf_config(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsMismatch, match=r"1 tensors missing: decoder\.token_embedding\.weight"):
        convert(str(tmp_path), tmp_path / "out")


# --- a state dict alone ----------------------------------------------------------------------------------------------

PUBLISHED = {**make.NARROW, "n_audio_ctx": 60, "n_audio_state": 384, "n_text_state": 384}
PUBLISHED |= {"n_audio_head": 6, "n_text_head": 6, "n_audio_layer": 2, "n_text_layer": 1}


@pytest.mark.parametrize("theirs", ["openai", "transformers"])
def test_sizes_are_read_off_the_weights(theirs: str, tmp_path: Path) -> None:
    """Where a training run saved nothing else; at OpenAI's widths, heads are 64 wide."""
    build: Any = make.whisper_openai if theirs == "openai" else make.whisper_transformers
    as_lightning(renamed(dict(build(PUBLISHED).state_dict()), "Lightning"), tmp_path / "last.ckpt")
    convert(str(tmp_path / "last.ckpt"), tmp_path / "out")
    assert {key: config(tmp_path / "out")[key] for key in PUBLISHED} == PUBLISHED
    torch.save(build(PUBLISHED).state_dict(), tmp_path / "plain.pt")
    convert(str(tmp_path / "plain.pt"), tmp_path / "b")
    assert same(weights(tmp_path / "b"), weights(tmp_path / "out"))


def test_heads_of_another_width_are_not_guessed(tmp_path: Path) -> None:
    torch.save(openai_state(), tmp_path / "a.pt")
    with pytest.raises(ConfigError, match=r"without its sizes \(dims\), and of a width of its own: 128") as caught:
        convert(str(tmp_path / "a.pt"), tmp_path / "out")
    assert "\n" not in str(caught.value)
    torch.save(whisper_state(), tmp_path / "b.pt")
    with pytest.raises(ConfigError, match=r"without its sizes \(config\.json\)"):
        convert(str(tmp_path / "b.pt"), tmp_path / "out")
    (tmp_path / "config.json").write_text(json.dumps({"d_model": 128}))
    (tmp_path / "a.pt").unlink()
    with pytest.raises(ConfigError, match=r"config\.json of this Whisper lacks num_mel_bins"):
        convert(str(tmp_path), tmp_path / "out")
