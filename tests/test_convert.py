"""Conversion from every source format and by every option, through the command line and the function behind it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import ctranslate2_file
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import originals as make
import pytest
import torch
import yaml
from hub_server import WRITER, HubServer, Repo, commit
from mlx.utils import tree_flatten, tree_unflatten
from safetensors.torch import save_file
from test_fold import from_array, random_plda

import mlx_speech
from mlx_speech import checkpoint, models
from mlx_speech.cli import main
from mlx_speech.convert import Report, convert
from mlx_speech.convert.families import whisper as whisper_sources
from mlx_speech.convert.read import Source, open_source
from mlx_speech.errors import CorruptFile, OptionError
from mlx_speech.features import log_mel
from mlx_speech.models.base import BaseModel
from mlx_speech.tensors import read_safetensors

ROOT = Path(__file__).parents[1]
Folder = dict[str, bytes]
PYANNET = {
    "lstm": {"hidden_size": 16, "num_layers": 2},
    "linear": {"hidden_size": 16, "num_layers": 1},
    "duration": 5.0,
}
CAMPPLUS = {"growth_rate": 8, "init_channels": 16, "embedding_size": 32, "centred": False}
WESPEAKER = {"blocks": [1, 1, 1, 1], "channels": 8, "embedding": 32}
DIMS = {**make.NARROW, "n_audio_ctx": 60}  # of audio 1.2 s
OLD_SPELLING = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}

# --- tiny originals in every format ----------------------------------------------------------------------------------


@cache
def whisper_hf() -> Any:
    return make.whisper_transformers(DIMS)


def whisper_state() -> dict[str, torch.Tensor]:
    """Under transformers' names."""
    state = {name: tensor.detach().clone() for name, tensor in whisper_hf().state_dict().items()}
    del state["proj_out.weight"]  # tied
    return state


RENAMED = [("model.", ""), ("layers.", "blocks."), ("self_attn_layer_norm", "attn_ln"),
           ("encoder_attn_layer_norm", "cross_attn_ln"), ("final_layer_norm", "mlp_ln"), ("self_attn", "attn"),
           ("encoder_attn", "cross_attn"), ("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"),
           ("out_proj", "out"), ("fc1", "mlp.0"), ("fc2", "mlp.2"), ("embed_positions.weight", "positional_embedding"),
           ("embed_tokens", "token_embedding"), ("encoder.layer_norm", "encoder.ln_post"),
           ("decoder.layer_norm", "decoder.ln")]  # fmt: skip


@cache
def whisper_openai() -> Any:
    """The same weights in openai-whisper's model, which loads them strictly."""
    from whisper.model import ModelDimensions, Whisper

    state = {}
    for name, tensor in whisper_state().items():
        for theirs, openai in RENAMED:
            name = name.replace(theirs, openai)
        state[name] = tensor
    model = Whisper(ModelDimensions(**DIMS)).eval()
    model.load_state_dict(state)
    return model


def whisper_mlx() -> Any:
    """The same weights in mlx-whisper's model, brought in as its converter does."""
    from mlx_whisper.whisper import ModelDimensions, Whisper

    model = Whisper(ModelDimensions(**DIMS), mx.float32)
    state = {name: tensor.detach().numpy() for name, tensor in whisper_openai().state_dict().items()}
    del state["encoder.positional_embedding"]  # computed
    weights = [
        (n.replace("mlp.0", "mlp1").replace("mlp.2", "mlp2"), mx.array(a.swapaxes(1, 2) if a.ndim == 3 else a))
        for n, a in state.items()
    ]
    model.update(tree_unflatten(weights))
    model.set_alignment_heads(np.array([[0, 1], [1, 0]]))
    mx.eval(model.parameters())
    return model


def hf_config(folder: Path) -> None:
    whisper_hf().config.save_pretrained(folder)


def _openai(folder: Path) -> Path:
    return make.save_openai(whisper_openai(), folder / "narrow.pt")


def _hf_whisper(folder: Path, format: str) -> Path:
    hf_config(folder)
    state = whisper_state()
    if format == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    elif format == "sharded":
        make.save_sharded(state, folder)
    elif format == "bin":
        torch.save(
            {**state, "proj_out.weight": state["model.decoder.embed_tokens.weight"]}, folder / "pytorch_model.bin"
        )
    elif format == "sharded bin":
        names = sorted(state)
        files = {name: f"pytorch_model-0000{1 + k % 2}-of-00002.bin" for k, name in enumerate(names)}
        for file in set(files.values()):
            torch.save({name: state[name] for name in names if files[name] == file}, folder / file)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    else:  # transformers' names in safetensors that MLX wrote, in torch's layout or in MLX's
        turn = format == "mlx layout"
        state = {n: t.transpose(1, 2).contiguous() if turn and t.ndim == 3 else t for n, t in state.items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "mlx"})
    return folder


def _mlx_whisper(folder: Path, file: str, bits: int | None = None) -> Path:
    model, config = whisper_mlx(), {**DIMS, "model_type": "whisper"}
    if bits is not None:
        nn.quantize(model, group_size=64, bits=bits)
        config["quantization"] = {"group_size": 64, "bits": bits}
    weights = dict(tree_flatten(model.parameters()))
    if file.endswith(".npz"):
        mx.savez(str(folder / file), **weights)
    else:
        mx.save_safetensors(str(folder / file), weights)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _mlx_audio(folder: Path, bits: int | None) -> Path:
    """As mlx-audio writes it: mlx-whisper's names and layout, no alignment heads, and transformers' config.json."""
    hf_config(folder)
    model = whisper_mlx()
    if bits is not None:
        nn.quantize(model, group_size=64, bits=bits)
        stated = {"group_size": 64, "bits": bits, "mode": "affine"}
        content = {**config(folder), "quantization": stated, "quantization_config": stated}
        (folder / "config.json").write_text(json.dumps(content))
    arrays = dict(tree_flatten(model.parameters()))
    del arrays["alignment_heads"]
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, metadata={"format": "mlx"})
    return folder


def _ctranslate2(folder: Path, kind: str) -> Path:
    found = ctranslate2_file.variables(whisper_openai().state_dict(), DIMS)
    return ctranslate2_file.save(folder, ctranslate2_file.of_kind(found, kind))


@cache
def wav2vec2_hf(kind: str) -> Any:
    return make.wav2vec2_transformers(kind, **make.W2V_NARROW)


