"""`mlx_speech.load` from every place, the cache of converted originals, threads, dtypes, and what loaded models do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import originals as make
import pytest
import torch
from hub_server import HubServer, Repo
from test_convert import (
    USUAL,
    Shelf,
    as_repo,
    close,
    contents,
    hub_environment,
    inputs,
    outputs,
    python,
    whisper_input,
)

import mlx_speech
from mlx_speech import checkpoint, folders, models
from mlx_speech.blas import on_cpu
from mlx_speech.errors import OptionError, SourceNotFound
from mlx_speech.models import layers, pyannet, wespeaker
from mlx_speech.models.base import BaseModel
from mlx_speech.models.whisper import LARGEST_PACKED
from mlx_speech.ops import lstm
from mlx_speech.ops.decoder_step import HostWeights
from mlx_speech.ops.few_rows import Panels

# loads every argument and prints what it gives for a fixed input, as hexadecimal bytes
LOADER = """
import sys
import numpy as np
import mlx_speech
mlx_speech.configure()
import mlx.core as mx
for name in sys.argv[1:]:
    model = mlx_speech.load(name)
    audio = mx.array(np.sin(np.arange(16000, dtype=np.float32))[None])
    print(np.array(model(audio)).tobytes().hex()[:4000])
"""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


def cached() -> list[Path]:
    """The converted folders in the cache."""
    folder = folders.cache_folder()
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.exists() else []


def sine() -> mx.array:
    return mx.array(np.sin(np.arange(16000, dtype=np.float32))[None])


def in_hex(model: Any) -> str:
    return np.array(model(sine())).tobytes().hex()[:4000]


# --- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_converted_folder(shelf: Shelf, family: str) -> None:
    folder = shelf.converted(USUAL[family])
    model = mlx_speech.load(folder)
    assert isinstance(model, models.module(family).Model) and not cached()
    assert np.array_equal(outputs(model, family), outputs(mlx_speech.load(str(folder)), family))
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("family", models.FAMILIES)
def test_an_original_is_converted_once(shelf: Shelf, family: str) -> None:
    source = shelf[USUAL[family]]
    first = outputs(mlx_speech.load(source), family)
    (folder,) = cached()
    assert checkpoint.is_converted(folder)
    assert contents(folder)["model.safetensors"] == contents(shelf.converted(USUAL[family]))["model.safetensors"]
    state = {path: path.stat() for path in folder.rglob("*")}
    again = outputs(mlx_speech.load(source), family)
    assert np.array_equal(first, again)
    assert np.array_equal(first, outputs(mlx_speech.load(shelf.converted(USUAL[family])), family))
    assert cached() == [folder]
    for path, before in state.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_file_and_the_folder_it_is_in(shelf: Shelf, tmp_path: Path) -> None:
    folder = shutil.copytree(shelf["wav2vec2 safetensors"], tmp_path / "model")
    assert in_hex(mlx_speech.load(folder)) == in_hex(mlx_speech.load(folder / "model.safetensors"))


def test_a_source_that_changed_is_converted_again(shelf: Shelf, tmp_path: Path) -> None:
    source = shutil.copytree(shelf["wav2vec2 safetensors"], tmp_path / "model")
    first = in_hex(mlx_speech.load(source))
    os.utime(source / "model.safetensors", ns=(1, 1))
    assert in_hex(mlx_speech.load(source)) == first and len(cached()) == 2
    shutil.copy(shelf["wav2vec2 layer norm"] / "model.safetensors", source / "model.safetensors")
    shutil.copy(shelf["wav2vec2 layer norm"] / "config.json", source / "config.json")
    assert in_hex(mlx_speech.load(source)) != first and len(cached()) == 3
    (source / "vocab.json").write_text('{"<pad>": 0, "x": 1}')  # labels are part of the model too
    model: Any = mlx_speech.load(source)
    assert model.args.vocab[1] == "x" and len(cached()) == 4


def test_what_lies_beside_a_file_is_noticed_when_it_changes(shelf: Shelf, tmp_path: Path) -> None:
    source = shutil.copytree(shelf["wav2vec2 safetensors"], tmp_path / "ft")
    file = source / "model.safetensors"
    for _ in range(2):
        mlx_speech.load(file)
        assert len(cached()) == 1
    (source / "vocab.json").write_text('{"<pad>": 0, "x": 1}')
    model: Any = mlx_speech.load(file)
    assert model.args.vocab[1] == "x" and len(cached()) == 2
    stated = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**stated, "layer_norm_eps": 0.25}))
    model = mlx_speech.load(file)
    assert model.args.layer_norm_eps == 0.25 and len(cached()) == 3


def test_what_lies_beside_a_link_is_noticed_when_it_changes(shelf: Shelf, tmp_path: Path) -> None:
    source = shutil.copytree(shelf["wav2vec2 safetensors"], tmp_path / "ft")
    file = (source / "model.safetensors").rename(tmp_path / "blob")
    (source / "model.safetensors").symlink_to(file)
    mlx_speech.load(source / "model.safetensors")
    (source / "vocab.json").write_text('{"<pad>": 0, "x": 1}')
    model: Any = mlx_speech.load(source / "model.safetensors")
    assert model.args.vocab[1] == "x"


def test_half_of_a_pair_that_changed_is_noticed(shelf: Shelf, tmp_path: Path) -> None:
    source = shutil.copytree(shelf["plda"], tmp_path / "plda")
    first = outputs(mlx_speech.load(source / "plda.npz"), "plda")
    arrays = dict(np.load(source / "xvec_transform.npz"))
    np.savez(source / "xvec_transform.npz", **{**arrays, "mean1": arrays["mean1"] + 1})
    assert not close(outputs(mlx_speech.load(source / "plda.npz"), "plda"), first)


def test_languages_have_conversions_of_their_own(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = make.wav2vec2_transformers("layer", **make.W2V_NARROW, adapter_attn_dim=16)
    vocab = {"eng": make.VOCAB, "deu": make.VOCAB}
    source = make.save_wav2vec2(model, tmp_path / "mms", do_normalize=True, vocab=vocab)
    changed = {n: t + 0.5 for n, t in model.state_dict().items() if "adapter_layer" in n or n.startswith("lm_head")}
    save_file(changed, source / "adapter.deu.safetensors")
    plain, german = mlx_speech.load(source), mlx_speech.load(source, language="deu")
    assert len(cached()) == 2 and in_hex(plain) != in_hex(german)
    assert in_hex(mlx_speech.load(source)) == in_hex(plain)


def test_the_bundled_vad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelf: Shelf) -> None:
    """By its name from anywhere; it is what the package's own converter makes."""
    monkeypatch.chdir(tmp_path)
    model = mlx_speech.load("silero_vad")
    assert not cached() and not list(tmp_path.glob("silero*"))
    ours, made = model.arrays(), checkpoint.load_folder(shelf.converted("silero")).arrays()
    assert set(ours) == set(made) and all(np.array_equal(ours[name], made[name]) for name in ours)
    with pytest.raises(SourceNotFound, match="no such file or folder"):
        mlx_speech.load("./silero_vad_")


