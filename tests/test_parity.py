"""The proof: every family against its PyTorch original, one harness for all cases, with the bars of `measures`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import originals as make
import pytest
import torch
from conftest import real, record

from mlx_speech import checkpoint, load_audio
from mlx_speech.convert import convert
from mlx_speech.convert.parity import measures
from mlx_speech.convert.parity.whisper import (
    WhisperOriginal,
    encoder_row,
    openai_whisper,
    whisper_of_transformers,
)

PAUSES = Path(checkpoint.__file__).parent / "assets" / "demo" / "pauses.flac"
PRECISIONS: dict[str, dict[str, Any]] = {
    "float16": {"dtype": "float16"},
    "8 bits": {"quantize": True, "q_bits": 8},
    "4 bits": {"quantize": True},
}


def package_file(package: str, name: str) -> Path:
    """A file of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / name


def audio(name: str | None = None) -> np.ndarray:
    if name == "noise":
        return make.babble(40).numpy()
    return load_audio(PAUSES if name is None else real(f"data/audio/{name}"))


@dataclass(frozen=True)
class Case:
    """A source on disk and its original in memory.

    build : makes both in a folder
    sequences : for Whisper's decoder
    smaller : the smaller precisions that are reported too
    """

    name: str
    family: str
    original: str
    build: Callable[[Path], tuple[Path, Any]]
    sequences: int = 200
    smaller: tuple[str, ...] = ()
    recording: str | None = None  # None: the demo; "noise": in which every filter of SincNet hears something
    options: dict[str, Any] = field(default_factory=dict)


def _silero(folder: Path) -> tuple[Path, Any]:
    path = package_file("silero_vad", "data/silero_vad.jit")
    return path, torch.jit.load(str(path)).eval()


def _pyannet(folder: Path, **options: Any) -> tuple[Path, Any]:
    model = make.pyannet(**options)
    loss = {"loss_func.weight": torch.zeros(3)}
    return make.save_lightning(model, folder / "pytorch_model.bin", extra=loss), model


def _wespeaker(folder: Path, own: bool = False, hyper_parameters: bool = False, **options: Any) -> tuple[Path, Any]:
    model = make.wespeaker(**options)
    if own:  # WeSpeaker's own .pt: no prefix, and the training classifier
        torch.save({**model.resnet.state_dict(), "projection.weight": torch.zeros(9, 64)}, folder / "avg_model.pt")
        return folder / "avg_model.pt", model
    return make.save_lightning(model, folder / "pytorch_model.bin", hyper_parameters=hyper_parameters), model


def _campplus(folder: Path, **sizes: int) -> tuple[Path, Any]:
    model = make.campplus(**sizes)
    return make.save_campplus(model, folder / "campplus_cn_common.bin"), model


def _plda(folder: Path) -> tuple[Path, Any]:
    from pyannote.audio.core.plda import PLDA

    path = real("weights/plda-community-1")
    return path, PLDA(path / "xvec_transform.npz", path / "plda.npz")


def _wav2vec2(folder: Path, kind: str, spelling: str = "new", **sizes: Any) -> tuple[Path, Any]:
    model = make.wav2vec2_transformers(kind, **sizes)
    make.save_wav2vec2(model, folder / "model", do_normalize=kind == "layer")
    if spelling == "old":  # the files of 2021
        (folder / "model" / "model.safetensors").unlink()
        names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        state = dict(model.state_dict())
        for new, old in names.items():
            for name in [name for name in state if name.endswith(new)]:
                state[name.replace(new, old)] = state.pop(name)
        torch.save(state, folder / "model" / "pytorch_model.bin")
    return folder / "model", make.remembered(lambda rows: model(rows).logits)


def _torchaudio(folder: Path, kind: str, published: int, surplus: tuple[int, ...], **options: Any) -> tuple[Path, Any]:
    """The file has the surplus rows that fairseq left; the original is torchaudio's model without them."""
    labels = published - len(surplus)
    model = make.wav2vec2_torchaudio(kind, labels, **options)
    state = dict(model.state_dict())
    for name in ("aux.weight", "aux.bias"):
        rows = list(state[name])
        for row in surplus:
            rows.insert(row, torch.full_like(rows[0], 99.0))
        state[name] = torch.stack(rows)
    torch.save(state, folder / "wav2vec2.pth")
    return folder / "wav2vec2.pth", lambda rows: model(rows)[0]


def _mms(folder: Path, **sizes: Any) -> tuple[Path, Any]:
    """A large model with adapters: the base in one file, German's adapter and head in another, labels per language."""
    from safetensors.torch import save_file

    model = make.wav2vec2_transformers("layer", **(sizes or make.W2V_NARROW), adapter_attn_dim=16)
    path = make.save_wav2vec2(model, folder / "mms", do_normalize=True, vocab={"eng": make.VOCAB, "deu": make.VOCAB})
    make.randomise(model, seed=9)
    original, own = type(model).from_pretrained(path).eval(), ("adapter_layer", "lm_head")
    original.load_state_dict({n: t for n, t in model.state_dict().items() if any(o in n for o in own)}, strict=False)
    samples = torch.from_numpy(make.speech(6))[None]
    make.balance(original.lm_head, original((samples - samples.mean()) / samples.std()).logits)
    adapter = {n: t.contiguous() for n, t in original.state_dict().items() if any(o in n for o in own)}
    save_file(adapter, path / "adapter.deu.safetensors")
    return path, lambda rows: original(rows).logits