def old_spelling(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for new, old in OLD_SPELLING.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    return state


def _hf_wav2vec2(folder: Path, format: str = "safetensors", kind: str = "group") -> Path:
    make.save_wav2vec2(wav2vec2_hf(kind), folder)
    if format == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(old_spelling(dict(wav2vec2_hf(kind).state_dict())), folder / "pytorch_model.bin")
    return folder


def _torchaudio(folder: Path) -> Path:
    """transformers' names → torchaudio's; the head has the 32 rows of its English bundles."""
    state = {}
    for name, tensor in old_spelling(dict(wav2vec2_hf("group").state_dict())).items():
        name = name.removeprefix("wav2vec2.")
        name = "mask_generator.mask_embedding" if name == "masked_spec_embed" else name.replace("lm_head.", "aux.")
        name = re.sub(r"^encoder\.", "encoder.transformer.", name)
        state[re.sub(r"^feature_projection\.", "encoder.feature_projection.", name)] = tensor
    torch.save(state, folder / "wav2vec2.pth")
    return folder / "wav2vec2.pth"


def package_file(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / name


def _pyannet(folder: Path, **options: Any) -> Path:
    loss = {"loss_func.weight": torch.zeros(3)}
    return make.save_lightning(make.pyannet(**{**PYANNET, **options}), folder / "pytorch_model.bin", extra=loss)


@cache
def wespeaker() -> Any:
    return make.wespeaker(**WESPEAKER)


def _wespeaker(folder: Path, hyper_parameters: bool = False) -> Path:
    return make.save_lightning(wespeaker(), folder / "pytorch_model.bin", hyper_parameters=hyper_parameters)


def _wespeaker_own(folder: Path) -> Path:
    torch.save({**wespeaker().resnet.state_dict(), "projection.weight": torch.zeros(9, 32)}, folder / "avg_model.pt")
    return folder / "avg_model.pt"


@cache
def campplus() -> Any:
    return make.campplus(**CAMPPLUS)


def _campplus(folder: Path) -> Path:
    return make.save_campplus(campplus(), folder / "campplus_cn_common.bin")


def _campplus_in_checkpoint(folder: Path) -> Path:
    torch.save({"state_dict": campplus().state_dict(), "epoch": 3}, folder / "pytorch_model.bin")
    return folder


def _plda(folder: Path) -> Path:
    arrays = random_plda(np.random.default_rng(5), 32, 16)
    transform = ("mean1", "mean2", "lda")
    np.savez(folder / "plda.npz", **{k: v for k, v in arrays.items() if k not in transform})
    np.savez(folder / "xvec_transform.npz", **{k: v for k, v in arrays.items() if k in transform})
    return folder


def _pipeline(folder: Path) -> Path:
    """As community-1 is: everything in sub-folders."""
    params = {"clustering": "VBxClustering", "segmentation": "$model/segmentation", "segmentation_batch_size": 32}
    params |= {"embedding": "$model/embedding", "plda": "$model/plda", "embedding_exclude_overlap": True}
    content = {
        "version": "4.0.0",
        "pipeline": {"name": "pyannote.audio.pipelines.SpeakerDiarization", "params": params},
    }
    content["params"] = {
        "clustering": {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8},
        "segmentation": {"min_duration_off": 0.0},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    for name, build in (("segmentation", _pyannet), ("embedding", _wespeaker), ("plda", _plda)):
        (folder / name).mkdir()
        build(folder / name)
    return folder


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "whisper pt": _openai,
    "whisper safetensors": partial(_hf_whisper, format="safetensors"),
    "whisper sharded": partial(_hf_whisper, format="sharded"),
    "whisper bin": partial(_hf_whisper, format="bin"),
    "whisper sharded bin": partial(_hf_whisper, format="sharded bin"),
    "whisper npz": partial(_mlx_whisper, file="weights.npz"),
    "whisper weights": partial(_mlx_whisper, file="weights.safetensors"),
    "whisper npz 4 bits": partial(_mlx_whisper, file="weights.npz", bits=4),
    "whisper weights 8 bits": partial(_mlx_whisper, file="weights.safetensors", bits=8),
    "whisper mlx layout": partial(_hf_whisper, format="mlx layout"),
    "whisper torch layout": partial(_hf_whisper, format="torch layout"),
    "whisper ctranslate2": partial(_ctranslate2, kind="float32"),
    "wav2vec2 safetensors": _hf_wav2vec2,
    "wav2vec2 layer norm": partial(_hf_wav2vec2, kind="layer"),
    "wav2vec2 bin": partial(_hf_wav2vec2, format="bin"),
    "wav2vec2 torchaudio": _torchaudio,
    "silero": lambda folder: Path(shutil.copy(package_file("silero_vad", "data/silero_vad.jit"), folder)),
    "pyannet": _pyannet,
    "pyannet multilabel": partial(_pyannet, powerset=False),
    "pyannet 2022": lambda folder: package_file("whisperx", "assets/pytorch_model.bin"),
    "wespeaker": _wespeaker,
    "wespeaker hyper-parameters": partial(_wespeaker, hyper_parameters=True),
    "wespeaker own": _wespeaker_own,
    "campplus": _campplus,
    "campplus in a checkpoint": _campplus_in_checkpoint,
    "plda": _plda,
    "plda.npz": lambda folder: _plda(folder) / "plda.npz",
    "xvec_transform.npz": lambda folder: _plda(folder) / "xvec_transform.npz",
    "pipeline": _pipeline,
}
# of a family, one source in the usual format
USUAL = {"whisper": "whisper safetensors", "wav2vec2": "wav2vec2 safetensors", "silero_vad": "silero"}
USUAL |= {"pyannet": "pyannet", "wespeaker": "wespeaker", "campplus": "campplus", "plda": "plda"}
assert set(USUAL) == set(models.FAMILIES)


class Shelf:
    """Tiny originals, and conversions of them, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, Path] = {}

    def __getitem__(self, name: str) -> Path:
        if name not in self.made:
            place = self.folder / "originals" / name.replace(" ", "-")
            place.mkdir(parents=True)
            self.made[name] = BUILDERS[name](place)
        return self.made[name]

    def converted(self, name: str, **options: Any) -> Path:
        key = "-".join([name, *(f"{k}={v}" for k, v in options.items())]).replace(" ", "-")
        folder = self.folder / "converted" / key
        if not folder.exists():
            convert(str(self[name]), folder, **options)
        return folder


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """Runs `mlx_speech convert …` in an empty folder; gives what it printed."""
    monkeypatch.chdir(tmp_path)
    shown, handler = warnings.showwarning, signal.getsignal(signal.SIGTERM)

    def run(*arguments: object, code: int = 0) -> str:
        capsys.readouterr()  # what building an original said
        assert main(["convert", *map(str, arguments)]) == code
        out, err = capsys.readouterr()
        assert code or not err
        return out if not code else err

    yield run
    warnings.showwarning = shown
    signal.signal(signal.SIGTERM, handler)


def contents(folder: Path) -> Folder:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def weights(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a converted folder as they are on disk (bfloat16 as its bits)."""
    return {name: tensor.raw() for name, tensor in read_safetensors(folder / "model.safetensors").items()}


def dtypes(folder: Path) -> dict[str, str]:
    return {name: tensor.dtype for name, tensor in read_safetensors(folder / "model.safetensors").items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], but: tuple[str, ...] = ()) -> bool:
    """Bit for bit."""
    names = set(a) - set(but)
    if names != set(b) - set(but):
        return False
    return all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and a[n].tobytes() == b[n].tobytes() for n in names
    )


def whisper_input() -> tuple[mx.array, mx.array]:
    samples = DIMS["n_audio_ctx"] * 320
    audio = make.babble(4).numpy()
    mel = mx.stack([log_mel(mx.array(part), 80, samples) for part in (audio[:samples], audio[-samples:])])
    return mel, mx.array(np.random.default_rng(3).integers(0, 1000, (2, 20)))


def inputs(family: str) -> tuple[Any, ...]:
    """Something to call a converted model with."""
    rng = np.random.default_rng(4)
    if family == "whisper":
        return whisper_input()
    if family == "plda":
        return (mx.array(rng.normal(size=(3, 32)).astype(np.float32)),)
    if family in ("wespeaker", "campplus"):
        return (mx.array(rng.normal(size=(2, 150, 80)).astype(np.float32)),)
    return (mx.array(np.stack([make.babble(2).numpy(), make.babble(4).numpy()[32000:]])),)


def outputs(model: BaseModel, family: str) -> np.ndarray:
    return np.array(model(*inputs(family)))  # type: ignore[operator]


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-4) -> bool:
    return a.shape == b.shape and bool(np.abs(a - b).max() <= tolerance * max(1.0, float(b.std())))


# --- every format gives the same weights -----------------------------------------------------------------------------

WHISPERS = [name for name in BUILDERS if name.startswith("whisper")]
COMPUTED = ("encoder.positional_embedding",)  # mlx-whisper's files have none


@pytest.mark.parametrize("name", WHISPERS)
def test_whisper(shelf: Shelf, name: str) -> None:
    from mlx_whisper.load_models import load_model

    found = shelf.converted(name)
    mel, tokens = whisper_input()
    named_as_mlx = name in ("whisper npz", "whisper weights", "whisper npz 4 bits", "whisper weights 8 bits")
    theirs = load_model(str(shelf[name]), mx.float32) if named_as_mlx else whisper_mlx()
    expected = np.array(theirs(mel, tokens))
    for model in (checkpoint.load_folder(found), mlx_speech.load(shelf[name])):
        assert close(np.array(model(mel, tokens)), expected)  # type: ignore[operator]
    heads = [[0, 1], [1, 0]] if named_as_mlx else [[1, 0], [1, 1]]
    assert config(found)["alignment_heads"] == heads
    if "bits" in name:
        bits = 4 if "4" in name else 8
        stated = config(found)["quantization"]
        assert stated == config(found)["quantization_config"]
        assert (stated["group_size"], stated["bits"]) == (64, bits)
        original = open_source(shelf[name]).tensors
        assert same(
            {n: original[n].numpy() for n in original if n != "alignment_heads"},
            {n: a for n, a in weights(found).items() if n not in COMPUTED},
        )
        return
    reference = weights(shelf.converted("whisper pt"))
    assert same(weights(found), reference, COMPUTED if named_as_mlx else ())
    assert np.abs(weights(found)[COMPUTED[0]] - reference[COMPUTED[0]]).max() < 1e-4
    assert {k: v for k, v in config(found).items() if k in DIMS} == DIMS


TWINS = {None: "whisper npz", 4: "whisper npz 4 bits", 8: "whisper weights 8 bits"}  # of bits, as mlx-whisper has it