def test_a_folder_named_like_the_bundled_one_comes_first(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shelf.converted("plda"), tmp_path / "silero_vad")
    assert isinstance(mlx_speech.load("silero_vad"), models.module("plda").Model)


def test_repositories(shelf: Shelf, tmp_path: Path) -> None:
    """Originals go through the cache, converted ones are used as they are; each is downloaded once."""
    names = {"org/original": shelf["wav2vec2 safetensors"], "org/done": shelf.converted("wav2vec2 safetensors")}
    with HubServer({name: as_repo(path, licence="mit") for name, path in names.items()}) as hub:
        env = hub_environment(hub.url, tmp_path / "home")
        done = python(tmp_path, "-c", LOADER, *names, env=env)
        expected = in_hex(mlx_speech.load(shelf.converted("wav2vec2 safetensors")))
        assert done.stdout.split() == [expected, expected]
        (made,) = (path for path in (tmp_path / "home" / "converted").iterdir() if path.is_dir())
        assert made.name.startswith("original-")
        state = made.joinpath("model.safetensors").stat()
        count = len(hub.downloads("model.safetensors"))
        assert python(tmp_path, "-c", LOADER, *names, env=env).stdout == done.stdout
        assert len(hub.downloads("model.safetensors")) == count
        assert made.joinpath("model.safetensors").stat().st_mtime_ns == state.st_mtime_ns
        hub.repos["org/original"].files = contents(shelf["wav2vec2 layer norm"])  # a new revision
        changed = python(tmp_path, "-c", LOADER, "org/original", env=env).stdout.split()
        assert changed == [in_hex(mlx_speech.load(shelf.converted("wav2vec2 layer norm")))]
    assert python(tmp_path, "-c", LOADER, "org/original", env=env).stdout.split() == changed  # the hub is gone


