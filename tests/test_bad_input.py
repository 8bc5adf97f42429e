"""Bad input through the command line: one line that names it and says what to do, exit code 2, nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import HubServer, Repo, closed_port
from mlx.utils import tree_flatten
from originals import BASE, VOCAB
from test_pytorch_files import OUTSIDE, archive, dumps, rebuilt

import mlx_speech
from mlx_speech import models, tensors
from mlx_speech.cli import main
from mlx_speech.errors import MLXSpeechError
from mlx_speech.models.whisper import sinusoids

ROOT = Path(__file__).parents[1]
LINUX, NOBODY = sys.platform == "linux", 65534
LONGEST = 2000  # characters of a message: what a hostile file holds is of no help
Arrays = dict[str, np.ndarray]


class Slow(BaseException):
    """It took too long. No `except` of the product catches it."""


def listing(folder: Path) -> dict[str, int]:
    """Everything below `folder`, with the time of its last change, of folders nothing but that they are there."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns * (not path.is_dir()) for path in found}


@contextlib.contextmanager
def guarded(seconds: float = 8) -> Iterator[None]:
    """At most so long, and (on Linux) at most 1 GB more than now."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGTERM)}
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)

    def stop(*_: object) -> None:
        raise Slow

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    if LINUX:
        used = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (used + (1 << 30), hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Cli:
    """Runs `main` in a folder of its own, and looks at what it says and leaves."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture) -> None:
        self.home, self.capsys = home, capsys

    def wrong(self, *arguments: object, says: tuple[object, ...] = (), may_work: bool = False, wanted: int = 2) -> str:
        """What is not as it should be when these arguments are refused; "" if all is well."""
        before = listing(self.home)
        try:
            with guarded():
                code = main([str(argument) for argument in arguments])
        except (Exception, Slow) as error:  # whatever a user would see as a traceback
            self.capsys.readouterr()
            return f"{type(error).__name__}: {error}"[:300]
        out, err = self.capsys.readouterr()
        if code == 0:
            shutil.rmtree(self.home / "mlx_models", ignore_errors=True)
            return "" if may_work else "it worked"
        return complaint(code, out, err, says, wanted) or difference(before, listing(self.home))

    def refuses(
        self, *arguments: object, says: tuple[object, ...] = (), command: str = "convert --model", code: int = 2
    ) -> None:
        assert not self.wrong(*command.split(), *arguments, says=says, wanted=code)

    def converts(self, model: object, *options: object) -> str:
        code = main(["convert", "--model", *map(str, (model, *options))])
        out, err = self.capsys.readouterr()
        assert (code, err) == (0, "")
        return out


def complaint(code: int, out: str, err: str, says: tuple[object, ...], wanted: int = 2) -> str:
    lines = err.splitlines()
    if code != wanted or len(lines) != 1 or not lines[0].startswith("mlx_speech: ") or out or len(err) > LONGEST:
        return f"exit code {code}, {len(lines)} lines, {len(err)} characters: {err[:300]}"
    return "".join(f"{word} is not in: {err}" for word in map(str, says) if word not in err)


def difference(before: dict[str, int], after: dict[str, int]) -> str:
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return f"left behind or changed: {changed}" if changed else ""


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_SPEECH_CACHE", str(tmp_path / "cache"))
    return Cli(tmp_path, capsys)


def spawn(folder: Path, *arguments: object, limit: str = "true", **env: str) -> subprocess.Popen:
    """`python -m` with these arguments in a process of its own, under a limit of the shell's."""
    kept = {k: v for k, v in os.environ.items() if not re.match("HF_|HUGGING|.*_proxy", k, re.IGNORECASE)}
    kept |= {"PYTHONPATH": str(ROOT), "MLX_SPEECH_CACHE": str(folder / "cache"), **env}
    command = ["sh", "-c", f'{limit}; exec "$@"', "sh", sys.executable, "-m", *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, env=kept, stdout=-1, stderr=-1, text=True)


def refused(process: subprocess.Popen, *says: object, code: int = 2) -> None:
    out, err = process.communicate(timeout=60)
    assert not complaint(process.returncode, out, err, says, code)


# --- small originals -------------------------------------------------------------------------------------------------

DIMS = {"n_mels": 80, "n_audio_ctx": 20, "n_audio_state": 64, "n_audio_head": 2, "n_audio_layer": 1}
DIMS |= {"n_vocab": 50, "n_text_ctx": 10, "n_text_state": 64, "n_text_head": 2, "n_text_layer": 1}
W2V = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
W2V |= {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}
SPECIFICATIONS = {"classes": ["a", "b", "c"], "duration": 2.0, "powerset_max_classes": 2, "warm_up": (0.0, 0.0)}
NARROW = {"head_channels": 2, "init_channels": 4, "growth_rate": 2, "bottleneck_channels": 4, "context_channels": 2}
CONFIGS: dict[str, dict[str, Any]] = {  # of our own models
    "whisper": DIMS,
    "wav2vec2": {"vocab_size": len(VOCAB), **W2V},
    "silero_vad": {"sample_rates": [16000], "hidden_size": 8},
    "pyannet": {"num_classes": 7, "lstm_hidden_size": 8, "lstm_num_layers": 2, "linear_hidden_size": 8},
    "wespeaker": {"num_blocks": [1, 1, 2, 1], "base_channels": 4, "num_mel_bins": 8, "embedding_size": 6},
    "campplus": {"head_blocks": [1, 1], "num_layers": [1, 1, 1], "num_mel_bins": 8, "embedding_size": 6, **NARROW},
    "plda": {"embedding_size": 6, "lda_size": 4},
}
SPELLED = {  # our names → the originals'
    "whisper": [(r"mlp1", "mlp.0"), (r"mlp2", "mlp.2")],
    "silero_vad": [("vad_16k.stft.weight", "_model.stft.forward_basis_buffer"), (r"_model.lstm", "_model.decoder.rnn"),
                   (r"vad_16k.encoder.(\d)", r"_model.encoder.\1.reparam_conv"),
                   ("vad_16k.head", "_model.decoder.decoder.2")],
    "pyannet": [(r"sincnet.(conv|norm)(\d)", r"sincnet.\g<1>1d.\2"), ("wav_norm", "wav_norm1d")],
}  # fmt: skip
FAMILIES = list(CONFIGS)