@pytest.mark.parametrize("bits", TWINS)
def test_whisper_of_mlx_audio(shelf: Shelf, bits: int | None, tmp_path: Path) -> None:
    """OpenAI's names, transformers' sizes, and no positions of the encoder."""
    source, out = _mlx_audio(tmp_path / "source", bits), tmp_path / "out"
    assert not set(COMPUTED) & set(read_safetensors(source / "model.safetensors"))
    convert(str(source), out)
    twin = shelf.converted(TWINS[bits])
    assert same(weights(out), weights(twin))
    if bits is None:
        assert same(weights(out), weights(shelf.converted("whisper pt")), COMPUTED)
    assert config(out).get("quantization") == config(twin).get("quantization")
    assert {k: v for k, v in config(out).items() if k in DIMS} == DIMS
    assert config(out)["alignment_heads"] == [[1, 0], [1, 1]]
    expected = outputs(checkpoint.load_folder(twin), "whisper")
    assert np.array_equal(outputs(mlx_speech.load(source), "whisper"), expected)


def test_wav2vec2(shelf: Shelf) -> None:
    reference = weights(shelf.converted("wav2vec2 safetensors"))
    assert same(weights(shelf.converted("wav2vec2 bin")), reference)
    torchaudio = shelf.converted("wav2vec2 torchaudio")
    head = ("lm_head.weight", "lm_head.bias")
    assert same(weights(torchaudio), reference, head)
    for name in head:  # without the three rows that its dictionary left behind
        assert np.array_equal(weights(torchaudio)[name], np.delete(reference[name], [1, 2, 3], axis=0))
    labels = [label for label in make.VOCAB if label not in ("<s>", "</s>", "<unk>")]
    assert config(torchaudio)["vocab"] == labels
    assert json.loads((torchaudio / "vocab.json").read_text()) == {label: k for k, label in enumerate(labels)}


def test_silero(shelf: Shelf) -> None:
    found = shelf.converted("silero")
    assert config(found)["sample_rates"] == [16000, 8000]
    assert {name.partition(".")[0] for name in weights(found)} == {"vad_16k", "vad_8k"}
    original = open_source(shelf["silero"]).tensors
    for ours, theirs in (("vad_16k", "_model"), ("vad_8k", "_model_8k")):
        a, b = weights(found)[f"{ours}.lstm.Wh"][0], original[f"{theirs}.decoder.rnn.weight_hh"].numpy()
        assert np.array_equal(a, b)


def test_pyannet_of_2022(shelf: Shelf) -> None:
    """Callbacks, optimizer and hyper-parameters are in this file as objects of packages that are not needed."""
    found = shelf.converted("pyannet 2022")
    expected = {"num_classes": 3, "powerset_max_classes": None, "duration": 5.0, "num_speakers": 3}
    assert expected.items() <= config(found).items()
    assert config(found)["source"]["repo"] == "pyannote/segmentation" and config(found)["source"]["licence"] == "mit"
    assert outputs(checkpoint.load_folder(found), "pyannet").shape[2] == 3


def test_pyannet(shelf: Shelf) -> None:
    found = config(shelf.converted("pyannet"))
    assert (found["num_classes"], found["powerset_max_classes"], found["duration"]) == (7, 2, 5.0)
    found = config(shelf.converted("pyannet multilabel"))
    assert (found["num_classes"], found["powerset_max_classes"]) == (3, None)


def test_wespeaker(shelf: Shelf) -> None:
    reference = shelf.converted("wespeaker")
    for name in ("wespeaker hyper-parameters", "wespeaker own"):
        assert same(weights(shelf.converted(name)), weights(reference)), name
        assert config(shelf.converted(name))["num_mel_bins"] == 80


def test_campplus(shelf: Shelf) -> None:
    found, reference = shelf.converted("campplus in a checkpoint"), shelf.converted("campplus")
    assert same(weights(found), weights(reference))
    expected = campplus()(torch.from_numpy(np.array(inputs("campplus")[0]))).detach().numpy()
    assert close(outputs(checkpoint.load_folder(found), "campplus"), expected)


def test_plda(shelf: Shelf) -> None:
    reference = weights(shelf.converted("plda"))
    assert {array.dtype.name for array in reference.values()} == {"float64"}
    for name in ("plda.npz", "xvec_transform.npz"):
        assert same(weights(shelf.converted(name)), reference)


def test_a_pipeline_in_one_folder(shelf: Shelf, run: Callable) -> None:
    run("--model", shelf["pipeline"], "--mlx-path", "out")
    out = Path("out")
    assert {path.name for path in out.iterdir()} == {"config.json", "README.md", "segmentation", "embedding", "plda"}
    found = config(out)
    assert found["model_type"] == "diarization_pipeline" and found["clustering"] == "VBxClustering"
    assert found["embedding_exclude_overlap"] is True
    assert found["params"] == yaml.safe_load((shelf["pipeline"] / "config.yaml").read_text())["params"]
    for part, name in (("segmentation", "pyannet"), ("embedding", "wespeaker"), ("plda", "plda")):
        assert same(weights(out / part), weights(shelf.converted(name)))
    model: Any = mlx_speech.load(out)
    assert model.params["clustering"]["threshold"] == 0.6 and model.clustering == "VBxClustering"
    assert np.array_equal(
        outputs(model.embedding, "wespeaker"),
        outputs(checkpoint.load_folder(shelf.converted("wespeaker")), "wespeaker"),
    )
    again: Any = mlx_speech.load(shelf["pipeline"])
    assert np.array_equal(outputs(again.plda, "plda"), outputs(model.plda, "plda"))


def test_a_converted_pipeline_as_a_source(shelf: Shelf, run: Callable) -> None:
    run("--model", shelf["pipeline"], "--mlx-path", "out")
    run("--model", "out", "--dtype", "float16", "--mlx-path", "half")
    assert config(Path("half"))["params"] == config(Path("out"))["params"]
    assert config(Path("half/segmentation"))["dtype"] == "float16"
    assert same(weights(Path("half/plda")), weights(Path("out/plda")))


# --- a hub on this machine -------------------------------------------------------------------------------------------


def hub_environment(url: str, home: Path, token: str = "") -> dict[str, str]:
    foreign = re.compile("HF_|HUGGING|.*_proxy", re.IGNORECASE)
    env = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    env |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*", "HF_TOKEN": token}
    path = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    return env | {"PYTHONPATH": path, "MLX_SPEECH_CACHE": str(home / "converted")}


def python(
    folder: Path, *arguments: object, env: dict[str, str] | None = None, code: int = 0
) -> subprocess.CompletedProcess:
    """A Python of its own in `folder`."""
    env = env or hub_environment("http://127.0.0.1:9", folder / "home")
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, env=env, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == code, done.stderr or done.stdout
    return done


def as_repo(path: Path, licence: str | None = None) -> Repo:
    return Repo(contents(path) if path.is_dir() else {path.name: path.read_bytes()}, licence=licence)


def test_a_pipeline_of_several_repositories(shelf: Shelf, tmp_path: Path) -> None:
    """As 3.1 is: the parts are other repositories, one at a revision."""
    old = commit(contents(shelf["pyannet"].parent))
    params = {"clustering": "AgglomerativeClustering", "segmentation": f"org/seg@{old}", "embedding": "org/emb"}
    text = yaml.safe_dump({"pipeline": {"name": "SpeakerDiarization", "params": params}, "params": {"a": {"b": 1}}})
    repos = {
        "org/pipe": Repo({"config.yaml": text.encode()}, licence="mit"),
        "org/seg": Repo({"pytorch_model.bin": b"a later one"}, branches={"old": contents(shelf["pyannet"].parent)}),
        "org/emb": as_repo(shelf["wespeaker"], licence="cc-by-4.0"),
    }
    with HubServer(repos) as hub:
        env = hub_environment(hub.url, tmp_path / "home")
        python(tmp_path, "-m", "mlx_speech.convert", "--model", "org/pipe", env=env)
    out = tmp_path / "mlx_models" / "pipe"
    assert config(out)["clustering"] == "AgglomerativeClustering" and not (out / "plda").exists()
    assert same(weights(out / "segmentation"), weights(shelf.converted("pyannet")))
    assert same(weights(out / "embedding"), weights(shelf.converted("wespeaker")))
    said = config(out / "segmentation")["source"]
    assert (said["repo"], said["revision"]) == ("org/seg", old)
    said = config(out / "embedding")["source"]
    assert (said["repo"], said["licence"]) == ("org/emb", "cc-by-4.0")
    whole = config(out)["source"]
    assert (whole["repo"], whole["licence"]) == ("org/pipe", "mit")


def snapshot(repo: Path, files: Folder) -> Path:
    """The files as the hub's cache has them: links into the blobs of their repository."""
    folder = repo / "snapshots" / commit(files)
    (repo / "blobs").mkdir(parents=True)
    for name, content in files.items():
        blob = repo / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(blob)
    return folder