MLX_LAYOUTS = ["whisper npz", "whisper weights", "whisper npz 4 bits", "whisper weights 8 bits", "whisper mlx layout"]


@pytest.mark.parametrize("name", MLX_LAYOUTS)
def test_repositories_in_mlx_layout_are_converted_in_memory(shelf: Shelf, name: str) -> None:
    model = mlx_speech.load(shelf[name])
    assert not cached()
    assert np.array_equal(outputs(model, "whisper"), outputs(mlx_speech.load(shelf.converted(name)), "whisper"))


def test_a_repository_of_mlx_community(shelf: Shelf, tmp_path: Path) -> None:
    script = """
import sys, mlx_speech
model = mlx_speech.load("mlx-community/narrow")
print(sorted(model.arrays())[0], model.args.n_text_layer)
"""
    repo = Repo({**contents(shelf["whisper npz 4 bits"])})
    with HubServer({"mlx-community/narrow": repo}) as hub:
        env = hub_environment(hub.url, tmp_path / "home")
        assert python(tmp_path, "-c", script, env=env).stdout.split() == ["decoder.blocks.0.attn.key.weight", "2"]
    assert not (tmp_path / "home" / "converted").exists()


def test_a_repository_of_a_converted_pipeline(shelf: Shelf, tmp_path: Path) -> None:
    """Used as it is, and where the hub is gone, too."""
    script = """
import sys, json
import numpy as np
import mlx_speech
mlx_speech.configure()
import mlx.core as mx
model = mlx_speech.load(sys.argv[1])
features = mx.array(np.random.default_rng(4).normal(size=(1, 150, 80)).astype(np.float32))
found = [model.clustering, model.params, np.array(model.embedding(features)).tolist(), sorted(model.arrays())]
print(json.dumps(found))
"""
    expected = python(tmp_path, "-c", script, shelf.converted("pipeline")).stdout
    with HubServer({"org/pipeline": as_repo(shelf.converted("pipeline"))}) as hub:
        env = hub_environment(hub.url, tmp_path / "home")
        assert python(tmp_path, "-c", script, "org/pipeline", env=env).stdout == expected
        assert hub.downloaded() == set(contents(shelf.converted("pipeline")))
    assert python(tmp_path, "-c", script, "org/pipeline", env=env).stdout == expected
    assert not (tmp_path / "home" / "converted").exists()


