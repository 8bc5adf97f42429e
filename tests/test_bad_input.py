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
from test_torchfile import OUTSIDE, archive, dumps, rebuilt

import mlx_speech
from mlx_speech import checkpoint, models, tensors
from mlx_speech.cli import main
from mlx_speech.convert.whisper import TRANSFORMERS
from mlx_speech.errors import SourceError
from mlx_speech.models.whisper import sinusoids

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
LINUX = sys.platform == "linux"
NOBODY = 65534
LONGEST = 2000  # characters of a message: all of a hostile file's content is no help to anybody
Arrays = dict[str, np.ndarray]


class Slow(BaseException):
    """It took too long. No `except` of the product catches it."""


def listing(folder: Path) -> dict[str, int]:
    """Everything below `folder`, with the time of its last change, of folders nothing but that they are there."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns * (not path.is_dir()) for path in found}


@contextlib.contextmanager
def guarded(seconds: float) -> Iterator[None]:
    """At most so long, and (on Linux) at most 1 GB more than now."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGTERM)}
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)

    def stop(*_: object) -> None:
        raise Slow

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    if LINUX:
        used = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10
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

    def run(self, *arguments: object, seconds: float = 8) -> tuple[int, str, str]:
        with guarded(seconds):
            code = main([str(argument) for argument in arguments])
        return code, *self.capsys.readouterr()

    def wrong(self, *arguments: object, says: tuple[object, ...] = (), code: int = 2) -> str:
        """What is not as it should be when these arguments are refused, "" if everything is."""
        before = listing(self.home)
        try:
            found, out, err = self.run(*arguments)
        except (Exception, Slow, SystemExit) as error:  # whatever a user would see as a traceback
            self.capsys.readouterr()
            return f"{type(error).__name__}: {error}"[:300]
        return complaint(found, out, err, says, code) or difference(before, listing(self.home))

    def refuses(self, *arguments: object, says: tuple[object, ...] = ()) -> None:
        assert not self.wrong(*arguments, says=says)

    def converts(self, model: object, *options: object) -> str:
        code, out, err = self.run("convert", "--model", model, *options)
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


def spawn(folder: Path, *arguments: object, before: str = "", **env: str) -> subprocess.Popen:
    """The real command line in a process of its own; `before` runs first. Its last words tell its largest memory."""
    kept = {k: v for k, v in os.environ.items() if not re.match("HF_|HUGGING|.*_proxy", k, re.IGNORECASE)}
    kept |= {"PYTHONPATH": str(ROOT), "MLX_SPEECH_CACHE": str(folder / "cache"), **env}
    code = f"import sys, resource, runpy\n{before}\nsys.argv[0] = 'x'\nrunpy.run_module('mlx_speech', run_name='__main__')"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, env=kept, stdout=-1, stderr=-1, text=True)


def refused(process: subprocess.Popen, *says: object, code: int = 2) -> None:
    out, err = process.communicate(timeout=60)
    assert not complaint(process.returncode, out, err, says, code)


# --- small originals -------------------------------------------------------------------------------------------------