def test_links_into_the_blobs_of_a_repository_are_taken_and_no_others(shelf: Shelf, tmp_path: Path) -> None:
    """From the folder of a part, too."""
    files = contents(shelf.converted("pipeline"))
    source = snapshot(tmp_path / "hub" / "models--org--pipe", files)
    convert(str(shelf.converted("pipeline")), tmp_path / "expected", dtype="float16")
    convert(str(source), tmp_path / "out", dtype="float16")
    for part in ("segmentation", "embedding", "plda"):
        assert same(weights(tmp_path / "out" / part), weights(tmp_path / "expected" / part)), part
    shutil.copytree(source.parents[1] / "blobs", tmp_path / "hub" / "models--org--other" / "blobs")
    shutil.copytree(source.parents[1] / "blobs", source.parent / "blobs")
    shutil.copytree(source.parents[1] / "blobs", tmp_path / "blobs")
    link = source / "segmentation" / "config.json"
    blob = link.resolve()
    for place in (tmp_path / "hub" / "models--org--other", source.parent, tmp_path):
        link.unlink()
        link.symlink_to(place / "blobs" / blob.name)
        with pytest.raises(CorruptFile, match=r"segmentation/config\.json: a link that leads out of its folder"):
            convert(str(source), tmp_path / "again")
        assert not (tmp_path / "again").exists()


OPTIONS = {"plain": [], "quantized": ["-q", "--q-bits", "8", "--q-group-size", "32"], "half": ["--dtype", "float16"]}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_card_tells_the_source_and_the_command_that_runs_again(
    shelf: Shelf, tmp_path: Path, options: list[str]
) -> None:
    files = {**contents(shelf["wav2vec2 safetensors"]), "README.md": b"---\nlicense: cc-by-nc-4.0\n---\n# It\n"}
    with HubServer({"org/It": Repo(files)}) as hub:
        env = hub_environment(hub.url, tmp_path / "home")
        python(tmp_path, "-m", "mlx_speech", "convert", "--hf-path", "org/It", *options, env=env)
        name = "It-8bit" if options[:1] == ["-q"] else "It"
        out = tmp_path / "mlx_models" / name
        said, readme = config(out)["source"], (out / "README.md").read_text()
        assert (said["repo"], said["revision"], said["licence"]) == ("org/It", commit(files), "cc-by-nc-4.0")
        assert said["files"] == {"model.safetensors": hashlib.sha256(files["model.safetensors"]).hexdigest()}
        front = yaml.safe_load(readme.split("---\n")[1])
        assert front["library_name"] == "mlx" and front["base_model"] == "org/It"
        assert {"mlx", "wav2vec2"} <= set(front["tags"])
        assert front["pipeline_tag"] == "automatic-speech-recognition" and front["license"] == "cc-by-nc-4.0"
        command = next(line for line in readme.splitlines() if line.startswith("python -m"))
        words = shlex.split(command)
        assert words[0] == "python" and "--revision" in words
        (tmp_path / "again").mkdir()
        python(tmp_path / "again", *words[1:], env=env)
        assert contents(tmp_path / "again" / "mlx_models" / name) == contents(out)


def test_upload(shelf: Shelf, tmp_path: Path) -> None:
    with HubServer() as hub:
        env = hub_environment(hub.url, tmp_path / "home", WRITER)
        arguments = (
            "--model",
            shelf["wav2vec2 safetensors"],
            "--mlx-path",
            "out",
            "--upload-repo",
            "me/out-4bit",
            "-q",
        )
        done = python(tmp_path, "-m", "mlx_speech.convert", *arguments, env=env)
        assert hub.commits == [contents(tmp_path / "out")]
        assert set(hub.commits[0]) >= {"config.json", "model.safetensors", "README.md", "vocab.json"}
        assert f"{hub.url}/me/out-4bit" in done.stdout


# --- short names -----------------------------------------------------------------------------------------------------


def test_a_short_name_is_the_repository_of_the_original(shelf: Shelf, tmp_path: Path) -> None:
    files = contents(shelf["whisper safetensors"])
    with HubServer({"openai/whisper-tiny": Repo(files), "openai/whisper-large-v3-turbo": Repo(files)}) as hub:
        env = hub_environment(hub.url, tmp_path / "home")
        done = python(tmp_path, "-m", "mlx_speech.convert", "--model", "tiny", env=env)
        assert "mlx_models/whisper-tiny" in done.stdout
        out = tmp_path / "mlx_models" / "whisper-tiny"
        assert config(out)["source"]["repo"] == "openai/whisper-tiny"
        assert "--model openai/whisper-tiny --revision" in (out / "README.md").read_text()
        script = "from mlx_speech.convert import convert; print(convert('turbo', revision='main', quantize=True).path)"
        done = python(tmp_path, "-c", script, env=env)
        assert done.stdout == "mlx_models/whisper-large-v3-turbo-4bit\n"
        before = len(hub.log)
        done = python(tmp_path, "-m", "mlx_speech.convert", "--model", "tiny", env=env, code=2)
        assert "exists already" in done.stderr and len(hub.log) == before, "seen before anything is fetched"


@pytest.mark.parametrize(("name", "bits"), [("tiny-q4", 4), ("tiny-4bit", 4), ("large-v3-8bit", 8)])
def test_a_short_name_with_a_suffix_says_which_options_to_use(name: str, bits: int, run: Callable) -> None:
    size = name.rpartition("-")[0]
    with pytest.raises(OptionError, match=rf"{name}.*model='{size}' with quantize=True, q_bits={bits}"):
        convert(name)
    assert run("--model", name, code=2).count("\n") == 1 and not list(Path().iterdir())


def test_what_exists_comes_before_a_short_name(shelf: Shelf, run: Callable) -> None:
    shutil.copytree(shelf["whisper safetensors"], "tiny")
    run("--model", "tiny")
    assert config(Path("mlx_models/tiny"))["source"]["repo"] is None
    shutil.copytree(shelf["whisper safetensors"], "base-q4")
    run("--model", "base-q4")
    assert same(weights(Path("mlx_models/base-q4")), weights(Path("mlx_models/tiny")))


def test_the_name_of_the_model_that_comes_with_the_package(shelf: Shelf, run: Callable) -> None:
    run("--model", "silero_vad")
    assert same(weights(Path("mlx_models/silero_vad")), weights(shelf.converted("silero")))
    assert "--model silero_vad" in Path("mlx_models/silero_vad/README.md").read_text()


# --- no framework is needed ------------------------------------------------------------------------------------------

BLOCK = """
import json, sys
BLOCKED = {"torch", "transformers", "omegaconf", "pyannote", "whisper", "lightning", "pytorch_lightning", "torchaudio",
           "silero_vad", "whisperx", "mlx_whisper"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Block())
"""


def test_no_framework_is_needed_for_any_format(shelf: Shelf, tmp_path: Path) -> None:
    script = """
import mlx_speech
from mlx_speech.cli import main
for name, source in json.loads(sys.argv[1]).items():
    assert main(["convert", "--model", source, "--mlx-path", f"out/{name}"]) == 0, name
    model = mlx_speech.load(f"out/{name}")
    mlx_speech.load(source)
    print(f"loaded {name}: {model.args.__class__.__module__ if hasattr(model, 'args') else 'parts'}")
assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}
"""
    sources = {name: str(shelf[name]) for name in BUILDERS}
    (tmp_path / "out").mkdir()
    done = python(tmp_path, "-c", BLOCK + script, json.dumps(sources))
    assert done.stdout.count("loaded ") == len(BUILDERS)
    for name in ("whisper safetensors", "wav2vec2 layer norm", "pyannet 2022", "wespeaker own", "silero"):
        assert same(weights(tmp_path / "out" / name), weights(shelf.converted(name)))


# --- quantization ----------------------------------------------------------------------------------------------------

BLOCKS = {
    "encoder": (DIMS["n_audio_layer"], ("attn",)),
    "decoder": (DIMS["n_text_layer"], ("attn", "cross_attn")),
}
WHISPER_LAYERS = ["decoder.token_embedding"]
for _side, (_count, _kinds) in BLOCKS.items():
    for _k in range(_count):
        WHISPER_LAYERS += [f"{_side}.blocks.{_k}.mlp{n}" for n in (1, 2)]
        WHISPER_LAYERS += [f"{_side}.blocks.{_k}.{a}.{b}" for a in _kinds for b in ("query", "key", "value", "out")]