def test_two_processes_at_the_same_time_convert_once(shelf: Shelf, tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
import mlx_speech
from mlx_speech import folders
name, source = sys.argv[1:]
staged = folders.staged
def counted(*arguments):
    Path(f"converted-{name}").touch()
    time.sleep(1)  # the other one is waiting by then
    return staged(*arguments)
folders.staged = counted
Path(f"ready-{name}").touch()
while len(list(Path().glob("ready-*"))) < 2:
    time.sleep(0.01)
model = mlx_speech.load(source)
import mlx.core as mx
print(mx.abs(model(mx.ones((1, 16000)))).sum().item())
"""
    env = hub_environment("http://127.0.0.1:9", tmp_path / "home")
    command = [sys.executable, "-c", script]
    source = str(shelf["wav2vec2 safetensors"])
    running = [
        subprocess.Popen([*command, name, source], cwd=tmp_path, env=env, stdout=-1, stderr=-1, text=True)
        for name in ("a", "b")
    ]
    found = [process.communicate(timeout=60) for process in running]
    assert all(process.returncode == 0 for process in running), found
    assert found[0][0] == found[1][0] != ""
    assert len(list(tmp_path.glob("converted-*"))) == 1
    assert len([path for path in (tmp_path / "home" / "converted").iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize("kind", ["CACHE", "DATA"])
def test_an_empty_variable_counts_as_not_set(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = {"CACHE": folders.cache_folder, "DATA": folders.data_folder}[kind]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(f"XDG_{kind}_HOME", raising=False)
    monkeypatch.delenv(f"MLX_SPEECH_{kind}", raising=False)
    usual = folder()
    assert usual.is_relative_to(tmp_path)
    monkeypatch.setenv(f"MLX_SPEECH_{kind}", "")
    assert folder() == usual
    monkeypatch.setenv(f"MLX_SPEECH_{kind}", "~/mine")
    assert folder() == tmp_path / "mine"


# --- threads ---------------------------------------------------------------------------------------------------------


def in_threads(function: Callable[[], Any], count: int) -> list[Any]:
    """The results of `function` from so many threads that start together."""
    barrier, results = threading.Barrier(count), [None] * count

    def work(k: int) -> None:
        barrier.wait(timeout=60)
        try:
            results[k] = function()
        except RuntimeError as error:  # what MLX raises for an array of another thread
            results[k] = error

    threads = [threading.Thread(target=work, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def fresh(model: BaseModel, family: str) -> np.ndarray:
    """As `outputs`, with inputs made in the calling thread."""
    return np.array(model(*inputs(family)))  # type: ignore[operator]


FORMS = [(family, {}, None) for family in models.FAMILIES]
FORMS += [("whisper", {"quantize": True}, "float32"), ("wav2vec2", {"dtype": "float16"}, "float16")]
FORM_NAMES = [f"{family}{'-' * bool(options)}{''.join(options)}" for family, options, _ in FORMS]


@pytest.mark.parametrize(("family", "options", "dtype"), FORMS, ids=FORM_NAMES)
def test_any_thread(shelf: Shelf, family: str, options: dict[str, Any], dtype: str | None) -> None:
    folder = shelf.converted(USUAL[family], **options)
    model = mlx_speech.load(folder, dtype=dtype)
    expected = fresh(model, family)
    for found in in_threads(lambda: fresh(model, family), 3):
        assert np.array_equal(found, expected)
    (other,) = in_threads(lambda: mlx_speech.load(folder, dtype=dtype), 1)  # no call there: nothing is computed yet
    assert np.array_equal(fresh(other, family), expected)


def test_any_thread_of_what_is_converted_in_memory(shelf: Shelf) -> None:
    for name in ("whisper npz", "whisper npz 4 bits"):
        (model,) = in_threads(lambda name=name: mlx_speech.load(shelf[name]), 1)
        expected = fresh(model, "whisper")
        assert all(np.array_equal(found, expected) for found in in_threads(lambda m=model: fresh(m, "whisper"), 2))


# --- dtypes ----------------------------------------------------------------------------------------------------------


def kinds(model: BaseModel) -> set[mx.Dtype]:
    return {array.dtype for array in model.arrays().values()}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("family", models.FAMILIES)
def test_dtype(shelf: Shelf, family: str, dtype: str) -> None:
    model = mlx_speech.load(shelf.converted(USUAL[family]), dtype=dtype)
    expected = {getattr(mx, dtype)}
    if family == "plda":
        expected = {mx.float64}
    elif family == "silero_vad":
        expected = {mx.float32}
    elif family in ("wespeaker", "campplus"):
        expected |= {mx.float32}  # pooling and the last layer
    assert kinds(model) == expected
    exact = outputs(mlx_speech.load(shelf.converted(USUAL[family])), family)
    found = np.array(model(*inputs(family)).astype(mx.float32))  # type: ignore[operator]
    assert np.isfinite(found).all()
    assert close(found.astype(np.float64), exact.astype(np.float64), {"float32": 1e-6}.get(dtype, 0.2))


def test_an_unknown_dtype(shelf: Shelf) -> None:
    with pytest.raises(OptionError, match=r"int8.*float16"):
        mlx_speech.load(shelf.converted("plda"), dtype="int8")


@pytest.mark.skipif(mx.default_device().type != mx.DeviceType.cpu, reason="a GPU computes these well")
def test_on_the_cpu_everything_is_float32(shelf: Shelf) -> None:
    for name, options in (("whisper safetensors", {"dtype": "float16"}), ("wav2vec2 safetensors", {"quantize": True})):
        model = mlx_speech.load(shelf.converted(name, **options))
        assert kinds(model) == {mx.float32}
        assert not [m for m in model.modules() if isinstance(m, (nn.QuantizedLinear, nn.QuantizedEmbedding))]
    packed = mlx_speech.load(shelf.converted("wav2vec2 safetensors", quantize=True), dtype="float32")
    assert [m for m in packed.modules() if isinstance(m, nn.QuantizedLinear)]
    both = mlx_speech.load(shelf.converted("whisper safetensors", quantize=True, dtype="float16"))
    assert kinds(both) == {mx.float32}


# --- Silero VAD ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vad() -> Any:
    return mlx_speech.load("silero_vad")


RATES = [(16000, 512), (8000, 256)]


@pytest.mark.parametrize(("rate", "window"), RATES)
@pytest.mark.parametrize("pieces", [1, 3, 7])
def test_live_audio_gives_what_the_whole_gives(vad: Any, rate: int, window: int, pieces: int) -> None:
    audio = make.babble(6).numpy()[:: 16000 // rate]
    audio = audio[: len(audio) // window * window]
    whole = np.array(vad(mx.array(audio), rate))
    assert whole.shape == (len(audio) // window,) and whole.std() > 0.001
    state, found = vad.initial_state(1, rate), []
    for start in range(0, len(audio), pieces * window):
        probabilities, state = vad(mx.array(audio[start : start + pieces * window]), rate, state)
        found.append(np.array(probabilities))
    assert np.abs(np.concatenate(found) - whole).max() < 1e-6


@pytest.mark.parametrize(("rate", "window"), RATES)
def test_vad_batches(vad: Any, rate: int, window: int) -> None:
    audio = make.babble(6).numpy().reshape(3, -1)
    together, state = vad(mx.array(audio[:, : 60 * window]), rate, vad.initial_state(3, rate))
    assert together.shape == (3, 60) and state.h.shape == (1, 3, 128) and state.context.shape == (3, window // 8)
    for row in range(3):
        alone = np.array(vad(mx.array(audio[row, : 60 * window]), rate))
        assert np.abs(np.array(together[row]) - alone).max() < 1e-6
    many = np.tile(audio[:1, : 2 * window], (5000, 1))  # more rows than the encoder takes at once
    found = np.array(vad(mx.array(many), rate))
    assert np.abs(found - found[:1]).max() < 1e-6


def test_vad_of_long_audio(vad: Any) -> None:
    """More windows than the encoder takes at once: no seam between its pieces."""
    from mlx_speech.models.silero_vad import WINDOWS_AT_ONCE

    audio = np.tile(make.babble(4).numpy(), 40)[: (WINDOWS_AT_ONCE + 100) * 512]
    whole = np.array(vad(mx.array(audio)))
    _, state = vad(mx.array(audio[: 4000 * 512]), 16000, vad.initial_state())
    rest, _ = vad(mx.array(audio[4000 * 512 :]), 16000, state)
    assert np.abs(whole[4000:] - np.array(rest)).max() < 1e-6


def test_vad_at_multiples_of_its_rate(vad: Any) -> None:
    audio = make.babble(6).numpy()
    for factor in (2, 3):
        wide = np.zeros(factor * len(audio), np.float32)
        wide[::factor] = audio
        found = np.array(vad(mx.array(wide), 16000 * factor))
        assert np.array_equal(found, np.array(vad(mx.array(audio))))


def test_vad_of_odd_lengths(vad: Any) -> None:
    assert vad(mx.zeros((0,))).shape == (0,) and vad(mx.zeros((2, 0))).shape == (2, 0)
    for samples, windows in ((1, 1), (512, 1), (513, 2), (1024, 2)):
        assert vad(mx.ones((samples,))).shape == (windows,)
    audio = make.babble(1).numpy()[:700]
    assert np.array_equal(vad(mx.array(audio)), vad(mx.array(np.pad(audio, (0, 324)))))
    with pytest.raises(OptionError, match="multiples of 512"):
        vad(mx.ones((700,)), 16000, vad.initial_state())
    for rate in (44100, 11025, 0, -16000):
        with pytest.raises(OptionError, match=f"sample_rate={rate}"):
            vad(mx.ones((512,)), rate)


# --- the others ------------------------------------------------------------------------------------------------------


def test_frames_of_pyannet(shelf: Shelf) -> None:
    model: Any = mlx_speech.load(shelf.converted("pyannet"))
    assert [model.num_frames(samples) for samples in (160000, 80000, 0, 100)] == [589, 293, 0, 0]
    for samples in (160000, 80000, 32000, 991, 1260, 1261, 5003):
        assert model(mx.array(make.babble(10).numpy()[None, :samples])).shape == (1, model.num_frames(samples), 7)
    assert model.num_frames(990) == 0 and model.num_frames(991) == 1


def test_outputs_of_pyannet_are_probabilities(shelf: Shelf) -> None:
    found = outputs(mlx_speech.load(shelf.converted("pyannet")), "pyannet")
    assert np.abs(np.exp(found.astype(np.float64)).sum(axis=-1) - 1).max() < 1e-5
    found = outputs(mlx_speech.load(shelf.converted("pyannet multilabel")), "pyannet")
    assert found.min() >= 0 and found.max() <= 1


def test_frames_of_wav2vec2(shelf: Shelf) -> None:
    model: Any = mlx_speech.load(shelf.converted("wav2vec2 safetensors"))
    found = model.num_frames(mx.array([400, 16000, 480000, 719, 720]))
    assert np.array_equal(found, [1, 49, 1499, 1, 2])
    for samples in (400, 719, 720, 16000, 12345):
        frames = int(model.num_frames(mx.array(samples)).item())
        assert model(mx.zeros((1, samples))).shape == (1, frames, 32)


def test_whisper_takes_448_tokens(shelf: Shelf) -> None:
    model: Any = mlx_speech.load(shelf.converted("whisper safetensors"))
    encoded = model.encoder(whisper_input()[0][:1])
    tokens = mx.array(np.random.default_rng(6).integers(0, 1000, (1, 449)))
    assert model.decoder(tokens[:, :448], encoded).shape == (1, 448, 1000)
    with pytest.raises(OptionError, match="449 tokens"):
        model.decoder(tokens, encoded)


@pytest.mark.parametrize("largest", [0, LARGEST_PACKED])
def test_whisper_continues_from_its_cache(shelf: Shelf, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After prompts of any lengths, token by token: the same logits as all tokens at once."""
    monkeypatch.setattr("mlx_speech.models.whisper.LARGEST_PACKED", largest)
    model: Any = mlx_speech.load(shelf.converted("whisper safetensors"))
    mel, tokens = whisper_input()
    encoded = model.encoder(mel)
    whole = np.array(model.decoder(tokens, encoded))
    for lengths in ([1, 1], [4, 7], [12, 3]):
        cache = model.decoder.new_cache(2, 1)
        prompts = [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)]
        found, _ = model.decoder.prefill(cache, [0, 1], encoded, prompts, [0, 0])
        for k in range(8):
            at = [length + k for length in lengths]
            expected = np.stack([whole[row, place - 1] for row, place in enumerate(at)])
            assert close(np.array(found).reshape(2, -1), expected, 1e-4)
            found = model.decoder.step(cache, mx.array([[tokens[row, place].item()] for row, place in enumerate(at)]))
        # a row begins anew, with the other's audio, and the other goes on
        found, _ = model.decoder.prefill(cache, [0], encoded[1:], [tokens[1, :5].tolist()], [0])
        assert close(np.array(found), whole[1:, 4], 1e-4)
        rest = mx.array([[tokens[1, 5].item()], [tokens[1, at[1] + 1].item()]])
        found = model.decoder.step(cache, rest)
        assert close(np.array(found)[:, 0], whole[[1, 1], [5, at[1] + 1]], 1e-4)
        assert cache.is_in_numpy == on_cpu()
        assert cache.host is None or isinstance(cache.host.output, Panels) == (largest > 0)
        assert (model.decoder._packed is None) == (largest == 0 or not on_cpu())  # of a large one nothing is kept