def original(family: str) -> Arrays:
    """Random weights by the names and in the layout that the originals have."""
    module, result = models.module(family), {}
    for name, array in tree_flatten(module.Model(module.ModelArgs.from_dict(CONFIGS[family])).parameters()):
        path, _, leaf = name.rpartition(".")
        value = np.array(array)
        if leaf in ("Wx", "Wh") or "lstm" in path:
            result |= _lstm(family, path, leaf, value)
            continue
        if value.ndim == 4 or (value.ndim == 3 and leaf == "weight"):
            value = np.ascontiguousarray(np.moveaxis(value, -1, 1))
        for ours, theirs in SPELLED.get(family, []):
            name = re.sub(ours, theirs, name)
        result[name] = value
    if family == "whisper":
        result["encoder.positional_embedding"] = sinusoids(DIMS["n_audio_ctx"], DIMS["n_audio_state"])
    elif family == "wav2vec2":
        v, path = result.pop("wav2vec2.encoder.pos_conv_embed.conv.weight"), "wav2vec2.encoder.pos_conv_embed.conv"
        result |= {f"{path}.weight_g": np.ones((1, 1, v.shape[2]), np.float32), f"{path}.weight_v": v}
    elif family == "pyannet":
        del result["sincnet.conv1d.0.weight"]
        bank = {"low_hz_": (40, 1), "band_hz_": (40, 1), "window_": (125,), "n_": (1, 125)}
        result |= {f"sincnet.conv1d.0.filterbank.{k}": np.ones(shape, np.float32) for k, shape in bank.items()}
    elif family == "wespeaker":
        return _with_norms(result)
    elif family == "campplus":
        return _with_norms_of_campplus(result)
    return result


def _lstm(family: str, path: str, leaf: str, value: np.ndarray) -> Arrays:
    leaves = {"Wx": ["weight_ih"], "Wh": ["weight_hh"], "bias": ["bias_ih", "bias_hh"]}[leaf]
    if family == "silero_vad":
        return {f"_model.decoder.rnn.{k}": value[0] for k in leaves}
    return {f"lstm.{k}_l{path[-1]}{s}": value[i] for k in leaves for i, s in enumerate(("", "_reverse"))}


def _with_norms(folded: Arrays) -> Arrays:
    result = {}
    for name, value in folded.items():
        path, _, leaf = name.rpartition(".")
        short = ".0" * path.endswith("shortcut")
        if "seg_1" in name or leaf == "weight":
            result[f"resnet.{path}{short}.{leaf}"] = value
        if "seg_1" not in name and leaf == "weight":
            norm = f"{path}.1" if short else re.sub(r"conv(\d)$", r"bn\1", path)
            leaves = ("weight", "bias", "running_mean", "running_var")
            result |= {f"resnet.{norm}.{k}": np.ones(len(value), np.float32) for k in leaves}
            result[f"resnet.{norm}.num_batches_tracked"] = np.array(1)
    return result


def _with_norms_of_campplus(folded: Arrays) -> Arrays:
    result: Arrays = {}
    for name, value in folded.items():
        path, _, leaf = name.rpartition(".")
        value = value[..., None] if value.ndim == 2 else value
        if "cam_layer" in path:
            result[name] = value
        elif leaf == "weight":
            kernel, norm = _kernel_and_norm(path)
            if kernel is not None:
                result[f"{kernel}.weight"] = value
            if norm is not None:
                learned = () if path.endswith("dense") else ("weight", "bias")
                leaves = (*learned, "running_mean", "running_var")
                result |= {f"{norm}.{k}": np.ones(len(value), np.float32) for k in leaves}
                result[f"{norm}.num_batches_tracked"] = np.array(1)
    return result


def _kernel_and_norm(path: str) -> tuple[str | None, str | None]:
    """What a part of our CAM++ is made of, by the original's paths; either may be lacking."""
    if "nonlinear" in path:
        return None, f"{path}.batchnorm"
    if path.endswith("shortcut"):
        return f"{path}.0", f"{path}.1"
    if path.startswith("head."):
        return path, re.sub(r"conv(\d)$", r"bn\1", path)
    if path.endswith(".linear1"):
        return path, path.removesuffix("linear1") + "nonlinear2.batchnorm"
    if path.endswith(".linear"):  # behind a block
        return path, None
    return f"{path}.linear", f"{path}.nonlinear.batchnorm"


def as_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def safetensors(path: Path, found: Arrays) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = {name: (array.shape, array.dtype.name) for name, array in found.items()}
    tensors.write_safetensors(path, layout, found.items())
    return path