WAV2VEC2_LAYERS = [
    f"wav2vec2.encoder.layers.{k}.{name}"
    for k in range(2)
    for name in (
        *(f"attention.{leaf}_proj" for leaf in "qkv"),
        "attention.out_proj",
        "feed_forward.intermediate_dense",
        "feed_forward.output_dense",
    )
]
QUANTIZED = {"whisper": WHISPER_LAYERS, "wav2vec2": WAV2VEC2_LAYERS}
RECIPES = {"mixed_3_6": (3, 6), "mixed_4_6": (4, 6), "mixed_4_8": (4, 8)}
PLAIN: dict[str, dict[str, Any]] = {
    "4 bits": {},
    "8 bits": {"q_bits": 8},
    "3 bits": {"q_bits": 3, "q_group_size": 32},
    "mxfp4": {"q_mode": "mxfp4"},
    "nvfp4": {"q_mode": "nvfp4"},
    "mxfp8": {"q_mode": "mxfp8"},
}
STATED = {
    "4 bits": (64, 4, "affine"),
    "8 bits": (64, 8, "affine"),
    "3 bits": (32, 3, "affine"),
    "mxfp4": (32, 4, "mxfp4"),
    "nvfp4": (16, 4, "nvfp4"),
    "mxfp8": (32, 8, "mxfp8"),
}


def low(family: str, path: str) -> bool:
    """Whether a mixed recipe gives the layer its fewer bits."""
    return (".mlp" if family == "whisper" else ".feed_forward.") in path


def expected_bits(family: str, how: str) -> dict[str, dict[str, Any]]:
    if how in RECIPES:
        few, many = RECIPES[how]
        return {
            p: {"group_size": 64, "bits": few if low(family, p) else many, "mode": "affine"} for p in QUANTIZED[family]
        }
    return {p: dict(zip(("group_size", "bits", "mode"), STATED[how], strict=True)) for p in QUANTIZED[family]}


def quantized(shelf: Shelf, family: str, how: str) -> Path:
    options = {"quant_predicate": how} if how in RECIPES else PLAIN[how]
    return shelf.converted(USUAL[family], quantize=True, **options)


def as_mlx_lm_loads(folder: Path) -> BaseModel:
    """The quantization entry of config.json, read the way mlx_lm reads it."""
    found, module = config(folder), models.module(config(folder)["model_type"])
    arrays = mx.load(str(folder / "model.safetensors"))
    model = module.Model(module.ModelArgs.from_dict(found))
    stated = found["quantization"]

    def predicate(path: str, layer: nn.Module) -> bool | dict[str, Any]:
        if path in stated:
            return stated[path]
        return hasattr(layer, "to_quantized") and f"{path}.scales" in arrays

    keys = ("group_size", "bits", "mode")
    nn.quantize(model, **{key: stated[key] for key in keys}, class_predicate=predicate)
    model.load_weights(list(arrays.items()), strict=True)
    return model.eval()


@pytest.mark.parametrize("how", [*PLAIN, *RECIPES])
@pytest.mark.parametrize("family", QUANTIZED)
def test_quantization(shelf: Shelf, family: str, how: str) -> None:
    folder, plain = quantized(shelf, family, how), shelf.converted(USUAL[family])
    layers, found = expected_bits(family, how), weights(folder)
    assert sorted(n.removesuffix(".scales") for n in found if n.endswith(".scales")) == sorted(QUANTIZED[family])
    leaves = ("weight", "scales", "biases") if how not in ("mxfp4", "nvfp4", "mxfp8") else ("weight", "scales")
    touched = {f"{path}.{leaf}" for path in layers for leaf in leaves}
    untouched = {name: array for name, array in found.items() if name not in touched}
    assert same(untouched, {n: a for n, a in weights(plain).items() if n not in touched})
    assert set(found) == set(untouched) | touched

    stated = config(folder)["quantization"]
    assert stated == config(folder)["quantization_config"]
    keys = ("group_size", "bits", "mode")
    if how in RECIPES:
        assert {p: v for p, v in stated.items() if p not in keys} == layers
        assert {key: stated[key] for key in keys} == {"group_size": 64, "bits": RECIPES[how][0], "mode": "affine"}
    else:
        assert stated == dict(zip(keys, STATED[how], strict=True))

    memory = checkpoint.load_folder(plain)
    nn.quantize(memory, class_predicate=lambda path, _: layers.get(path, False))
    expected = outputs(memory, family)
    assert np.isfinite(expected).all() and not close(expected, outputs(checkpoint.load_folder(plain), family))
    assert np.array_equal(outputs(checkpoint.load_folder(folder, dtype="float32"), family), expected)
    assert np.array_equal(outputs(as_mlx_lm_loads(folder), family), expected)
    assert close(outputs(checkpoint.load_folder(folder), family), expected, 1e-3)  # on the CPU: dequantized


@pytest.mark.parametrize("family", sorted(set(USUAL) - set(QUANTIZED)))
def test_what_is_not_quantized_says_so(shelf: Shelf, family: str, run: Callable) -> None:
    source = shelf[USUAL[family]]
    out = run("--model", source, "-q")
    assert f"{family} models are not quantized" in out
    (folder,) = Path("mlx_models").iterdir()
    assert not re.search(r"\d ?bit", folder.name)
    assert same(weights(folder), weights(shelf.converted(USUAL[family])))
    assert "quantization" not in config(folder) and "quantization_config" not in config(folder)


def test_a_quantized_pipeline(shelf: Shelf, run: Callable) -> None:
    out = run("--model", shelf["pipeline"], "-q")
    assert out.count("not quantized") == 3
    assert same(weights(Path("mlx_models/pipeline/embedding")), weights(shelf.converted("wespeaker")))


NAMES = {
    "": "",
    "-q": "-4bit",
    "-q --q-bits 8": "-8bit",
    "-q --q-mode mxfp8": "-8bit",
    "-q --quant-predicate mixed_4_8": "-mixed_4_8",
    "--dtype bfloat16": "",
}


@pytest.mark.parametrize("options", NAMES)
def test_default_names(shelf: Shelf, options: str, run: Callable) -> None:
    run("--model", shelf["wav2vec2 safetensors"], *options.split())
    run("--model", shelf["wav2vec2 torchaudio"], *options.split())
    suffix = NAMES[options].rstrip("-")
    assert sorted(p.name for p in Path("mlx_models").iterdir()) == sorted(
        [f"wav2vec2-safetensors{suffix}", f"wav2vec2{suffix}"]
    )


def test_names_of_files_with_usual_names(shelf: Shelf, run: Callable) -> None:
    """They take the name of their folder."""
    run("--model", shelf["pyannet"])
    run("--model", shelf["plda.npz"])
    assert sorted(p.name for p in Path("mlx_models").iterdir()) == ["plda.npz", "pyannet"]


def test_a_width_that_the_group_size_does_not_divide(tmp_path: Path) -> None:
    sizes = {**make.W2V_NARROW, "hidden_size": 160, "intermediate_size": 320, "num_hidden_layers": 1}
    source = make.save_wav2vec2(make.wav2vec2_transformers("group", **sizes), tmp_path / "odd")
    with pytest.raises(OptionError, match=r"groups of 64 do not divide the width 160 .*q_group_size=32") as caught:
        convert(str(source), tmp_path / "out", quantize=True)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    convert(str(source), tmp_path / "out", quantize=True, q_group_size=32)
    assert np.isfinite(outputs(checkpoint.load_folder(tmp_path / "out"), "wav2vec2")).all()


# --- our own folder as a source --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", QUANTIZED)
def test_quantizing_a_converted_folder(shelf: Shelf, family: str, tmp_path: Path) -> None:
    convert(str(shelf.converted(USUAL[family])), tmp_path / "out", quantize=True)
    direct = quantized(shelf, family, "4 bits")
    assert same(weights(tmp_path / "out"), weights(direct))
    ours, theirs = (config(folder) for folder in (tmp_path / "out", direct))
    assert ours == theirs  # the origin is still the original
    assert set(contents(tmp_path / "out")) == set(contents(direct))


@pytest.mark.parametrize("how", ["4 bits", "3 bits", "mxfp4", "nvfp4", "mxfp8", "mixed_4_6"])
@pytest.mark.parametrize("family", QUANTIZED)
def test_dequantizing(shelf: Shelf, family: str, how: str, tmp_path: Path) -> None:
    packed = quantized(shelf, family, how)
    convert(str(packed), tmp_path / "out", dequantize=True)
    found, plain = weights(tmp_path / "out"), weights(shelf.converted(USUAL[family]))
    layers = expected_bits(family, how)
    touched = tuple(f"{path}.weight" for path in layers)
    assert same(found, plain, touched)
    for path, chosen in layers.items():
        name = f"{path}.weight"
        groups = [array[name].reshape(-1, chosen["group_size"]) for array in (found, plain)]
        if chosen["mode"] == "affine":
            error, bound = (
                np.abs(groups[0] - groups[1]),
                np.ptp(groups[1], axis=1, keepdims=True) / (2 ** chosen["bits"] - 1),
            )
            assert (error <= bound * 1.01 + 1e-6).all(), path
        else:
            worst = np.linalg.norm(groups[0] - groups[1]) / np.linalg.norm(groups[1])
            assert 0 < worst < (0.05 if chosen["bits"] == 8 else 0.2), path
    assert "quantization" not in config(tmp_path / "out") and "quantization_config" not in config(tmp_path / "out")
    expected = outputs(checkpoint.load_folder(packed), family)
    assert close(outputs(checkpoint.load_folder(tmp_path / "out"), family), expected)