DIMS = {"n_mels": 80, "n_audio_ctx": 20, "n_audio_state": 64, "n_audio_head": 2, "n_audio_layer": 1}
DIMS |= {"n_vocab": 50, "n_text_ctx": 10, "n_text_state": 64, "n_text_head": 2, "n_text_layer": 1}
W2V = {"model_type": "wav2vec2", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
W2V |= {"intermediate_size": 48, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}
SPECIFICATIONS = {"classes": ["a", "b", "c"], "duration": 2.0, "powerset_max_classes": 2, "warm_up": (0.0, 0.0)}


def arrays(family: str, **config: Any) -> Arrays:
    """Random parameters of our own model, convolutions in torch's layout."""
    module = models.module(family)
    found = tree_flatten(module.Model(module.ModelArgs.from_dict(config)).parameters())
    result = {name: np.array(array) for name, array in found}
    for name, array in result.items():
        if array.ndim == 4 or (array.ndim == 3 and name.endswith("weight")):
            result[name] = np.ascontiguousarray(np.moveaxis(array, -1, 1))
    return result


def whisper() -> Arrays:
    found = {re.sub(r"mlp(\d)", lambda m: f"mlp.{2 * int(m[1]) - 2}", k): v for k, v in arrays("whisper", **DIMS).items()}
    return {**found, "encoder.positional_embedding": sinusoids(DIMS["n_audio_ctx"], DIMS["n_audio_state"])}


def wav2vec2() -> Arrays:
    found = arrays("wav2vec2", vocab_size=len(VOCAB), **W2V)
    v = found.pop("wav2vec2.encoder.pos_conv_embed.conv.weight")
    names = (f"wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original{k}" for k in range(2))
    return {**found, **dict(zip(names, (np.ones((1, 1, v.shape[2]), np.float32), v), strict=True))}


def lstm(found: Arrays, ours: str, theirs: str, sides: list[str]) -> None:
    for name in ("Wx", "Wh", "bias"):
        array = found.pop(f"{ours}.{name}")
        for k, side in enumerate(sides):
            for leaf in {"Wx": ["weight_ih"], "Wh": ["weight_hh"], "bias": ["bias_ih", "bias_hh"]}[name]:
                found[f"{theirs.replace('weight_ih', leaf)}{side}"] = array[k]


def pyannet() -> Arrays:
    found = arrays("pyannet", num_classes=7, lstm_hidden_size=8, lstm_num_layers=2, linear_hidden_size=8)
    for layer in range(2):
        lstm(found, f"lstm.{layer}", f"lstm.weight_ih_l{layer}", ["", "_reverse"])
    del found["sincnet.conv0.weight"]
    pairs = ((r"(conv|norm)(\d)\.", r"\g<1>1d.\2."), (r"wav_norm", "wav_norm1d"))
    for old, new in pairs:
        found = {re.sub(f"sincnet.{old}", f"sincnet.{new}", name): array for name, array in found.items()}
    bank = {"low_hz_": (40, 1), "band_hz_": (40, 1), "window_": (125,), "n_": (1, 125)}
    return found | {f"sincnet.conv1d.0.filterbank.{k}": np.ones(shape, np.float32) for k, shape in bank.items()}


def wespeaker() -> Arrays:
    result: Arrays = {}
    for name, array in arrays("wespeaker", num_blocks=[1, 1, 2, 1], base_channels=4, num_mel_bins=8, embedding_size=6).items():
        path, leaf = name.rsplit(".", 1)
        if "seg_1" in name or leaf == "weight":
            result[f"resnet.{path}{'.0' * path.endswith('shortcut')}.{leaf}"] = array
        if "seg_1" not in name and leaf == "weight":
            norm = re.sub(r"conv(\d)$", r"bn\1", path) + ".1" * path.endswith("shortcut")
            result |= {f"resnet.{norm}.{k}": np.ones(len(array), np.float32) for k in ("weight", "bias", "running_mean", "running_var")}
            result[f"resnet.{norm}.num_batches_tracked"] = np.array(1)
    return result


def silero_vad() -> Arrays:
    found = arrays("silero_vad", sample_rates=[16000], hidden_size=8)
    lstm(found, "vad_16k.lstm", "_model.decoder.rnn.weight_ih", [""])
    pairs = (("vad_16k.stft.weight", "_model.stft.forward_basis_buffer"), ("vad_16k.head", "_model.decoder.decoder.2"))
    for old, new in (*pairs, (r"vad_16k.encoder.(\d)", r"_model.encoder.\1.reparam_conv")):
        found = {re.sub(old, new, name): array for name, array in found.items()}
    return found


FAMILIES: dict[str, Callable[[], Arrays]] = {
    "whisper": whisper,
    "wav2vec2": wav2vec2,
    "silero_vad": silero_vad,
    "pyannet": pyannet,
    "wespeaker": wespeaker,
    "plda": lambda: arrays("plda", embedding_size=6, lda_size=4),
}


def as_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def save(family: str, found: Arrays, folder: Path, **extra: Any) -> Path:
    """The weights as the family's originals are saved; what to give as --model. extra : instead of what is usual"""
    folder.mkdir(exist_ok=True)
    if family == "plda":
        np.savez(folder / "plda.npz", **{k: v for k, v in found.items() if k not in ("mean1", "mean2", "lda")})
        np.savez(folder / "xvec_transform.npz", **{k: v for k, v in found.items() if k in ("mean1", "mean2", "lda")})
        return folder
    if family == "wav2vec2":
        safetensors(folder / "model.safetensors", found)
        as_json(folder / "config.json", {**W2V, **extra})
        as_json(folder / "vocab.json", VOCAB)
        return folder
    state: dict[str, Any] = {name: torch.from_numpy(np.asarray(array)) for name, array in found.items()}
    if family == "whisper":
        state = {"dims": DIMS, "model_state_dict": state, **extra}
    elif family != "silero_vad":
        state = {"state_dict": state, "hyper_parameters": {}, "pyannote.audio": {"specifications": SPECIFICATIONS}, **extra}
    torch.save(state, folder / f"{family}.pt")
    return folder / f"{family}.pt"


def safetensors(path: Path, found: Arrays) -> Path:
    layout = {name: (array.shape, array.dtype.name) for name, array in found.items()}
    tensors.write_safetensors(path, layout, found.items())
    data = path.read_bytes()  # without the mark of MLX
    length = struct.unpack("<Q", data[:8])[0]
    return raw_safetensors(path, data[8 : 8 + length].replace(b'"mlx"', b'"pt"'), data[8 + length :])


def raw_safetensors(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def whisper_folder(folder: Path, **config: Any) -> Path:
    """Whisper as transformers saves it."""
    patterns = [
        (re.escape(ours).replace(r"\{\}", r"(\d+)"), theirs)
        for theirs, ours in TRANSFORMERS.items()
        if re.match("encoder|decoder", ours)
    ]
    renamed: Arrays = {}
    for name, array in arrays("whisper", **DIMS).items():
        path, leaf = (name, "weight") if name.endswith("positional_embedding") else name.rsplit(".", 1)
        theirs = [(re.fullmatch(ours, path), new) for ours, new in patterns if re.fullmatch(ours, path)]
        new = theirs[0][1].removesuffix(".weight").format(*theirs[0][0].groups())
        renamed[f"model.{new}.{leaf}"] = array
    folder.mkdir(exist_ok=True)
    safetensors(folder / "model.safetensors", renamed)
    sizes = {"vocab_size": 50, "num_mel_bins": 80, "d_model": 64, "encoder_layers": 1, "encoder_attention_heads": 2}
    sizes |= {"decoder_layers": 1, "decoder_attention_heads": 2, "max_source_positions": 20, "max_target_positions": 10}
    as_json(folder / "config.json", {"model_type": "whisper", **sizes, **config})
    return folder


@pytest.fixture(scope="module")
def vad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted Silero VAD."""
    folder = tmp_path_factory.mktemp("vad")
    main(["convert", "--model", str(save("silero_vad", silero_vad(), folder)), "--mlx-path", str(folder / "vad")])
    return folder / "vad"


# --- what is no model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_originals_here_are_sound(cli: Cli, family: str) -> None:
    cli.converts(save(family, FAMILIES[family](), cli.home / "source"), "--mlx-path", "out")
    assert mlx_speech.load("out").args
    cli.converts(whisper_folder(cli.home / "folder"), "--dry-run")


@pytest.mark.parametrize(
    "name",
    ["/nowhere/x", "missing.pt", "./missing", "../missing", "~nosuchuser/x", "~/missing/x/y", "x" * 300 + "/x.pt", "", "a b", "a/b/c"],
)
def test_a_missing_path(cli: Cli, name: str) -> None:
    cli.refuses("convert", "--model", name, says=(name.removeprefix("~/"),))


@pytest.mark.parametrize("what", ["unknown", "gated", "closed"])
def test_the_hub(tmp_path: Path, what: str) -> None:
    repos = {"org/gated": Repo({"config.json": b"{}", "model.safetensors": b"x"}, gated=True)}
    with HubServer(repos) as hub:
        url, repo = closed_port() if what == "closed" else hub.url, "org/gated" if what == "gated" else "org/name"
        env = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        refused(spawn(tmp_path, "convert", "--model", repo, **env), repo, url if what == "closed" else "hf auth login")
    assert not [name for name in listing(tmp_path) if not name.startswith("hf")]


def test_folders_without_one_clear_checkpoint(cli: Cli) -> None:
    for name, files in {"none": ["a.onnx"], "several": ["a.pt", "b.ckpt"], "half": ["plda.npz"]}.items():
        (cli.home / name).mkdir()
        for file in files:
            (cli.home / name / file).write_bytes(b"x")
    cli.refuses("convert", "--model", "none", says=("none", "no weights"))
    cli.refuses("convert", "--model", "several", says=("several", "a.pt", "b.ckpt"))
    cli.refuses("convert", "--model", "half", says=("half/xvec_transform.npz", "missing"))
    cli.refuses("convert", "--model", "none/a.onnx", says=("none/a.onnx", ".safetensors"))


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.jit", "a.ckpt", "a.npz", "a.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 4096, b"PK\x03\x04", b"{}", b"\x80\x02.", "voilà".encode("utf-16")])
def test_files_of_something_else(cli: Cli, name: str, content: bytes) -> None:
    (cli.home / name).write_bytes(content)
    cli.refuses("convert", "--model", name, says=(name,))


@pytest.mark.parametrize("family", FAMILIES)
def test_truncated_files(cli: Cli, family: str) -> None:
    source = save(family, FAMILIES[family](), cli.home / "source")
    for file in sorted(path for path in (cli.home / "source").iterdir() if path.suffix in (".safetensors", ".npz", ".pt")):
        whole = file.read_bytes()
        for kept in (4, 100, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:kept])
            cli.refuses("convert", "--model", source, says=(file.name,))
        file.write_bytes(whole)


def test_damage_that_shows_late(cli: Cli) -> None:
    """The values of a compressed archive are first looked at while the result is being written."""
    path = save("whisper", whisper(), cli.home / "source")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(cli.home / "x.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    data = bytearray((cli.home / "x.pt").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (cli.home / "x.pt").write_bytes(data)
    cli.refuses("convert", "--model", "x.pt", says=("x.pt",))
    cli.refuses("convert", "--model", "x.pt", "--mlx-path", "new/folder/out", says=("x.pt",))


# --- tensors ---------------------------------------------------------------------------------------------------------

# missing (as the file has it, as the message may), of a wrong shape (likewise)
LACKING = {
    "whisper": ("decoder.ln.bias", "decoder.ln.bias", "encoder.ln_post.weight", "encoder.ln_post.weight"),
    "wav2vec2": ("lm_head.bias", "lm_head.bias", *["wav2vec2.encoder.layer_norm.weight"] * 2),
    "silero_vad": ("_model.encoder.3.reparam_conv.bias", "encoder.3", "_model.encoder.2.reparam_conv.bias", "encoder.2"),
    "pyannet": ("linear.0.bias", "linear.0.bias", "sincnet.norm1d.1.weight", "norm1.weight"),
    "wespeaker": ("resnet.seg_1.bias", "seg_1.bias", "resnet.layer1.0.conv2.weight", "layer1.0.conv2.weight"),
    "plda": ("mu", "mu", "mean1", "mean1"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_extra_and_misshaped_tensors_are_all_listed(cli: Cli, family: str) -> None:
    found, (missing, said, shaped, said_too) = FAMILIES[family](), LACKING[family]
    del found[missing]
    found[shaped] = found[shaped].repeat(2, axis=0)
    found["some.thing"] = np.ones(3, np.float32)
    source = save(family, found, cli.home / "source")
    cli.refuses("convert", "--model", source, says=("source", said, said_too, "some.thing", "missing"))


def replaced(array: np.ndarray) -> dict[str, np.ndarray | None]:
    return {
        "absent": None,
        "of no dimension": np.array(1, array.dtype),
        "empty": np.zeros((0, *array.shape[1:]), array.dtype),
        "without an axis of length": np.zeros((*array.shape, 0), array.dtype),
        "of more dimensions": array[None],
        "of whole numbers": array.astype(np.int32),
        "of truth values": array.astype(bool),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_any_tensor_replaced(cli: Cli, family: str) -> None:
    """Refused in one line, unless it is one that is not converted anyway."""
    whole, wrong = FAMILIES[family](), {}
    out = cli.converts(save(family, whole, cli.home / "source"), "--dry-run")
    for name, array in whole.items():
        if f"{name} → dropped" not in out:
            for how, value in replaced(array).items():
                found = {k: v for k, v in {**whole, name: value}.items() if v is not None}
                source = save(family, found, cli.home / "source")
                if said := cli.wrong("convert", "--model", source, "--dry-run", says=("source",)):
                    wrong[f"{name} {how}"] = said
    assert not wrong


def test_an_unknown_family(cli: Cli) -> None:
    safetensors(cli.home / "model.safetensors", {"bert.layer.0.weight": np.ones(3, np.float32)})
    as_json(cli.home / "config.json", {"architectures": ["BertModel"], "model_type": "bert"})
    cli.refuses("convert", "--model", cli.home, says=(cli.home, "BertModel", "bert.layer.0.weight", "whisper"))
    safetensors(cli.home / "x.safetensors", whisper() | pyannet())
    cli.refuses("convert", "--model", "x.safetensors", says=("x.safetensors", "whisper or pyannet"))


GOOD = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
ENTRIES: dict[str, Any] = {
    "negative": {**GOOD, "data_offsets": [-16, 0]},
    "reversed": {**GOOD, "data_offsets": [16, 0]},
    "huge": {**GOOD, "data_offsets": [2**62, 2**62 + 16]},
    "beyond": {**GOOD, "data_offsets": [24, 40]},
    "short": {**GOOD, "data_offsets": [0, 12]},
    "fractions": {**GOOD, "data_offsets": [0.0, 16.0]},
    "one offset": {**GOOD, "data_offsets": [0]},
    "offsets of text": {**GOOD, "data_offsets": "ab"},
    "unknown dtype": {**GOOD, "dtype": "F4"},
    "dtype of a list": {**GOOD, "dtype": ["F32"]},
    "other dtype": {**GOOD, "dtype": "F64"},
    "negative shape": {**GOOD, "shape": [-2, -2]},
    "huge shape": {**GOOD, "shape": [2**63, 2**63]},
    "overflowing shape": {**GOOD, "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]},
    "many dimensions": {**GOOD, "shape": [4, *[1] * 100]},
    "a million dimensions": {**GOOD, "shape": [2**62] * 200_000},
    "shape of text": {**GOOD, "shape": "4"},
    "null": None,
    "list": [],
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_safetensors_with_a_wrong_entry(cli: Cli, entry: Any) -> None:
    name = "encoder.conv1.weight"
    header = {"decoder.positional_embedding": {**GOOD, "data_offsets": [16, 32]}, name: entry}
    path = raw_safetensors(cli.home / "x.safetensors", json.dumps(header).encode(), bytes(32))
    cli.refuses("convert", "--model", path, says=(path, name))
    with pytest.raises(SourceError):
        tensors.read_safetensors(path)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({"encoder.conv1.weight": GOOD, "decoder.positional_embedding": GOOD}).encode(),  # the same bytes
        json.dumps({"a": GOOD, "b": {**GOOD, "data_offsets": [8, 24]}}).encode(),  # overlapping
        json.dumps({"x" * 100_000: GOOD}).encode(),
    ],
    ids=["list", "null", "cut", "no text", "deep", "same place", "overlapping", "long name"],
)
def test_safetensors_with_a_wrong_header(cli: Cli, header: bytes) -> None:
    path = raw_safetensors(cli.home / "x.safetensors", header, bytes(32))
    cli.refuses("convert", "--model", path, says=(path,))
    if header.startswith(b'{"') and len(header) < 1000:
        with pytest.raises(SourceError):
            tensors.read_safetensors(path)


def test_safetensors_with_a_length_that_is_a_lie(cli: Cli) -> None:
    for length in (0, 1, 2**31, 2**63, 2**64 - 1):
        (cli.home / "x.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
        cli.refuses("convert", "--model", "x.safetensors", says=("x.safetensors",))


@pytest.mark.parametrize("wrong", OUTSIDE.values(), ids=OUTSIDE)
def test_tensors_outside_their_storage(cli: Cli, wrong: dict) -> None:
    archive(cli.home / "x.pt", dumps({"encoder.conv1.weight": rebuilt(**wrong)}))
    cli.refuses("convert", "--model", "x.pt", says=("x.pt",))