def _openai(folder: Path, dims: dict[str, int]) -> tuple[Path, Any]:
    model = make.whisper_openai(dims)
    return make.save_openai(model, folder / "model.pt"), openai_whisper(model)


def _transformers(folder: Path, dims: dict[str, int], format: str = "safetensors") -> tuple[Path, Any]:
    model = make.whisper_transformers(dims)
    model.save_pretrained(folder / "model")
    if format != "safetensors":
        (folder / "model" / "model.safetensors").unlink()
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if format == "sharded":
            make.save_sharded(state, folder / "model")
        else:
            torch.save(state, folder / "model" / "pytorch_model.bin")
    return folder / "model", whisper_of_transformers(model)


def _case(name: str, family: str, original: str, build: Callable[..., tuple[Path, Any]], **rest: Any) -> Case:
    """A case; whatever of `rest` is not a field of it is a keyword of `build`."""
    fields = {key: rest.pop(key) for key in list(rest) if key in Case.__dataclass_fields__}
    return Case(name, family, original, partial(build, **rest), **fields)


silero = partial(_case, family="silero_vad", original="silero-vad", build=_silero)
segmentation = partial(_case, family="pyannet", original="pyannote.audio", build=_pyannet, recording="noise")
embedding = partial(_case, family="wespeaker", original="pyannote.audio", build=_wespeaker)
campplus = partial(_case, family="campplus", original="speakerlab", build=_campplus)
ctc = partial(_case, family="wav2vec2", original="transformers", build=_wav2vec2)
bundle = partial(_case, family="wav2vec2", original="torchaudio", build=_torchaudio)
openai = partial(_case, family="whisper", original="openai-whisper", build=_openai)
hf_whisper = partial(_case, family="whisper", original="transformers", build=_transformers)

DEEP = {"own": True, "channels": 4, "bottleneck": True, "embedding": 64}
GROUP, LAYER = ({"kind": kind, **make.W2V_NARROW} for kind in ("group", "layer"))
PER_LAYER = {"lstm": {"hidden_size": 32, "num_layers": 2, "monolithic": False}}
ONE_WAY = {"lstm": {"hidden_size": 32, "num_layers": 1, "bidirectional": False}}