def test_dequantizing_a_repository_of_mlx_community(shelf: Shelf, tmp_path: Path) -> None:
    convert(str(shelf["whisper npz 4 bits"]), tmp_path / "out", dequantize=True)
    assert not any(name.endswith("scales") for name in weights(tmp_path / "out"))
    expected = outputs(checkpoint.load_folder(shelf.converted("whisper npz 4 bits")), "whisper")
    assert close(outputs(checkpoint.load_folder(tmp_path / "out"), "whisper"), expected)


def test_what_is_not_quantized_is_not_dequantized(shelf: Shelf, run: Callable) -> None:
    said = run("--model", shelf["wav2vec2 safetensors"], "-d", code=2)
    assert "nothing here is quantized" in said and said.count("\n") == 1 and not Path("mlx_models").exists()


LAST_LAYER = {"wespeaker": "seg_1", "campplus": "xvector.dense"}  # stays in float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", models.FAMILIES)
def test_dtype(shelf: Shelf, family: str, dtype: str, tmp_path: Path) -> None:
    """From the original and from the converted folder: the same, rounded once."""
    direct, plain = shelf.converted(USUAL[family], dtype=dtype), shelf.converted(USUAL[family])
    convert(str(plain), tmp_path / "out", dtype=dtype)
    assert same(weights(tmp_path / "out"), weights(direct)) and config(tmp_path / "out") == config(direct)
    kept = {"plda": "float64", "silero_vad": "float32"}.get(family, dtype)
    assert config(direct)["dtype"] == kept
    loaded = read_safetensors(direct / "model.safetensors")
    for name, array in weights(plain).items():
        last = LAST_LAYER.get(family)
        chosen = "float32" if last and name.startswith(last) else kept
        assert dtypes(direct)[name] == chosen, name
        exact = mx.array(array).astype(getattr(mx, chosen)) if chosen != "float64" else None
        assert np.array_equal(loaded[name].numpy(), array if exact is None else np.array(exact.astype(mx.float32)))
    convert(str(direct), tmp_path / "back", dtype="float32")
    assert set(dtypes(tmp_path / "back").values()) == {"float64" if family == "plda" else "float32"}


# --- options of the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [*USUAL.values(), "whisper pt", "wav2vec2 torchaudio", "wespeaker own", "whisper npz 4 bits"]
)
def test_a_dry_run_accounts_for_every_tensor(shelf: Shelf, name: str, run: Callable) -> None:
    family = next(f for f, usual in USUAL.items() if usual.startswith(name.split()[0]))
    options = ["-q"] if family in QUANTIZED and "bits" not in name else []
    lines = run("--model", shelf[name], "--dry-run", *options).splitlines()
    assert not list(Path().iterdir())
    assert "nothing written (dry run)" in lines[-1]
    planned = [line.split(" → ") for line in lines[:-1] if " → " in line]
    dropped = {parts[0] for parts in planned if parts[1].startswith("dropped: ") and len(parts[1]) > 12}
    used = [parts for parts in planned if not parts[1].startswith("dropped: ")]
    mentioned = Counter(source for parts in used for source in parts[0].split(" + "))
    del mentioned["(computed)"]
    original = {source for tensor in open_source(shelf[name]).tensors.values() for source in tensor.sources}
    assert set(mentioned) | dropped == original and not set(mentioned) & dropped
    if family not in ("wespeaker", "campplus", "plda"):  # there a norm goes into weight and bias, and psi sorts tr
        assert set(mentioned.values()) == {1}
    targets = {}
    for parts in used:
        found = re.fullmatch(r"(\S+) (\[[\d, ]*\]) (\w+)", parts[1])
        assert found, parts
        assert found[1] not in targets
        targets[found[1]] = (json.loads(found[2]), found[3], parts[2:])
    folder = shelf.converted(name)
    if options:
        for path in QUANTIZED[family]:
            assert targets[f"{path}.weight"][2] == ["4 bits affine, groups of 64"]
    assert {n for n, (_, _, more) in targets.items() if more} == {
        f"{p}.weight" for p in QUANTIZED.get(family, []) if options
    }
    shapes = {n: (list(a.shape), dtypes(folder)[n]) for n, a in weights(folder).items()}
    assert {n: (shape, dtype) for n, (shape, dtype, _) in targets.items()} == shapes


def test_a_dry_run_of_a_pipeline(shelf: Shelf, run: Callable) -> None:
    out = run("--model", shelf["pipeline"], "--dry-run")
    for part in ("segmentation", "embedding", "plda"):
        assert re.search(rf"^{part}: \S.* → \S", out, re.MULTILINE)
    assert not list(Path().iterdir())


VERIFIED = [
    *USUAL.values(),
    "whisper pt",
    "whisper npz",
    "wav2vec2 layer norm",
    "wav2vec2 torchaudio",
    "wespeaker own",
    "pyannet multilabel",
]


@pytest.mark.parametrize("name", VERIFIED)
def test_verify(shelf: Shelf, name: str, run: Callable) -> None:
    out = run("--model", shelf[name], "--mlx-path", "out", "--verify")
    rows = dict(re.findall(r"^\| (.+?) \| ([\d.e+-]+) \| [≤≥] [\d.e+-]+ \|$", out, re.MULTILINE))
    assert "| measure | value | bar |" in out and len(rows) >= 2
    figures = config(Path("out"))["source"]["verified"]
    assert set(figures) == set(rows)
    for measure, value in rows.items():
        assert np.isclose(figures[measure], float(value), rtol=1e-2, atol=1e-12)
    readme = Path("out/README.md").read_text()
    assert "## Parity with the original" in readme
    for measure, value in rows.items():
        assert f"| {measure} | {value} |" in readme
    assert "--verify" in readme
    assert same(weights(Path("out")), weights(shelf.converted(name)))


def test_verify_of_smaller_precisions_states_no_bar(shelf: Shelf, run: Callable) -> None:
    for options in (["-q"], ["--dtype", "float16"]):
        run("--model", shelf["wav2vec2 safetensors"], "--mlx-path", "out", "--verify", "--overwrite", *options)
        assert (
            config(Path("out"))["source"]["verified"] and "| measure | value |\n" in Path("out/README.md").read_text()
        )


def test_verify_of_a_pipeline(shelf: Shelf, run: Callable) -> None:
    out = run("--model", shelf["pipeline"], "--mlx-path", "out", "--verify")
    assert out.count("| measure | value | bar |") == 3
    for part in ("segmentation", "embedding", "plda"):
        assert config(Path("out") / part)["source"]["verified"]