def raw_safetensors(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def in_folder(folder: Path, family: str, found: Arrays | None = None, **config: Any) -> Path:
    """Whisper or wav2vec2 as safetensors with a config.json."""
    safetensors(folder / "model.safetensors", found or original(family))
    as_json(folder / "config.json", {"model_type": family, **(DIMS if family == "whisper" else W2V), **config})
    as_json(folder / "vocab.json", VOCAB)
    return folder


def save(folder: Path, family: str, found: Arrays | None = None, **extra: Any) -> Path:
    """The weights as the family's originals are saved; what to give as --model. extra : in the checkpoint"""
    folder.mkdir(parents=True, exist_ok=True)
    found = original(family) if found is None else found
    if family == "wav2vec2":
        return in_folder(folder, family, found)
    if family == "plda":
        transform = ("mean1", "mean2", "lda")
        np.savez(folder / "plda.npz", **{k: v for k, v in found.items() if k not in transform})
        np.savez(folder / "xvec_transform.npz", **{k: v for k, v in found.items() if k in transform})
        return folder
    state: dict[str, Any] = {name: torch.from_numpy(array) for name, array in found.items()}
    if family == "whisper":
        state = {"dims": DIMS, "model_state_dict": state, **extra}
    elif family != "silero_vad":
        header = {"specifications": SPECIFICATIONS | extra.pop("specifications", {})}
        state = {"state_dict": state, "hyper_parameters": {}, "pyannote.audio": header, **extra}
    torch.save(state, folder / f"{family}.pt")
    return folder / f"{family}.pt"


@pytest.fixture(scope="module")
def vad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted Silero VAD."""
    folder = tmp_path_factory.mktemp("vad")
    main(["convert", "--model", str(save(folder, "silero_vad")), "--mlx-path", str(folder / "vad")])
    return folder / "vad"


# --- what is no model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_originals_here_are_sound(cli: Cli, family: str) -> None:
    cli.converts(save(cli.home / "source", family), "--mlx-path", "out")
    assert mlx_speech.load("out").args


MISSING = ("/nowhere/x", "missing.pt", "./missing", "../missing", "~nosuchuser/x", "x" * 300 + "/x.pt", "", "a b")


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_path(cli: Cli, name: str) -> None:
    cli.refuses(name, says=(name,))


@pytest.mark.parametrize("what", ["unknown", "gated", "closed"])
def test_the_hub(tmp_path: Path, what: str) -> None:
    repos = {"org/gated": Repo({"config.json": b"{}", "model.safetensors": b"x"}, gated=True)}
    with HubServer(repos) as hub:
        url, repo = closed_port() if what == "closed" else hub.url, "org/gated" if what == "gated" else "org/name"
        env = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        process = spawn(tmp_path, "mlx_speech.convert", "--model", repo, **env)
        refused(process, repo, url if what == "closed" else "hf auth login")
    assert not [name for name in listing(tmp_path) if not name.startswith("hf")]


def test_folders_without_one_clear_checkpoint(cli: Cli) -> None:
    for name, files in {"none": ["a.onnx"], "several": ["a.pt", "b.ckpt"], "half": ["plda.npz"]}.items():
        (cli.home / name).mkdir()
        for file in files:
            (cli.home / name / file).write_bytes(b"x")
    cli.refuses("none", says=("none", "no weights"))
    cli.refuses("several", says=("several", "a.pt", "b.ckpt"))
    cli.refuses("half", says=("half/xvec_transform.npz", "missing"))
    cli.refuses("none/a.onnx", says=("none/a.onnx", ".safetensors"))


@pytest.mark.parametrize("name", ["a.pt", "a.jit", "a.npz", "a.safetensors", "model.safetensors.index.json"])
def test_files_of_something_else(cli: Cli, name: str) -> None:
    for content in (b"", b"x", bytes(4096), b"PK\x03\x04", b"{}", b"\x80\x02.", "voilà".encode("utf-16")):
        (cli.home / name).write_bytes(content)
        cli.refuses(name, says=(name,))


@pytest.mark.parametrize("family", FAMILIES)
def test_truncated_files(cli: Cli, family: str) -> None:
    source = save(cli.home / "source", family)
    for file in [path for path in sorted((cli.home / "source").iterdir()) if path.suffix != ".json"]:
        whole = file.read_bytes()
        for kept in (4, 100, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:kept])
            cli.refuses(source, says=(file.name,))
        file.write_bytes(whole)


def test_damage_that_shows_late(cli: Cli) -> None:
    """The values of a compressed archive are first looked at while the result is being written."""
    path = save(cli.home / "source", "whisper")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(cli.home / "x.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    data = bytearray((cli.home / "x.pt").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (cli.home / "x.pt").write_bytes(data)
    cli.refuses("x.pt", says=("x.pt",))
    cli.refuses("x.pt", "--mlx-path", "new/folder/out", says=("x.pt",))


# --- tensors ---------------------------------------------------------------------------------------------------------

# one to leave out, one to widen along an axis
LACKING = {
    "whisper": ("decoder.ln.bias", "encoder.ln_post.weight", 0),
    "wav2vec2": ("lm_head.bias", "wav2vec2.encoder.layer_norm.weight", 0),
    "silero_vad": ("_model.encoder.3.reparam_conv.bias", "_model.encoder.2.reparam_conv.bias", 0),
    "pyannet": ("linear.0.bias", "sincnet.norm1d.1.weight", 0),
    "wespeaker": ("resnet.seg_1.bias", "resnet.layer1.0.conv2.weight", 1),
    "campplus": ("xvector.block2.tdnnd1.cam_layer.linear1.bias", "xvector.transit1.linear.weight", 1),
    "plda": ("mu", "mean1", 0),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_extra_and_misshaped_tensors_are_all_listed(cli: Cli, family: str) -> None:
    found, (missing, wide, axis) = original(family), LACKING[family]
    del found[missing]
    found[wide] = found[wide].repeat(2, axis)
    source = save(cli.home / "source", family, {**found, "some.thing": np.ones(3, np.float32)})
    said = [name.removeprefix("resnet.").replace("_model.", "vad_16k.") for name in (missing, wide)]
    said = [name.replace(".reparam_conv", "").replace("norm1d.", "norm") for name in said]
    cli.refuses(source, says=("source", *said, "some.thing", "missing"))


def replaced(array: np.ndarray) -> dict[str, np.ndarray | None]:
    return {
        "absent": None,
        "of no dimension": np.array(1, array.dtype),
        "empty": np.zeros((0, *array.shape[1:]), array.dtype),
        "of one axis more": array[None],
        "of whole numbers": array.astype(np.int32),
        "of truth values": array.astype(bool),
    }


ALIKE = re.compile(r"head\.layer2\.|xvector\.(block|transit)[23]")  # CAM++'s are as those with a 1


@pytest.mark.parametrize("family", FAMILIES)
def test_any_tensor_replaced(cli: Cli, family: str) -> None:
    """Refused in one line, unless it is one that is not converted anyway."""
    whole, wrong = original(family), {}
    out = cli.converts(save(cli.home / "source", family), "--dry-run")
    for name in [name for name in whole if f"{name.removeprefix('resnet.')} → dropped" not in out]:
        if ALIKE.match(name):
            continue
        for how, value in replaced(whole[name]).items():
            if family == "plda" and value is not None and value.shape == whole[name].shape:
                continue  # of any type: kept in float64
            if (name, how) == ("encoder.positional_embedding", "absent"):
                continue  # mlx-whisper computes them
            found = {k: v for k, v in {**whole, name: value}.items() if v is not None}
            if said := cli.wrong("convert", "--model", save(cli.home / "source", family, found), says=("source",)):
                wrong[f"{name} {how}"] = said
    assert not wrong


def test_an_unknown_family(cli: Cli) -> None:
    safetensors(cli.home / "model.safetensors", {"bert.layer.0.weight": np.ones(3, np.float32)})
    as_json(cli.home / "config.json", {"architectures": ["BertModel"], "model_type": "bert"})
    cli.refuses(cli.home, says=(cli.home, "BertModel", "bert.layer.0.weight", "whisper"))
    safetensors(cli.home / "x.safetensors", original("whisper") | original("pyannet"))
    cli.refuses("x.safetensors", says=("x.safetensors", "whisper or pyannet"))


GOOD = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
ENTRIES: dict[str, Any] = {
    "negative": {**GOOD, "data_offsets": [-16, 0]},
    "reversed": {**GOOD, "data_offsets": [16, 0]},
    "huge": {**GOOD, "data_offsets": [2**62, 2**62 + 16]},
    "beyond": {**GOOD, "data_offsets": [24, 40]},
    "short": {**GOOD, "data_offsets": [0, 12]},
    "fractions": {**GOOD, "data_offsets": [0.0, 16.0]},
    "offsets of text": {**GOOD, "data_offsets": "ab"},
    "same as another": {**GOOD, "data_offsets": [16, 32]},
    "overlapping": {**GOOD, "data_offsets": [8, 24]},
    "unknown dtype": {**GOOD, "dtype": "F4"},
    "dtype of a list": {**GOOD, "dtype": ["F32"]},
    "other dtype": {**GOOD, "dtype": "F64"},
    "negative shape": {**GOOD, "shape": [-2, -2]},
    "overflowing shape": {**GOOD, "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]},
    "many dimensions": {**GOOD, "shape": [4, *[1] * 100]},
    "very many dimensions": {**GOOD, "shape": [2**62] * 200_000},
    "shape of text": {**GOOD, "shape": "4"},
    "null": None,
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_safetensors_with_a_wrong_entry(cli: Cli, entry: Any) -> None:
    name = "encoder.conv1.weight"
    header = {"decoder.positional_embedding": {**GOOD, "data_offsets": [16, 32]}, name: entry}
    path = raw_safetensors(cli.home / "x.safetensors", json.dumps(header).encode(), bytes(32))
    cli.refuses(path, says=(path, "do not fit their place"))


def test_safetensors_with_a_wrong_header(cli: Cli) -> None:
    long = json.dumps({"x" * 100_000: GOOD}).encode()
    for header in (b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, long):
        cli.refuses(raw_safetensors(cli.home / "x.safetensors", header, bytes(16)), says=("x.safetensors",))
    for length in (0, 1, 2**31, 2**63, 2**64 - 1):
        (cli.home / "x.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
        cli.refuses("x.safetensors", says=("x.safetensors",))


@pytest.mark.parametrize("wrong", OUTSIDE.values(), ids=OUTSIDE)
def test_tensors_outside_their_storage(cli: Cli, wrong: dict) -> None:
    archive(cli.home / "x.pt", dumps({"encoder.conv1.weight": rebuilt(**wrong)}))
    cli.refuses("x.pt", says=("x.pt",))


def test_a_zip_bomb(tmp_path: Path) -> None:
    archive(tmp_path / "x.pt", dumps(rebuilt()), bytes(100 << 20), zipfile.ZIP_DEFLATED)
    begin = time.monotonic()
    refused(spawn(tmp_path, "mlx_speech", "convert", "--model", "x.pt", limit="ulimit -d 300000"), "x.pt", "unpacks")
    assert time.monotonic() - begin < 10 and list(listing(tmp_path)) == ["x.pt"]


# --- files that would have something run -----------------------------------------------------------------------------


class Call:
    """Pickled as the call of a function, or of what another call gives."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.reduced = function, arguments

    def __call__(self) -> None: ...

    def __reduce__(self) -> tuple:
        return self.reduced


ATTACKS: dict[str, Callable[[str], Call]] = {
    "os.system": lambda proof: Call(os.system, f"touch {proof}"),
    "subprocess": lambda proof: Call(subprocess.check_call, ["touch", proof]),
    "eval": lambda proof: Call(eval, f"open({proof!r}, 'w').close()"),
    "chain": lambda proof: Call(Call(getattr, Call(__import__, "os"), "system"), f"touch {proof}"),
    "nested": lambda proof: Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {proof}"))),
}


@pytest.mark.parametrize("which", ATTACKS)
def test_nothing_of_a_pickle_runs(cli: Cli, which: str) -> None:
    proof = cli.home / "proof"
    attack = ATTACKS[which](str(proof))
    pickle.loads(pickle.dumps(attack))
    assert proof.exists()  # the control: pickle itself runs it
    proof.unlink()
    for new in (True, False):
        torch.save({"weight": attack}, cli.home / "x.pt", _use_new_zipfile_serialization=new)
        cli.refuses("x.pt", says=("x.pt",))
    np.savez(cli.home / "x.npz", weight=np.array([attack], dtype=object))
    cli.refuses("x.npz", says=("x.npz", "weight"))
    cli.refuses(save(cli.home / "source", "whisper", dims=attack), says=("whisper.pt",))
    cli.refuses(save(cli.home / "source", "pyannet", specifications={"duration": attack}), says=("pyannet.pt",))
    cli.converts(save(cli.home / "source", "whisper", notes=attack), "--mlx-path", "out")
    cli.converts(save(cli.home / "source", "pyannet", hyper_parameters=attack), "--mlx-path", "pyannet")
    assert not proof.exists()


def pipeline(folder: Path, text: str = "", segmentation: str = "$model/segmentation", params: str = "{}") -> Path:
    """A pyannote pipeline, whose config.yaml ends in `text`."""
    for name in ("segmentation", "embedding"):
        save(folder / name, "pyannet" if name == "segmentation" else "wespeaker")
    lines = [
        "pipeline:",
        "  params:",
        f"    segmentation: {segmentation}",
        "    embedding: embedding",
        f"params: {params}",
    ]
    (folder / "config.yaml").write_text("\n".join([*lines, text]))
    return folder


LAUGHS = "&a0 [x]" + "".join(f"\nl{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12))


def test_nothing_of_yaml_runs(cli: Cli) -> None:
    for tag in ("!!python/object/apply:os.system ['touch proof']", "!!python/name:os.system"):
        cli.refuses(pipeline(cli.home / "source", f"x: {tag}"), says=("config.yaml",))
    assert not (cli.home / "proof").exists()


@pytest.mark.parametrize(
    "entry", ["$model/../../x", "/etc/x", "../x", "a/../../x", r"..\x", "file:/etc/x", "''", "[1]"]
)
def test_a_pipeline_that_points_outside(cli: Cli, entry: str) -> None:
    cli.refuses(pipeline(cli.home / "source", segmentation=entry), says=("config.yaml",))


YAML = (
    "d: 2020-99-99",
    "d: !!int ''",
    "d: !!timestamp x",
    "d: !!bool x",
    "d: !!float x",
    "[",
    "\t",
    "d: " + "[" * 5000,
)


@pytest.mark.parametrize("text", [*YAML, "d:\n" + "- x\n" * 2_000_000], ids=[*YAML[:-1], "deep", "long"])
def test_a_pipeline_that_is_no_yaml(cli: Cli, text: str) -> None:
    cli.refuses(pipeline(cli.home / "source", text), says=("config.yaml",))


PARAMS = {
    "date": "{x: 2020-01-01}",
    "set": "!!set {x}",
    "key": "{[a]: b}",
    "mixed": "{1: a, b: c}",
    "cycle": "&a {x: *a}",
}
PARAMS |= {"bytes": "{x: !!binary aGk=}", "nan": "{x: .nan}", "laughs": "{x: *a11}"}


@pytest.mark.parametrize("params", PARAMS)
def test_a_pipeline_with_odd_parameters(cli: Cli, params: str) -> None:
    source = pipeline(cli.home / "source", params=PARAMS[params])
    text = (source / "config.yaml").read_text()
    (source / "config.yaml").write_text(f"l0: {LAUGHS}\n{text}")
    assert not cli.wrong(
        "convert", "--model", source, says=("config.yaml",), may_work=params not in ("cycle", "laughs")
    )
    (source / "config.yaml").write_text(f"l0: {LAUGHS}\n{text.replace('$model/segmentation', '*a11')}")
    cli.refuses(source, says=("config.yaml",))


@pytest.mark.parametrize(
    "entry", ["../x.safetensors", "/etc/x.safetensors", "a/../../x.bin", "", "..\\x", None, 3, ["x"]]
)
def test_an_index_that_points_outside(cli: Cli, entry: Any) -> None:
    safetensors(cli.home / "x.safetensors", original("whisper"))
    (cli.home / "source").mkdir()
    name = "model.safetensors.index.json"
    as_json(cli.home / "source" / name, {"weight_map": {"encoder.conv1.weight": entry}})
    cli.refuses("source", says=(name,))
    as_json(cli.home / "source" / name, {"weight_map": {"encoder.conv1.weight": name}})  # of itself
    cli.refuses("source", says=(name,))


# --- configurations --------------------------------------------------------------------------------------------------

DEEP: list = []
for _ in range(900):
    DEEP = [DEEP]
NUMBERS = [0, -1, 10**9, 10**400, "12", None, 1.5, float("nan"), [], [[1]], {}, True, DEEP, "x" * 100_000]
LISTS = [
    [],
    [0] * 7,
    [8] * 6,
    [8] * 8,
    [10**9] * 7,
    [10**6] * 7,
    [8.5] * 7,
    ["8"] * 7,
    [[8]] * 7,
    [8] * 10**6,
    8,
    None,
    "8888888",
]
LENGTHS = [-1.0, 10**9, 10**400, float("nan"), float("inf"), "12", None, [], {}, True]  # seconds and the like
ODD: dict[str, list[tuple[str, Any]]] = {
    "whisper": [(key, value) for key in DIMS for value in NUMBERS]
    + [(key, value) for key in ("n_audio_layer", "n_text_layer") for value in (10**6, 2**20, 513)]
    + [(key, value) for key in ("n_audio_head", "n_text_head") for value in (3, 65, 10**6)]
    + [("n_audio_ctx", 2**20), ("n_audio_ctx", 10**6)],
    "wav2vec2": [(key, value) for key in W2V if key != "conv_dim" for value in NUMBERS]
    + [(key, value) for key in ("conv_dim", "conv_kernel", "conv_stride") for value in LISTS]
    + [("layer_norm_eps", value) for value in LENGTHS]
    + [(key, value) for key in ("conv_bias", "do_stable_layer_norm") for value in (1, "false", None, [])]
    + [("feat_extract_norm", value) for value in ("batch", 1, None, [])]
    + [("adapter_attn_dim", value) for value in (0, -1, 10**9, "8", 1.5, [])]
    + [("num_hidden_layers", 10**6), ("num_attention_heads", 5), ("num_conv_pos_embedding_groups", 5)]
    + [("hidden_act", "relu"), ("hidden_act", []), ("add_adapter", True)],
}


@pytest.mark.parametrize("family", ODD)
def test_absurd_configurations(cli: Cli, family: str) -> None:
    wrong = {}
    in_folder(cli.home / "source", family)
    cli.converts("source", "--dry-run")
    for key, value in ODD[family]:
        sound = DIMS if family == "whisper" else W2V
        as_json(cli.home / "source" / "config.json", {"model_type": family, **sound, key: value})
        if said := cli.wrong("convert", "--model", "source", says=("source",)):
            wrong[f"{key}={str(value)[:40]}"] = said
    assert not wrong


def test_absurd_documents_beside_the_weights(cli: Cli) -> None:
    in_folder(cli.home / "source", "wav2vec2")
    vocab = {"<pad>": 0, "a": 1}
    cases: list[tuple[str, Any, bool]] = [
        ("vocab.json", [], False), ("vocab.json", {"a": -1}, False), ("vocab.json", {"a": 10**9}, False),
        ("vocab.json", {"a": "x"}, False), ("vocab.json", {"a": {"b": [1]}}, False),
        ("vocab.json", {"\ud800": 1}, False),
        ("tokenizer_config.json", {"pad_token": ["x"], "target_lang": {}}, True), ("tokenizer_config.json", [], False),
        ("preprocessor_config.json", {"do_normalize": "x"}, True), ("added_tokens.json", {"x": []}, True),
        ("config.json", {"model_type": "wav2vec2", **W2V, "pad_token_id": "x"}, True), ("config.json", [], False),
        ("config.json", {"model_type": ["wav2vec2"], **W2V}, False), ("vocab.json", vocab, True),
    ]  # fmt: skip
    wrong = {}
    for name, content, may_work in cases:
        kept = {path: path.read_bytes() for path in (cli.home / "source").iterdir()}
        as_json(cli.home / "source" / name, content)
        if said := cli.wrong("convert", "--model", "source", says=("source",), may_work=may_work):
            wrong[f"{name} {content}"[:100]] = said
        shutil.rmtree(cli.home / "source")
        (cli.home / "source").mkdir()
        for path, data in kept.items():
            path.write_bytes(data)
    as_json(cli.home / "source" / "vocab.json", {"a": 1})  # without a blank, which the configuration then has to name
    for blank in ("x", [1], 10**9, -1, 1.5):
        as_json(cli.home / "source" / "config.json", {"model_type": "wav2vec2", **W2V, "pad_token_id": blank})
        if said := cli.wrong("convert", "--model", "source", says=("source",)):
            wrong[f"pad_token_id {blank}"] = said
    assert not wrong


def test_a_configuration_of_a_gigabyte(cli: Cli) -> None:
    in_folder(cli.home / "source", "whisper")
    os.truncate(cli.home / "source" / "config.json", 1 << 30)
    cli.refuses("source", says=("config.json",))


CYCLE: dict[str, Any] = {}
CYCLE["sincnet"] = CYCLE
WHOLE = [0, -1, 10**9, "x", None, 1.5, float("nan"), [[1]], 10**5000]
SPECIFIED = {  # of a pyannote checkpoint
    "duration": [0.0, -1.0, 10**9, 10**5000, float("nan"), float("inf"), "x", None, []],
    "classes": [0, [], ["a"] * 100_000, None, "abc"],
    "powerset_max_classes": [0, -1, "2", 1.5, [], 10**5000],
    "warm_up": [["x", "y"], [[1], [2]], [float("nan")] * 2, [-1.0, 0.0], [10**5000, 0], [0.0], [0.0] * 10**5],
}


def test_absurd_checkpoints(cli: Cli) -> None:
    cases: list[tuple[str, dict]] = [("pyannet", {"specifications": {k: v}}) for k in SPECIFIED for v in SPECIFIED[k]]
    cases += [("pyannet", {"specifications": {"classes": ["a"] * 100_000, "powerset_max_classes": 10**9}})]
    cases += [("pyannet", {"hyper_parameters": {"sample_rate": value}}) for value in WHOLE]
    cases += [("pyannet", {"hyper_parameters": {"sincnet": {"stride": value}}}) for value in WHOLE]
    keys = ("sample_rate", "frame_length", "frame_shift", "fbank_centering_span")
    cases += [("wespeaker", {"hyper_parameters": {key: value}}) for key in keys[:1] for value in WHOLE]
    numbers = [0.0, -1.0, 10**9, 10**5000, float("nan"), "x"]
    cases += [("wespeaker", {"hyper_parameters": {key: value}}) for key in keys[1:] for value in numbers]
    cases += [("wespeaker", {"hyper_parameters": {"dither": value}}) for value in (1.0, "x" * 100_000)]
    cases += [("whisper", {"dims": value}) for value in (0, 3, "n_mels", [], None, CYCLE)]
    cases += [("whisper", {"dims": {**DIMS, "n_vocab": 10**5000}}), ("pyannet", {"hyper_parameters": CYCLE})]
    cases += [("pyannet", {"pyannote.audio": value}) for value in (0, None, [], {}, CYCLE)]
    wrong, found = {}, {family: original(family) for family in ("pyannet", "wespeaker", "whisper")}
    for number, (family, extra) in enumerate(cases):
        source = save(cli.home / "source", family, found[family], **extra)
        may_work = extra == {"hyper_parameters": CYCLE}
        if said := cli.wrong("convert", "--model", source, "--dry-run", says=(source,), may_work=may_work):
            keys = [f"{k}.{next(iter(v))}" if isinstance(v, dict) and v else k for k, v in extra.items()]
            wrong[f"{number} {family} {keys}"] = said
    assert not wrong


LAUGH: list = ["x"]
for _ in range(40):
    LAUGH = [LAUGH, LAUGH]
SHARED = [("pyannet", {"hyper_parameters": {"a": LAUGH}}), ("pyannet", {"specifications": {"duration": LAUGH}})]
SHARED += [("whisper", {"dims": {**DIMS, "n_vocab": LAUGH}}), ("whisper", {"dims": LAUGH})]
SHARED += [("wespeaker", {"hyper_parameters": {"dither": LAUGH}})]


@pytest.mark.parametrize("case", SHARED)
def test_a_checkpoint_that_unfolds_without_end(tmp_path: Path, case: tuple[str, dict]) -> None:
    """A list of twice the same list of twice the same list … is short in a pickle."""
    source = save(tmp_path / "source", case[0], **case[1])
    arguments = ("mlx_speech.convert", "--model", source, "--dry-run")
    refused(spawn(tmp_path, *arguments, limit="ulimit -d 1000000; ulimit -t 8"), source)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_model_whose_configuration_was_changed(cli: Cli, family: str) -> None:
    out, wrong = cli.home / "out", {}
    cli.converts(save(cli.home / "source", family), "--mlx-path", out)
    config = json.loads((out / "config.json").read_text())
    optional = {"powerset_max_classes", "fbank_centering_span", "adapter_attn_dim", "warm_up", "word_delimiter"}
    for key, good in config.items():
        number = type(good) in (int, float) and key not in ("blank_id", "dtype")
        values = NUMBERS if type(good) is int else LENGTHS if type(good) is float else [*NUMBERS, *LISTS]
        for value in values:
            if (value is None and key in optional) or (key == "format_version" and value is True):
                continue
            as_json(out / "config.json", {**config, key: value})
            if said := cli.wrong("vad", "--model", out, "none.wav", says=(out,)) if number else loads(out):
                wrong[f"{key}={str(value)[:40]}"] = said
    assert not wrong


def loads(folder: Path) -> str:
    """What is not as it should be when `folder` is loaded: it loads, or is refused by its name; "" if all is well."""
    try:
        with guarded():
            mlx_speech.load(folder)
    except MLXSpeechError as error:
        said = str(error)
        return "" if str(folder) in said and len(said) < LONGEST else f"{len(said)}: {said[:200]}"
    except (Exception, Slow) as error:
        return f"{type(error).__name__}: {error}"[:300]
    return ""


QUANTIZATIONS = [{}, [], "x", 4, {"bits": 4}, {"bits": 7, "group_size": 64}, {"bits": 4, "group_size": 48}, None,
                 {"bits": 4, "group_size": 64, "mode": "x"}, {"bits": 4, "group_size": 64, "mode": ["affine"]},
                 {"bits": 10**9, "group_size": 64}, {"bits": 4, "group_size": 0}, {"bits": 8, "group_size": 64},
                 ]  # fmt: skip


def test_quantization_that_was_changed(cli: Cli) -> None:
    cli.converts(save(cli.home / "source", "whisper"), "-q", "--mlx-path", "out")
    config, wrong = json.loads((cli.home / "out" / "config.json").read_text()), {}
    for entry in QUANTIZATIONS:
        as_json(cli.home / "out" / "config.json", {**config, "quantization": entry, "quantization_config": entry})
        for options in (["-d"], []):
            if said := cli.wrong("convert", "--model", "out", *options, says=("out",)):
                wrong[f"{entry} {options}"] = said
        wrong |= {f"load {entry}": said for said in [loads(cli.home / "out")] if said}
    entry = {"bits": 4, "group_size": 64}  # as mlx-community writes it
    as_json(cli.home / "out" / "config.json", {**DIMS, "quantization": entry})
    if said := cli.wrong("convert", "--model", "out", "--mlx-path", "again", may_work=True):
        wrong["without a mode"] = said
    assert not wrong


# --- options ---------------------------------------------------------------------------------------------------------

OPTIONS = ["-q --q-bits 7", "-q --q-bits 0", "-q --q-group-size 48", "-q --q-group-size 0", "-q --q-group-size 64",
           "-q -d", "--q-bits 4", "--q-bits 0", "--q-group-size 0", "--q-mode mxfp4", "--quant-predicate mixed_3_6",
           "-q --quant-predicate mixed_3_6 --q-mode mxfp4", "-q --quant-predicate mixed_3_6 --q-bits 4",
           "-q --q-mode mxfp4 --q-bits 0", "-q --q-mode mxfp8 --q-bits 4", "-d", "--revision main", "--language ../x",
           "--language eng", "--upload-repo a/b/c", "--mlx-path source", "--mlx-path ~nosuchuser/x"]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_options_that_are_refused(cli: Cli, options: str) -> None:
    source = in_folder(cli.home / "source", "wav2vec2")  # widths of 32 and 48, which no group divides
    words = [word for word in options.split() if word.startswith("-")] if "64" not in options else ["64"]
    words = ["--q-mode"] if "mxfp" in options else ["~nosuchuser/x"] if "~" in options else words
    cli.refuses(source, *options.split(), says=(words[-1],) if options != "--mlx-path source" else ("source", "exists"))


@pytest.mark.parametrize("line", ["--dtype nonsense", "--q-bits x", "--q-mode x", "--quant-predicate x", "--nonsense"])
def test_options_that_are_no_options(cli: Cli, line: str) -> None:
    source, before = in_folder(cli.home / "source", "wav2vec2"), listing(cli.home)
    with pytest.raises(SystemExit) as caught:
        main(["convert", "--model", str(source), *line.split()])
    out, err = cli.capsys.readouterr()
    assert caught.value.code == 2 and not out and line.split()[0] in err.splitlines()[-1]
    assert not difference(before, listing(cli.home))


def test_quantized_twice(cli: Cli) -> None:
    cli.converts(save(cli.home / "source", "whisper"), "-q", "--mlx-path", "out")
    cli.refuses("out", "-q", says=("out", "quantized already"))
    as_json(cli.home / "out" / "config.json", {**DIMS, "quantization": {"bits": 4, "group_size": 64}})
    cli.refuses("out", "-q", says=("out", "quantized already"))


def test_a_target_that_exists(cli: Cli) -> None:
    source = save(cli.home / "source", "silero_vad")
    for name in ("folder", "folder/deep", "empty"):
        (cli.home / name).mkdir()
    (cli.home / "folder" / "precious.txt").write_text("mine")
    (cli.home / "file").write_text("mine")
    (cli.home / "link").symlink_to("folder")
    (cli.home / "dangling").symlink_to("nowhere")
    cli.converts(source, "--mlx-path", "converted")
    for target in ("folder", "file", "link", "dangling", "empty", "converted", ".", "/"):
        cli.refuses(source, "--mlx-path", target, says=(target, "exists"))
        if target != "converted":
            cli.refuses(source, "--mlx-path", target, "--overwrite", says=(target, "not a converted model"))
    cli.converts(source, "--mlx-path", "converted", "--overwrite")


# --- a disk that does not take it ------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, size: int, patch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of `size` bytes; where none can be mounted, writing fails as on a full one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if LINUX and os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(tensors, "_write", full)
    yield folder


def test_a_full_disk(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    source = in_folder(cli.home / "source", "whisper")
    size = sum(path.stat().st_size for path in source.iterdir())
    (source / "tokenizer.json").write_bytes(bytes(1 << 20))  # comes after the weights, which fit
    with small_disk(cli.home / "disk", size + (1 << 19), monkeypatch) as disk:
        cli.refuses(source, "--mlx-path", disk / "out", says=(disk / "out", "No space left"))
        cli.refuses(source, "--mlx-path", disk / "new" / "out", says=(disk / "new" / "out", "No space left"))
    with small_disk(cli.home / "tiny", 1 << 12, monkeypatch) as disk:
        cli.refuses(source, "--mlx-path", disk / "out", says=(disk / "out",))


def test_a_limit_of_file_size(tmp_path: Path) -> None:
    source, out = in_folder(tmp_path / "source", "whisper"), tmp_path / "new" / "out"
    before = listing(tmp_path)
    arguments = ("mlx_speech.convert", "--model", source, "--mlx-path", out)
    refused(spawn(tmp_path, *arguments, limit="ulimit -f 100"), out, "File too large")
    assert not difference(before, listing(tmp_path))


def test_places_that_cannot_be_written(cli: Cli) -> None:
    source = save(cli.home / "source", "silero_vad")
    for target in (source / "out", source / "new" / "out", "/proc/out", "/proc/new/out", "o" * 300):
        cli.refuses(source, "--mlx-path", target, says=(target,))


@contextlib.contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder of somebody who is not root, and being that one."""
    with tempfile.TemporaryDirectory() as name:
        user = os.geteuid()
        if user == 0:
            os.chown(name, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            os.seteuid(user)


def test_places_that_are_not_ours(cli: Cli) -> None:
    with unprivileged() as cli.home:
        source, shut = save(cli.home / "source", "silero_vad"), cli.home / "shut"
        for mode in (0o555, 0o000):
            shut.mkdir()
            save(shut / "source", "wav2vec2")
            shut.chmod(mode)
            try:
                for options in ([], ["--overwrite"]):
                    cli.refuses(source, "--mlx-path", shut / "out", *options, says=(shut / "out",))
                if not mode:
                    cli.refuses(shut, says=(shut,))
                    cli.refuses(shut / "source", says=(shut / "source",))
            finally:
                shut.chmod(0o755)
                shutil.rmtree(shut)
        source.chmod(0)
        cli.refuses(source, "--mlx-path", cli.home / "out", says=(source,))
        in_folder(cli.home / "folder", "wav2vec2")
        for name in ("config.json", "vocab.json", "model.safetensors"):
            (cli.home / "folder" / name).chmod(0)
            cli.refuses(cli.home / "folder", "--mlx-path", cli.home / "out", says=(name,))
            (cli.home / "folder" / name).chmod(0o644)


# --- processes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 MB of zeros in the shape of Whisper base."""
    folder = tmp_path_factory.mktemp("large")
    module, header, at = models.module("whisper"), {}, 0
    for name, array in tree_flatten(module.Model(module.ModelArgs.from_dict(BASE)).parameters()):
        header[name] = {"dtype": "F16", "shape": array.shape, "data_offsets": [at, at := at + 2 * array.size]}
    path = raw_safetensors(folder / "weights.safetensors", json.dumps(header).encode())
    os.truncate(path, path.stat().st_size + at)
    as_json(folder / "config.json", BASE)
    return folder


def while_writing(folder: Path, large: Path, signal_: int) -> subprocess.Popen:
    """A conversion into out, to which the signal is sent as soon as its weights are being written."""
    process = spawn(folder, "mlx_speech", "convert", "--model", large, "--mlx-path", "out")
    while process.poll() is None and not list(folder.glob(".out.partial-*/model.safetensors")):
        time.sleep(0.001)
    process.send_signal(signal_)
    return process


def test_killed_while_writing(cli: Cli, large: Path) -> None:
    process = while_writing(cli.home, large, signal.SIGKILL)
    assert process.communicate(timeout=60) == ("", "") and process.returncode == -signal.SIGKILL
    assert not (cli.home / "out").exists() and len(list(cli.home.iterdir())) == 1
    cli.converts(large, "--mlx-path", "out")
    assert [path.name for path in cli.home.iterdir()] == ["out"]
    assert tensors.read_safetensors(cli.home / "out" / "model.safetensors").keys() > {"decoder.ln.bias"}


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
def test_stopped_while_writing(tmp_path: Path, large: Path, signal_: int) -> None:
    refused(while_writing(tmp_path, large, signal_), "nothing is left behind", code=130)
    assert not list(tmp_path.iterdir())


def test_two_at_once(tmp_path: Path, large: Path) -> None:
    arguments = ("mlx_speech.convert", "--model", large, "--mlx-path", "out")
    both = [spawn(tmp_path, *arguments) for _ in range(2)]
    said = [process.communicate(timeout=60) for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], said
    assert not complaint(2, *said[codes.index(2)], ("out",))
    assert not said[codes.index(0)][1]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    cut = tensors.read_safetensors(tmp_path / "out" / "model.safetensors")
    assert cut.keys() == tensors.read_safetensors(large / "weights.safetensors").keys()


# --- vad -------------------------------------------------------------------------------------------------------------

PAUSES = Path(mlx_speech.__file__).parent / "assets" / "demo" / "pauses.flac"
VAD = ["--threshold 2", "--threshold nan", "--neg-threshold 0.9", "--min-speech-duration-ms -1",
       "--max-speech-duration-s -1", "--min-silence-duration-ms inf", "--speech-pad-ms -1", "--max-duration 0",
       "--max-duration -1", "--max-duration nan"]  # fmt: skip


@pytest.mark.parametrize("options", VAD)
def test_vad_options_out_of_range(cli: Cli, vad: Path, options: str) -> None:
    """They are named as the user wrote them, and found before any recording: this one is not there."""
    flag = options.split()[0]
    cli.refuses("--model", vad, "missing.wav", *options.split(), says=(f"mlx_speech: {flag} is",), command="vad")


def test_vad_of_what_is_no_recording(cli: Cli, vad: Path) -> None:
    (cli.home / "text.wav").write_text("RIFF, it says" * 100)
    (cli.home / "empty.wav").write_bytes(b"")
    for name in ("missing.wav", ".", "text.wav", "empty.wav", "x" * 300, "/dev/null"):
        cli.refuses("--model", vad, name, says=(name,), command="vad", code=1)
    cli.refuses("--model", vad, PAUSES, "--max-duration", 1, says=("raise --max-duration",), command="vad", code=1)


def test_vad_in_a_process_of_its_own(tmp_path: Path) -> None:
    refused(spawn(tmp_path, "mlx_speech", "vad", "missing.wav"), "missing.wav", code=1)
    refused(spawn(tmp_path, "mlx_speech.convert", "--model", "/nowhere"), "/nowhere")
    assert not list(tmp_path.iterdir())


def test_vad_with_a_model_that_is_none(cli: Cli) -> None:
    cli.converts(save(cli.home / "source", "plda"), "--mlx-path", "plda")
    (cli.home / "x.jit").write_bytes(b"x")
    for model in ("plda", "x.jit", "missing.jit", cli.home):
        cli.refuses("--model", model, PAUSES, says=(model,), command="vad")


def test_a_converted_pipeline_that_lost_its_parts(cli: Cli) -> None:
    cli.converts(pipeline(cli.home / "source"), "--mlx-path", "out")
    for name in ("segmentation", "embedding"):
        shutil.rmtree(cli.home / "out" / name)
        assert not loads(cli.home / "out")
        cli.refuses("--model", "out", PAUSES, says=("out", "segmentation"), command="vad")
        cli.refuses("out", says=("out", "segmentation"))


@pytest.mark.parametrize("revision", ["/etc/x", "../../x", "a/../../b", "x y", ""])
def test_a_revision_cannot_name_a_place(cli: Cli, revision: str) -> None:
    cli.refuses("org/name", f"--revision={revision}", says=("org/name",))