CASES = [
    silero("Silero VAD 6.2 (real)"),
    silero("Silero VAD 6.2 (real), 60 s", recording="vad/silero_test.wav"),
    silero("Silero VAD 6.2 (real), jfk", recording="en/jfk.flac"),
    silero("Silero VAD 6.2 (real), Swedish", recording="sv/se10x016-08071999-1334_u0016002.wav"),
    silero("Silero VAD 6.2 (real), Japanese", recording="ja/common_voice_ja_24511055.mp3"),
    segmentation("PyanNet 10 s powerset", smaller=("float16",)),
    segmentation("PyanNet 5 s multilabel", powerset=False, duration=5.0),
    segmentation("PyanNet narrow, a module per layer", **PER_LAYER, linear={"hidden_size": 16, "num_layers": 1}),
    segmentation("PyanNet one direction, stride 5", **ONE_WAY, sincnet={"stride": 5}, linear={"num_layers": 0}),
    embedding("WeSpeaker ResNet34", smaller=("float16",)),
    embedding("WeSpeaker narrow", hyper_parameters=True, channels=8, embedding=128, fbank_centering_span=1.5),
    embedding("WeSpeaker ResNet152 narrow, own .pt", blocks=[3, 8, 36, 3], **DEEP),
    embedding("WeSpeaker ResNet221 narrow, own .pt", blocks=[6, 16, 48, 3], **DEEP),
    embedding("WeSpeaker ResNet293 narrow, own .pt", blocks=[10, 20, 64, 3], **DEEP),
    campplus("CAM++", smaller=("float16",)),
    campplus("CAM++ narrow, embedding of 512", growth_rate=8, init_channels=48, embedding_size=512),
    _case("PLDA of community-1 (real)", "plda", "pyannote.audio", _plda),
    ctc("wav2vec2-base", kind="group", smaller=("8 bits", "4 bits")),
    ctc("wav2vec2 narrow group norm", **GROUP, smaller=("float16",)),
    ctc("wav2vec2 narrow group norm, weight_g", spelling="old", **GROUP),
    ctc("wav2vec2 narrow layer norm", **LAYER, smaller=("float16",)),
    ctc("wav2vec2 narrow layer norm, weight_g", spelling="old", **LAYER),
    _case("MMS narrow, German adapter", "wav2vec2", "transformers", _mms, options={"language": "deu"}),
    bundle("torchaudio English", kind="group", published=32, surplus=(1, 2, 3)),
    bundle("torchaudio German", kind="group", published=36, surplus=(1, 2, 3, 35)),
    bundle("torchaudio MMS_FA", kind="layer", published=31, surplus=(1, 2, 3)),
    # full sizes are slow, and stand with real weights in test_real_parity.py; the narrow ones have 200 sequences
    openai("Whisper tiny", dims=make.TINY, sequences=80),
    hf_whisper("Whisper base", dims=make.BASE, sequences=80),
    openai("Whisper narrow", dims=make.NARROW, smaller=("float16", "8 bits", "4 bits")),
    hf_whisper("Whisper narrow, 128 mels, short decoder", dims=make.NARROW_V3),
    hf_whisper("Whisper narrow, sharded", dims=make.NARROW, format="sharded"),
    hf_whisper("Whisper narrow, pytorch_model.bin", dims=make.NARROW_V3, format="bin"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parity(case: Case, tmp_path: Path) -> None:
    source, original = case.build(tmp_path)
    inputs = measures.Inputs(audio(case.recording), sequences=case.sequences, varied=True)
    convert(str(source), tmp_path / "mlx", **case.options)
    rows = measures.measure(case.family, original, checkpoint.load_folder(tmp_path / "mlx"), inputs)
    record(case.name, case.original, "float32", rows)
    assert rows and all(row.ok for row in rows), measures.table([row for row in rows if not row.ok])
    assert not any("own rounding" in row.measure for row in rows), "random weights have to be well-conditioned"

    few = measures.Inputs(inputs.audio, sequences=16, judged=False)
    for name in case.smaller:
        convert(str(source), tmp_path / name, **PRECISIONS[name], **case.options)
        model = checkpoint.load_folder(tmp_path / name, dtype="float16" if name == "float16" else None)
        rows = measures.measure(case.family, original, model, few)
        record(case.name, case.original, name, rows)
        assert all(np.isfinite(row.value) for row in rows)


def test_the_harness_refuses_degenerate_outputs() -> None:
    model = make.wav2vec2_transformers("group", **make.W2V_NARROW)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    converted = type("Converted", (), {"args": type("Args", (), {"do_normalize": False})})()
    with pytest.raises(measures.ParityError, match="degenerate"):
        measures.measure("wav2vec2", lambda rows: model(rows).logits, converted, measures.Inputs(audio()))


def test_features_of_whisper_are_those_of_openai() -> None:
    import whisper

    from mlx_speech import features

    for n_mels in (80, 128):
        samples = audio()
        expected = whisper.log_mel_spectrogram(whisper.pad_or_trim(torch.from_numpy(samples)), n_mels).numpy().T
        found = np.array(features.log_mel(mx.array(samples), n_mels))
        assert np.abs(expected - found).max() < 1e-4


def test_not_a_number_is_no_parity() -> None:
    """NaN in one row of a batch, or in one sequence, must not be lost in a maximum."""
    model = make.wav2vec2_transformers("group", **make.W2V_NARROW)

    class Broken:
        args = type("Args", (), {"do_normalize": False})()

        def __call__(self, waveform: mx.array, lengths: mx.array | None = None) -> mx.array:
            logits = mx.array(model(torch.from_numpy(np.array(waveform))).logits.numpy())
            return logits if lengths is None else mx.concatenate([logits[:1], logits[1:] * float("nan")])

    rows = measures.measure("wav2vec2", lambda rows: model(rows).logits, Broken(), measures.Inputs(audio()))
    assert [row.ok for row in rows] == [True, True, False]


def encoder_that_rounds(offset: float, dtype: torch.dtype = torch.float32) -> WhisperOriginal:
    """The identity, but for what is lost of `x` beside an offset."""

    def encode(x: torch.Tensor) -> torch.Tensor:
        return (x.to(dtype) + offset) - offset

    return WhisperOriginal(encode, lambda *_: None, lambda: encoder_that_rounds(offset, torch.float64))


@pytest.mark.parametrize(
    ("offset", "apart", "ok"), [(0, 9e-4, True), (0, 2e-3, False), (3e4, 2e-3, True), (3e4, 5e-3, False)]
)
def test_the_bar_of_an_encoder_is_as_wide_as_the_originals_rounding_asks_for(
    offset: float, apart: float, ok: bool
) -> None:
    x = torch.rand(1, 80, 100, generator=torch.Generator().manual_seed(0))
    original = encoder_that_rounds(offset)
    expected = original.encode(x)
    row = encoder_row(original, x, expected, expected.numpy() + np.float32(apart))
    assert row.ok is ok
    assert ("own rounding" in row.measure) == (offset > 0)
    assert not encoder_row(original, x, expected, expected.numpy() * np.nan).ok


def test_an_original_that_only_rounds_proves_nothing() -> None:
    original = encoder_that_rounds(3e5)
    x = torch.rand(1, 80, 100)
    with pytest.raises(measures.ParityError, match="proves nothing"):
        encoder_row(original, x, original.encode(x), x.numpy() + 1)