def test_a_model_that_fails_verification_is_not_written(
    shelf: Shelf, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_speech.models import wav2vec2

    monkeypatch.setattr(wav2vec2, "gelu", nn.gelu_fast_approx)  # a wrong activation
    said = run("--model", shelf["wav2vec2 safetensors"], "--verify", code=1)
    assert "differs from its original" in said and said.count("\n") == 1
    assert not [path for path in Path().rglob("*") if path.is_file()]


def test_verify_without_the_originals_says_what_to_install(shelf: Shelf, tmp_path: Path) -> None:
    script = """
from mlx_speech.cli import main
for source in json.loads(sys.argv[1]):
    print(main(["convert", "--model", source, "--verify"]))
"""
    sources = [str(shelf[name]) for name in USUAL.values()]
    done = python(tmp_path, "-c", BLOCK + script, json.dumps(sources))
    assert done.stdout.split() == ["2"] * len(sources)
    said = done.stderr.splitlines()
    assert len(said) == len(sources) and not list(tmp_path.iterdir())
    for line, name in zip(said, USUAL, strict=True):
        assert "pip install 'mlx-speech-toolkit[test]'" in line and "torch" in line, name


def test_verify_of_a_converted_model_says_that_it_needs_the_original(shelf: Shelf, run: Callable) -> None:
    said = run("--model", shelf.converted("plda"), "--mlx-path", "out", "--verify", code=2)
    assert said.count("\n") == 1 and "original" in said and not Path("out").exists()


def test_figures_are_not_handed_on(shelf: Shelf, run: Callable) -> None:
    """What was verified is not what is made of it afterwards."""
    run("--model", shelf["wav2vec2 safetensors"], "--mlx-path", "out", "--verify")
    run("--model", "out", "--mlx-path", "small", "-q")
    assert "verified" in config(Path("out"))["source"] and "verified" not in config(Path("small"))["source"]
    assert "Parity" not in Path("small/README.md").read_text()


def test_overwrite(shelf: Shelf, run: Callable) -> None:
    run("--model", shelf["wav2vec2 safetensors"], "--mlx-path", "out")
    before = contents(Path("out"))
    said = run("--model", shelf["wav2vec2 layer norm"], "--mlx-path", "out", code=2)
    assert "--overwrite" in said and contents(Path("out")) == before
    run("--model", shelf["plda"], "--mlx-path", "out", "--overwrite")
    assert set(contents(Path("out"))) == {"config.json", "model.safetensors", "README.md"}
    assert same(weights(Path("out")), weights(shelf.converted("plda"))) and len(list(Path().iterdir())) == 1


# --- what is written -------------------------------------------------------------------------------------------------

FORMS = [(family, {}) for family in models.FAMILIES] + [(f, {"quantize": True}) for f in QUANTIZED]
FORMS += [(family, {"dtype": "bfloat16"}) for family in ("whisper", "wespeaker")]


@pytest.mark.parametrize(
    ("family", "options"), FORMS, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_loading_gives_what_was_saved(shelf: Shelf, family: str, options: dict[str, Any]) -> None:
    folder = shelf.converted(USUAL[family], **options)
    loaded = checkpoint.load_folder(folder, dtype=options.get("dtype", "float32")).arrays()
    saved = read_safetensors(folder / "model.safetensors")
    assert set(loaded) == set(saved)
    for name, array in loaded.items():
        assert str(array.dtype).rpartition(".")[2] == saved[name].dtype, name
        with mx.stream(mx.cpu):
            bits = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
            assert np.array(bits).tobytes() == saved[name].raw().tobytes(), name


def test_the_file_is_plain_safetensors(shelf: Shelf) -> None:
    """MLX's own reader and safetensors' give the same; names are sorted, metadata says mlx."""
    from safetensors import safe_open

    path = shelf.converted("wav2vec2 safetensors", quantize=True) / "model.safetensors"
    arrays = mx.load(str(path))
    assert mx.load(str(path), return_metadata=True)[1]["format"] == "mlx"
    with safe_open(str(path), "numpy") as file:
        assert file.metadata() == {"format": "mlx"} and set(file.keys()) == set(arrays)
        assert all(np.array_equal(file.get_tensor(name), np.array(array)) for name, array in arrays.items())
    size = int.from_bytes(path.read_bytes()[:8], "little")
    assert size % 8 == 0
    names = list(json.loads(path.read_bytes()[8 : 8 + size]))[1:]
    assert names == sorted(names)


@pytest.mark.parametrize("name", [*USUAL.values(), "pipeline"])
def test_converting_twice_gives_the_same_bytes(shelf: Shelf, name: str, tmp_path: Path) -> None:
    for where in ("a", "b"):
        convert(str(shelf[name]), tmp_path / where / "out", quantize=True)
    found = contents(tmp_path / "a" / "out")
    assert found == contents(tmp_path / "b" / "out")
    for path, content in found.items():
        if path.rpartition("/")[2] == "config.json":
            assert (
                content.decode() == json.dumps(json.loads(content), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            )


@pytest.mark.parametrize("name", [n for n in BUILDERS if n != "pyannet 2022"])
def test_nothing_written_tells_where_it_was_made(shelf: Shelf, name: str) -> None:
    private = {str(shelf.folder), str(shelf.folder.resolve()), str(Path.home()), str(ROOT), str(Path.cwd())}
    for path, content in contents(shelf.converted(name)).items():
        if path.endswith((".json", ".md")):
            found = [text for text in private if text != "/" and text in content.decode()]
            assert not found and "/tmp" not in content.decode(), path


@pytest.mark.parametrize("name", BUILDERS)
def test_every_card_is_sound(shelf: Shelf, name: str) -> None:
    folder = shelf.converted(name)
    readme = (folder / "README.md").read_text()
    front = yaml.safe_load(readme.split("---\n")[1])
    assert front["library_name"] == "mlx" and front["tags"][:2] == ["mlx", "mlx_speech"]
    assert len(front["tags"]) == len(set(front["tags"]))
    found = config(folder)["source"]
    if name == "pipeline":
        return
    files = (
        [path for path in shelf[name].parent.rglob("*") if path.is_file() and path.name in found["files"]]
        if found["files"]
        else []
    )
    for file in files:
        if file.parent in (shelf[name], shelf[name].parent):
            assert hashlib.sha256(file.read_bytes()).hexdigest() == found["files"][file.name]
    assert found["files"] and "python -m mlx_speech.convert --model" in readme
    assert ("license" in front) == bool(found["licence"])


def test_the_licence_of_a_local_source_is_carried_over(shelf: Shelf, tmp_path: Path) -> None:
    source = shutil.copytree(shelf["wespeaker"].parent, tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: cc-by-4.0\ntags: [x]\n---\n# Model\n")
    convert(str(source), tmp_path / "out")
    assert config(tmp_path / "out")["source"]["licence"] == "cc-by-4.0"
    assert "license: cc-by-4.0" in (tmp_path / "out" / "README.md").read_text()
    convert(str(tmp_path / "out"), tmp_path / "again", dtype="float16")
    assert config(tmp_path / "again")["source"]["licence"] == "cc-by-4.0"


def test_the_licence_of_a_local_pipeline_is_carried_over(shelf: Shelf, tmp_path: Path) -> None:
    """To its parts too, but for one that has a card of its own."""
    source = shutil.copytree(shelf["pipeline"], tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    (source / "segmentation" / "README.md").write_text("---\nlicense: mit\n---\n")
    convert(str(source), tmp_path / "out")
    convert(str(tmp_path / "out"), tmp_path / "again", dtype="float16")
    for out in (tmp_path / "out", tmp_path / "again"):
        found = {name: config(out / name)["source"]["licence"] for name in ("", "segmentation", "embedding", "plda")}
        assert found == {"": "cc-by-4.0", "segmentation": "mit", "embedding": "cc-by-4.0", "plda": "cc-by-4.0"}
        for name, licence in found.items():
            assert yaml.safe_load((out / name / "README.md").read_text().split("---\n")[1])["license"] == licence


def test_the_report(shelf: Shelf, tmp_path: Path) -> None:
    report = convert(str(shelf["wav2vec2 safetensors"]), tmp_path / "out", quantize=True, quant_predicate="mixed_4_8")
    assert isinstance(report, Report) and report.path == tmp_path / "out" and report.family == "wav2vec2"
    plain = weights(shelf.converted("wav2vec2 safetensors"))
    assert report.parameters == sum(array.size for array in plain.values())
    assert report.bytes_before == (shelf["wav2vec2 safetensors"] / "model.safetensors").stat().st_size
    assert report.bytes_after == sum(array.nbytes for array in weights(tmp_path / "out").values())
    assert np.isclose(report.bits_per_weight, 8 * report.bytes_after / report.parameters)
    assert f"{report.bits_per_weight:.2f} bits per weight" in str(report)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.family = "x"  # type: ignore[misc]
    again = convert(str(tmp_path / "out"), dry_run=True, dequantize=True)
    assert again.parameters == report.parameters


@pytest.mark.parametrize("how", [*PLAIN, *RECIPES])
@pytest.mark.parametrize("family", QUANTIZED)
def test_a_quantized_source_counts_what_it_stands_for(shelf: Shelf, family: str, how: str) -> None:
    report = convert(str(quantized(shelf, family, how)), dry_run=True)
    assert report.parameters == sum(array.size for array in weights(shelf.converted(USUAL[family])).values())


# --- labels and special tokens ---------------------------------------------------------------------------------------

PIPED = {"|": 4, "E": 5, "T": 6, "A": 7}
SPOKEN: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], tuple[int, str | None]]] = {
    # what: vocab.json, tokenizer_config.json, added_tokens.json → blank, word delimiter
    "usual": ({"<pad>": 0, "<s>": 1, **PIPED}, {"pad_token": "<pad>", "word_delimiter_token": "|"}, {}, (0, "|")),
    "[PAD]": ({"A": 0, "|": 1, "[UNK]": 2, "[PAD]": 3}, {"pad_token": "[PAD]"}, {}, (3, "|")),
    "[PAD], not stated": ({"A": 0, "|": 1, "[UNK]": 2, "[PAD]": 3}, {}, {}, (3, "|")),
    "an object": ({"A": 0, "|": 1, "[PAD]": 2}, {"pad_token": {"content": "[PAD]", "lstrip": False}}, {}, (2, "|")),
    "added": ({"A": 0, "|": 1, "[PAD]": 2}, {"pad_token": "[PAD]"}, {"<s>": 3, "</s>": 4}, (2, "|")),
    "added pad": ({"A": 0, "|": 1}, {"pad_token": "<pad>"}, {"<pad>": 9}, (9, "|")),
    "another delimiter": ({"<pad>": 0, " ": 1, "A": 2}, {"word_delimiter_token": " "}, {}, (0, " ")),
    "no delimiter": ({"<pad>": 0, "a": 1, "b": 2}, {"word_delimiter_token": "|"}, {}, (0, None)),
}


@pytest.mark.parametrize("what", SPOKEN)
def test_labels(shelf: Shelf, what: str, tmp_path: Path) -> None:
    vocab, tokenizer, added, (blank, delimiter) = SPOKEN[what]
    source = shutil.copytree(shelf["wav2vec2 safetensors"], tmp_path / "source")
    shuffled = dict(sorted(vocab.items(), key=lambda item: hash(item[0])))  # the order in the file means nothing
    for name, content in (("vocab", shuffled), ("tokenizer_config", tokenizer), ("added_tokens", added)):
        (source / f"{name}.json").write_text(json.dumps(content))
    convert(str(source), tmp_path / "out")
    found = config(tmp_path / "out")
    assert len(found["vocab"]) == 32
    for label, index in {**added, **vocab}.items():
        assert found["vocab"][index] == label
    assert found["vocab"].count("") == 32 - len(vocab) - len(added)
    assert (found["blank_id"], found["word_delimiter"]) == (blank, delimiter)
    assert json.loads((tmp_path / "out" / "vocab.json").read_text()) == {**vocab, **added}
    model: Any = checkpoint.load_folder(tmp_path / "out")
    assert model.args.vocab == found["vocab"] and model.args.blank_id == blank


@pytest.mark.parametrize("do_normalize", [False, True])
def test_a_processor_as_transformers_5_saves_it(shelf: Shelf, do_normalize: bool, tmp_path: Path) -> None:
    """What the feature extractor says stands in processor_config.json, and has no file of its own."""
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

    source = shutil.copytree(shelf["wav2vec2 safetensors"], tmp_path / "source")
    (source / "preprocessor_config.json").unlink()
    extractor = Wav2Vec2FeatureExtractor(do_normalize=do_normalize)
    Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(source / "vocab.json"))).save_pretrained(source)
    assert (source / "processor_config.json").exists() and not (source / "preprocessor_config.json").exists()
    for given, out in ((source, tmp_path / "out"), (tmp_path / "out", tmp_path / "again")):
        convert(str(given), out)
        assert config(out)["do_normalize"] is do_normalize and config(out)["vocab"] == list(make.VOCAB)
        assert contents(out)["processor_config.json"] == contents(source)["processor_config.json"]