@pytest.mark.skipif(not on_cpu(), reason="nothing is packed on a GPU")
def test_whisper_notices_that_its_weights_are_others(shelf: Shelf) -> None:
    model: Any = mlx_speech.load(shelf.converted("whisper safetensors"))
    mel, tokens = whisper_input()
    encoded = model.encoder(mel[:1])
    first = tokens[:1, :1]
    prompt = first.tolist()

    def logits_after_a_step() -> tuple[HostWeights, np.ndarray]:
        cache = model.decoder.new_cache(1, 1)
        model.decoder.prefill(cache, [0], encoded, prompt, [0])
        return cache.host, np.array(model.decoder.step(cache, first))[0]

    packed, before = logits_after_a_step()
    again, same = logits_after_a_step()
    assert again is packed and np.array_equal(same, before)
    last = model.decoder.blocks[-1]
    embedding = model.decoder.token_embedding

    def replace_a_matrix() -> None:
        last.mlp2.weight = 2 * last.mlp2.weight

    def change_a_matrix() -> None:
        last.mlp1.weight *= 3

    def change_a_row() -> None:
        embedding.weight[7] = 5 * embedding.weight[8]

    def change_a_bias() -> None:
        last.mlp2.bias += mx.arange(last.mlp2.bias.size)

    def change_positions() -> None:
        model.decoder.positional_embedding *= 3

    def change_the_last_norm() -> None:
        model.decoder.ln.weight *= 2

    def change_its_bias() -> None:
        model.decoder.ln.bias += mx.arange(last.mlp2.bias.size)

    of_layers = (replace_a_matrix, change_a_matrix, change_a_bias)
    for change in (*of_layers, change_a_row, change_positions, change_the_last_norm, change_its_bias):
        change()
        other, found = logits_after_a_step()
        expected = np.array(model.decoder(mx.repeat(first, 2, axis=1), encoded))[0, -1:]
        assert other is not packed and close(found, expected, 1e-4) and not close(found, before, 1e-3)
        packed, before = other, found
    model.decoder.blocks = model.decoder.blocks[:1]
    assert model.decoder.new_cache(1, 1).host is not packed
    model.decoder.apply(lambda array: array.astype(mx.float16))
    assert model.decoder.new_cache(1, 1).host is None and model.decoder._packed is None  # nor is its memory held