def test_labels_of_mms(tmp_path: Path) -> None:
    """A vocabulary per language, of which --language, the tokenizer's target_lang, or English is taken."""
    model = make.wav2vec2_transformers("layer", **make.W2V_NARROW, adapter_attn_dim=16)
    german = {**dict.fromkeys(["<pad>", "|"], 0), "|": 1, "ä": 2, "ß": 3}
    source = make.save_wav2vec2(model, tmp_path / "mms", do_normalize=True, vocab={"eng": make.VOCAB, "deu": german})
    state = {n: t.clone() for n, t in model.state_dict().items() if "adapter_layer" in n}
    head = {"lm_head.weight": torch.ones(4, 64), "lm_head.bias": torch.arange(4.0)}
    save_file({**{n: t + 1 for n, t in state.items()}, **head}, source / "adapter.deu.safetensors")
    convert(str(source), tmp_path / "eng")
    convert(str(source), tmp_path / "deu", language="deu")
    assert config(tmp_path / "eng")["vocab"] == list(make.VOCAB)
    found = config(tmp_path / "deu")
    assert (found["vocab"], found["vocab_size"], found["blank_id"]) == (["<pad>", "|", "ä", "ß"], 4, 0)
    assert found["do_normalize"] is True
    ours, base = weights(tmp_path / "deu"), weights(tmp_path / "eng")
    assert np.array_equal(ours["lm_head.bias"], [0, 1, 2, 3])
    for name in base:
        changed = "adapter_layer" in name
        if not name.startswith("lm_head"):
            assert np.array_equal(ours[name], base[name] + 1 if changed else base[name]), name
    assert "--language deu" in (tmp_path / "deu" / "README.md").read_text()
    tokenizer = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "target_lang": "xyz"}))
    with pytest.raises(OptionError, match=r"xyz.*language="):
        convert(str(source), tmp_path / "xyz")


def alignment_heads(dims: dict[str, int], folder: Path | None = None, **tensors: np.ndarray) -> list[list[int]]:
    names = ("encoder.conv1.weight", "encoder.positional_embedding", "decoder.positional_embedding")
    found = {name: from_array(np.zeros((2, 2, 3), np.float32), name) for name in names}
    found |= {name: from_array(array, name) for name, array in tensors.items()}
    path = folder / "model.safetensors" if folder else Path(__file__)  # a file that is no published one
    return whisper_sources.recipe(Source(path, "x", found, [path], extra={"dims": dims})).config["alignment_heads"]


def test_published_alignment_heads() -> None:
    """Those in openai-whisper's code, for every size; large-v1 is told from large-v2 by its checksum alone."""
    import base64
    import gzip

    from whisper import _ALIGNMENT_HEADS

    sizes = {"tiny": (384, 6, 4), "base": (512, 8, 6), "small": (768, 12, 12), "medium": (1024, 16, 24)}
    sizes |= {"large-v2": (1280, 20, 32), "large-v3": (1280, 20, 32), "large-v3-turbo": (1280, 20, 4)}
    sizes |= {f"{name}.en": sizes[name] for name in ("tiny", "base", "small", "medium")}
    for name, (width, heads, layers) in sizes.items():
        packed = np.frombuffer(gzip.decompress(base64.b85decode(_ALIGNMENT_HEADS[name])), dtype=bool)
        expected = np.argwhere(packed.reshape(layers, heads)).tolist()
        vocabulary = 51864 if name.endswith(".en") else (51866 if "v3" in name else 51865)
        dims = {**make.TINY, "n_text_state": width, "n_text_head": heads, "n_text_layer": layers, "n_vocab": vocabulary}
        assert alignment_heads(dims) == expected, name
    packed = np.frombuffer(gzip.decompress(base64.b85decode(_ALIGNMENT_HEADS["large-v1"])), dtype=bool)
    stated = [[int(n) for n in pair.split(",")] for pair in whisper_sources.LARGE_V1.split()]
    assert stated == np.argwhere(packed.reshape(32, 20)).tolist()


def test_where_alignment_heads_come_from(tmp_path: Path) -> None:
    upper = [[1, 0], [1, 1]]  # of two layers with two heads
    assert alignment_heads(DIMS) == upper
    assert alignment_heads(DIMS, alignment_heads=np.array([[0, 1], [1, 1]])) == [[0, 1], [1, 1]]
    (tmp_path / "generation_config.json").write_text(json.dumps({"alignment_heads": [[1, 0], [0, 0]]}))
    assert alignment_heads(DIMS, tmp_path) == [[1, 0], [0, 0]]
    for teacher in ([[7, 0], [1, 0]], [[0, 5]], [[1]], [["a", 0]], "1,0", [], [[-1, 0]], {"a": 1}):
        (tmp_path / "generation_config.json").write_text(json.dumps({"alignment_heads": teacher}))
        assert alignment_heads(DIMS, tmp_path) == upper, teacher
    assert alignment_heads(DIMS, tmp_path, alignment_heads=np.array([[0, 0]])) == [[0, 0]]


def test_companions_of_whisper_come_along(shelf: Shelf, tmp_path: Path) -> None:
    source = shutil.copytree(shelf["whisper safetensors"], tmp_path / "source")
    files = {"generation_config.json": b'{"alignment_heads": [[0, 0]]}', "tokenizer.json": b'{"a": "\xc3\xa4"}'}
    for name, content in {**files, "merges.txt": b"a b\n", "training_args.bin": b"x", "notes.txt": b"private"}.items():
        (source / name).write_bytes(content)
    convert(str(source), tmp_path / "out")
    found = contents(tmp_path / "out")
    assert files.items() <= found.items() and found["merges.txt"] == b"a b\n"
    assert set(found) == {*files, "merges.txt", "config.json", "model.safetensors", "README.md"}
    assert config(tmp_path / "out")["alignment_heads"] == [[0, 0]]
    convert(str(tmp_path / "out"), tmp_path / "again", dtype="float16")
    assert files.items() <= contents(tmp_path / "again").items()