def an_lstm(directions: int, batch: int, steps: int, hidden: int = 5, dtype: mx.Dtype = mx.float32) -> list[mx.array]:
    """x, its weight, the states' weight, the bias, h and c."""
    rng = np.random.default_rng(8)
    sizes = [(batch, steps, 6), (directions, 4 * hidden, 6), (directions, 4 * hidden, hidden), (directions, 4 * hidden)]
    sizes += [(directions, batch, hidden)] * 2
    return [mx.array(0.4 * rng.normal(size=size)).astype(dtype) for size in sizes]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("batch, steps", [(3, 1), (3, 7), (2, 300), (67, 65)])
def test_both_lstms_agree(dtype: mx.Dtype, directions: int, batch: int, steps: int) -> None:
    x, *weights, h, c = an_lstm(directions, batch, steps, dtype=dtype)
    found, (last_h, last_c) = lstm.lstm(x, *weights, (h, c))
    with mx.stream(mx.cpu):
        whole = lstm.lstm_graph(x, *weights, h, c)
    expected = mx.concatenate(list(whole[:, :, :-1]), axis=-1)
    ends = [whole[0, :, -2], whole[1, :, 0]] if directions == 2 else [whole[0, :, -2]]
    bar = {mx.float32: 1e-5, mx.float16: 2e-2, mx.bfloat16: 1e-1}[dtype]
    pairs = [(found, expected), (last_h, mx.stack(ends)), (last_c, whole[:, :, -1])]
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype == dtype and ours.shape == theirs.shape
        assert mx.abs(ours.astype(mx.float32) - theirs.astype(mx.float32)).max().item() < bar


@pytest.mark.parametrize("batch, hidden", [(2, 5), (40, 64)])  # on one thread, and on all
def test_an_lstm_reads_no_memory_that_it_has_not_written(
    batch: int, hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lay there before may be a signalling NaN, of which NumPy warns."""

    def full(shape: Any, dtype: Any = np.float32) -> np.ndarray:
        return np.full(shape, 0x7F800001, np.uint32).view(dtype)

    x, *weights, h, c = an_lstm(2, batch, 70, hidden)
    monkeypatch.setattr(lstm.np, "empty", full)
    monkeypatch.setattr(lstm.np, "empty_like", lambda array: full(array.shape))
    with np.errstate(all="raise", under="ignore"):
        found, (h, c) = lstm.lstm(x, *weights, (h, c))
    assert all(np.isfinite(np.array(one)).all() for one in (found, h, c))


@pytest.mark.parametrize("directions", [1, 2])
def test_lstm_is_that_of_torch(directions: int) -> None:
    rng = np.random.default_rng(9)
    torch.manual_seed(9)
    original = torch.nn.LSTM(6, 5, batch_first=True, bidirectional=directions == 2)
    state = {name: tensor.detach().numpy() for name, tensor in original.state_dict().items()}
    suffixes = ("", "_reverse")[:directions]
    layer = layers.LSTM(6, 5, directions)
    layer.Wx = mx.array(np.stack([state[f"weight_ih_l0{s}"] for s in suffixes]))
    layer.Wh = mx.array(np.stack([state[f"weight_hh_l0{s}"] for s in suffixes]))
    layer.bias = mx.array(np.stack([state[f"bias_ih_l0{s}"] + state[f"bias_hh_l0{s}"] for s in suffixes]))
    x = rng.normal(size=(2, 40, 6)).astype(np.float32)
    h0, c0 = (rng.normal(size=(directions, 2, 5)).astype(np.float32) for _ in range(2))
    with torch.no_grad():
        expected, (h, c) = original(torch.from_numpy(x), (torch.from_numpy(h0), torch.from_numpy(c0)))
    found, after = layer(mx.array(x), (mx.array(h0), mx.array(c0)))
    for ours, theirs in ((found, expected), (after[0], h), (after[1], c)):
        assert np.abs(np.array(ours) - theirs.numpy()).max() < 1e-6


def test_time_norm_is_instance_norm() -> None:
    """Torch's, with an offset that would cost a plain sum its digits; rows count only their own length."""
    rng = np.random.default_rng(10)
    original = torch.nn.InstanceNorm1d(4, affine=True)
    make.randomise(original)
    layer = layers.TimeNorm(4)
    layer.weight, layer.bias = (mx.array(p.detach().numpy()) for p in (original.weight, original.bias))
    x = (rng.normal(size=(3, 5003, 4)) + 20).astype(np.float32)
    with torch.no_grad():
        expected = original.double()(torch.from_numpy(x).double().transpose(1, 2)).transpose(1, 2).numpy()
    assert np.abs(np.array(layer(mx.array(x))) - expected).max() < 3e-5
    lengths = mx.array([5003, 100, 1])
    found = np.array(layer(mx.array(x), lengths))
    for row, length in enumerate((5003, 100, 1)):
        alone = np.array(layer(mx.array(x[row : row + 1, :length])))[0]
        assert np.abs(found[row, :length] - alone).max() < 1e-5


@pytest.mark.parametrize(("frames", "mask_frames"), [(30, 500), (36, 300), (24, 200), (125, 589), (63, 293), (125, 7)])
def test_masks_are_resampled_as_torch_does(frames: int, mask_frames: int) -> None:
    """Torch multiplies the position in float32, which for some lengths is not the whole-number division."""
    model = wespeaker.Model(
        wespeaker.ModelArgs(num_blocks=[1, 1, 1, 1], base_channels=1, num_mel_bins=8, embedding_size=16)
    )
    model.seg_1.weight, model.seg_1.bias = mx.eye(16), mx.zeros(16)
    rng = np.random.default_rng(frames)
    features = rng.normal(size=(1, frames, 8)).astype(np.float32)
    mask = rng.integers(0, 2, (1, 1, mask_frames)).astype(np.float32)
    weights = torch.nn.functional.interpolate(torch.from_numpy(mask), size=frames, mode="nearest").numpy()[0, 0]
    expected = (weights[:, None] * features[0]).sum(axis=0) / weights.sum()
    found = np.array(model.pool(mx.array(features), mx.array(mask)))[0, 0, :8]
    assert np.abs(found - expected).max() < 1e-5


def test_gradients_pass_the_lstm_in_training() -> None:
    layer = layers.LSTM(3, 4)
    layer.Wx, layer.Wh = mx.random.normal(layer.Wx.shape), mx.random.normal(layer.Wh.shape)
    layer.train()
    x = mx.random.normal((1, 5, 3))
    gradient = mx.grad(lambda x: layer(x)[0].sum())(x)
    assert float(mx.abs(gradient).max()) > 1e-3


def test_a_language_is_never_ignored(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="eng"):
        mlx_speech.load("silero_vad", language="eng")


@pytest.mark.parametrize("samples", [0, 100, 990])
def test_too_few_samples_for_a_segmentation(samples: int) -> None:
    model = pyannet.Model(pyannet.ModelArgs(num_classes=7, lstm_num_layers=1, lstm_hidden_size=4))
    with pytest.raises(OptionError, match="too few"):
        model(mx.zeros((1, samples)))
