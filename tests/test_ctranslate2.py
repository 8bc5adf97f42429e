"""Whispers in CTranslate2's format: every type of weight, what CTranslate2 itself makes of the same file, damage."""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import ctranslate2_file as ct2
import mlx.core as mx
import numpy as np
import originals as make
import pytest
import torch
from conftest import absent
from hub_server import HubServer, Repo
from test_convert import config, contents, dtypes, hub_environment, python, same, weights

import mlx_speech
from mlx_speech.checkpoint import load_folder
from mlx_speech.convert import convert
from mlx_speech.convert.formats.ctranslate2 import read_ctranslate2, recognises
from mlx_speech.errors import ConfigError, CorruptFile, SourceError, UnknownFamily, WeightsMismatch
from mlx_speech.models import whisper
from mlx_speech.stages.whisper.tokenizer import Tokenizer

DIMS = {**make.NARROW, "n_audio_ctx": 60}
DISTIL_V3 = {**make.NARROW_V3, "n_audio_ctx": 60}  # 128 mels, four layers and one
TINY = {"n_mels": 80, "n_audio_ctx": 8, "n_audio_state": 12, "n_audio_head": 3, "n_audio_layer": 1}
TINY |= {"n_vocab": 300, "n_text_ctx": 6, "n_text_state": 12, "n_text_head": 3, "n_text_layer": 1}
SHAPES = {"narrow": DIMS, "distil of large-v3": DISTIL_V3, "three heads": TINY}
# stored as floats in this type; what is quantized comes in float32
PLAIN = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@cache
def variables(shape: str = "narrow") -> ct2.Variables:
    return ct2.variables(make.whisper_openai(SHAPES[shape]).state_dict(), SHAPES[shape])


def of_kind(kind: str, shape: str = "narrow") -> ct2.Variables:
    return ct2.of_kind(variables(shape), kind)


def openai(path: Path, kind: str, shape: str) -> Path:
    """The weights that the variables of this kind stand for, in OpenAI's format."""
    state = ct2.state_dict(ct2.dequantized(of_kind(kind, shape)), SHAPES[shape])
    state = {name: tensor.to(PLAIN.get(kind, torch.float32)) for name, tensor in state.items()}
    torch.save({"dims": SHAPES[shape], "model_state_dict": state}, path)
    return path


# --- the same weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ct2.KINDS)
def test_the_same_weights_in_both_formats(kind: str, shape: str, tmp_path: Path) -> None:
    source = ct2.save(tmp_path / "ct2", of_kind(kind, shape))
    convert(str(source), tmp_path / "a")
    convert(str(openai(tmp_path / "narrow.pt", kind, shape)), tmp_path / "b")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert set(dtypes(tmp_path / "a").values()) == {kind if kind in PLAIN else "float32"}
    ours = config(tmp_path / "a")
    theirs = config(tmp_path / "b")
    assert {**ours, "source": None} == {**theirs, "source": None}
    assert {key: ours[key] for key in SHAPES[shape]} == SHAPES[shape]
    assert list(ours["source"]["files"]) == ["model.bin"]


@pytest.mark.parametrize("kind", ["int8", "int16"])
def test_quantized_weights_are_near_what_was_quantized(kind: str, tmp_path: Path) -> None:
    """Within half a step of a row, or of the whole variable."""
    convert(str(ct2.save(tmp_path / kind, of_kind(kind))), tmp_path / "a")
    convert(str(ct2.save(tmp_path / "float32", variables())), tmp_path / "b")
    exact = weights(tmp_path / "b")
    changed = 0
    for name, array in weights(tmp_path / "a").items():
        largest = np.abs(exact[name]).max(axis=tuple(range(1, array.ndim)), keepdims=True) if kind == "int8" else None
        step = largest / 127 if largest is not None else 6 / 1024  # no weight here is larger than 6
        assert np.abs(exact[name]).max() < 6
        assert (np.abs(array - exact[name]) <= 0.5001 * step).all(), name
        changed += not np.array_equal(array, exact[name])
    assert changed > 30


def test_loading_a_folder_and_the_file_itself(tmp_path: Path) -> None:
    """Told by what is in it: neither its name nor its ending says it."""
    source = ct2.save(tmp_path / "source", of_kind("float16"))
    convert(str(source), tmp_path / "out")
    expected = load_folder(tmp_path / "out").arrays()
    (tmp_path / "alone").mkdir()
    for path in (source, source / "model.bin"):
        found = mlx_speech.load(path)
        assert isinstance(found, whisper.Model)
        assert all(mx.array_equal(array, expected[name]) for name, array in found.arrays().items())
    for name in ("whisper.pt", "whisper.safetensors", "whisper.npz", "whisper", "model.gguf"):
        other = tmp_path / "alone" / name
        other.write_bytes((source / "model.bin").read_bytes())
        found = mlx_speech.load(other)
        assert all(mx.array_equal(array, expected[name]) for name, array in found.arrays().items())


def test_what_lies_beside_the_weights(tmp_path: Path) -> None:
    """The tokenizer comes along, and what config.json says, by transformers' names."""
    heads = [[1, 0], [0, 1]]
    source = ct2.save(
        tmp_path / "source",
        of_kind("float16"),
        alignment_heads=heads,
        suppress_ids=[1, 2, 7],
        suppress_ids_begin=[220, 257],
    )
    (source / "tokenizer.json").write_text("{}")
    (source / "preprocessor_config.json").write_text('{"feature_size": 80}')
    out = tmp_path / "out"
    convert(str(source / "model.bin"), out)
    assert config(out)["alignment_heads"] == heads
    stated = json.loads((out / "generation_config.json").read_text())
    assert stated == {"alignment_heads": heads, "suppress_tokens": [1, 2, 7], "begin_suppress_tokens": [220, 257]}
    assert (out / "tokenizer.json").read_text() == "{}"
    assert (out / "preprocessor_config.json").read_text() == '{"feature_size": 80}'
    assert (out / "vocabulary.json").read_bytes() == (source / "vocabulary.json").read_bytes()
    theirs = '{"alignment_heads": [[0, 0]], "suppress_tokens": [5]}'  # transformers' own, where somebody put it there
    (source / "generation_config.json").write_text(theirs)
    convert(str(source), out, overwrite=True)
    assert config(out)["alignment_heads"] == [[0, 0]] and (out / "generation_config.json").read_text() == theirs


@pytest.mark.parametrize("wrong", [[[9, 9]], "x", [[0]], {"a": 1}, [["a", 0]]])
def test_odd_settings_beside_the_weights(wrong: Any, tmp_path: Path) -> None:
    """As with transformers' files: what does not fit this decoder is not taken."""
    source = ct2.save(tmp_path / "source", of_kind("float16"), alignment_heads=wrong, suppress_ids=wrong)
    convert(str(source), tmp_path / "out")
    assert config(tmp_path / "out")["alignment_heads"] == [[1, 0], [1, 1]]
    assert set(json.loads((tmp_path / "out" / "generation_config.json").read_text())) == {"alignment_heads"}


def test_its_list_of_tokens_is_a_tokenizer(tmp_path: Path) -> None:
    """Where nobody copied tokenizer.json beside it, as CTranslate2's own converter leaves it."""
    source = ct2.save(tmp_path / "source", of_kind("float16"))
    letters = [chr(k) for k in range(33, 127)]
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>"]
    special += ["<|startoflm|>", "<|startofprev|>", "<|nocaptions|>", "<|notimestamps|>"]
    words = ["th", "the", "ca", "cat"]
    times = [f"<|{k * 0.02:.2f}|>" for k in range(1000 - len(letters) - len(words) - len(special))]
    (source / "vocabulary.json").write_text(json.dumps([*letters, *words, *special, *times]))
    model = mlx_speech.load(source)
    found = Tokenizer.find(model.folder, model.args.n_vocab)
    assert found.n_vocab == 1000 and found.eot == len(letters) + len(words)
    assert found.encode("thecat") == [found.eot - 3, found.eot - 1] and list(found.languages) == ["en"]


def test_aliases(tmp_path: Path) -> None:
    """CTranslate2 keeps equal variables once, whatever they are; a quantized one's scale goes with it."""
    found = of_kind("int8")
    equal = ("decoder/layer_0/self_attention/linear_1", "decoder/layer_1/self_attention/linear_1")
    for leaf in ("weight", "weight_scale", "bias"):
        found[f"{equal[1]}/{leaf}"] = found[f"{equal[0]}/{leaf}"]
    (tmp_path / "a.bin").write_bytes(ct2.serialized(found, {}))  # all of them
    (tmp_path / "c.bin").write_bytes(ct2.serialized({**found, **projection(found)}, {}))
    for leaf in ("weight", "weight_scale", "bias"):
        del found[f"{equal[1]}/{leaf}"]
    aliases = {f"{equal[1]}/{leaf}": f"{equal[0]}/{leaf}" for leaf in ("weight", "bias")}
    (tmp_path / "b.bin").write_bytes(ct2.serialized(found, {**ct2.ALIASES, **aliases}))
    for name in ("a", "b", "c"):
        convert(str(tmp_path / f"{name}.bin"), tmp_path / name)
        assert same(weights(tmp_path / name), weights(tmp_path / "a")), name


def projection(found: ct2.Variables) -> ct2.Variables:
    """The output layer as variables of its own."""
    leaves = ("weight", "weight_scale")
    return {f"decoder/projection/{leaf}": found[f"decoder/embeddings/{leaf}"] for leaf in leaves}


def test_a_dry_run_accounts_for_every_variable(tmp_path: Path) -> None:
    source = ct2.save(tmp_path / "source", of_kind("int8"))
    lines = [line.split(" → ") for line in convert(str(source), dry_run=True).lines]
    mentioned = {name for line in lines for name in line[0].split(" + ")}
    assert mentioned == set(read_ctranslate2(source / "model.bin"))
    dropped = {line[0].rpartition("/")[2]: line[1] for line in lines if line[1].startswith("dropped: ")}
    assert set(dropped) >= {"num_heads", "activation"} and all(len(reason) > 12 for reason in dropped.values())


FLAGS = {
    "of the decoder": {"decoder/multi_query_attention": torch.tensor(1, dtype=torch.int8)},
    "of every layer": ct2.multi_query(DIMS),
}


@pytest.mark.parametrize("flags", FLAGS)
def test_flags_of_heads_that_share_keys_and_values(flags: str, tmp_path: Path) -> None:
    """Some versions write them, also where no heads do, as Whisper's."""
    found = {**of_kind("float16"), **FLAGS[flags]}
    convert(str(ct2.save(tmp_path / "a", of_kind("float16"))), tmp_path / "plain")
    convert(str(ct2.save(tmp_path / "b", found)), tmp_path / "out")
    assert same(weights(tmp_path / "out"), weights(tmp_path / "plain"))
    dropped = [line for line in convert(str(tmp_path / "b"), dry_run=True).lines if "multi_query" in line]
    assert len(dropped) == len(FLAGS[flags]) and all("dropped: not used by Whisper" in line for line in dropped)


def test_a_repository_of_faster_whisper(tmp_path: Path) -> None:
    """By its name on the hub: weights, settings and tokenizer are fetched, and nothing else."""
    source = ct2.save(tmp_path / "source", of_kind("float16"), alignment_heads=[[0, 1]])
    for name in ("tokenizer.json", "preprocessor_config.json"):
        (source / name).write_text(json.dumps({"name": name}))
    files = contents(source)
    card = b"---\nlicense: mit\n---\n"
    repo = Repo({**files, "README.md": card, "assets/plot.png": b"x", "flax_model.msgpack": b"x"})
    with HubServer({"Systran/faster-whisper-narrow": repo}) as hub:
        env = hub_environment(hub.url, tmp_path / "home")
        python(tmp_path, "-m", "mlx_speech.convert", "--model", "Systran/faster-whisper-narrow", env=env)
        assert hub.downloaded() == {*files, "README.md"}
    out = tmp_path / "mlx_models" / "faster-whisper-narrow"
    convert(str(source), tmp_path / "out")
    assert same(weights(out), weights(tmp_path / "out"))
    assert config(out)["alignment_heads"] == [[0, 1]]
    assert (
        config(out)["source"]["repo"] == "Systran/faster-whisper-narrow" and config(out)["source"]["licence"] == "mit"
    )
    assert {"tokenizer.json", "vocabulary.json", "preprocessor_config.json"} <= set(contents(out))


# --- as CTranslate2 computes it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ct2.KINDS)
def test_ctranslate2_itself(kind: str, tmp_path: Path) -> None:
    """It takes the same file, and gives the same encodings, and the same scores of every token step by step."""
    try:
        import ctranslate2
    except ImportError:
        absent("ctranslate2 is not installed")
    source = ct2.save(tmp_path / "source", of_kind(kind))
    original = ctranslate2.models.Whisper(str(source), device="cpu", compute_type="float32", intra_threads=1)
    convert(str(source), tmp_path / "out")
    model: Any = load_folder(tmp_path / "out", dtype="float32")
    mel = np.random.default_rng(7).normal(size=(1, 2 * DIMS["n_audio_ctx"], 80)).astype(np.float32)
    features = ctranslate2.StorageView.from_array(np.ascontiguousarray(mel.transpose(0, 2, 1)))
    encoded = np.array(original.encode(features))
    assert np.abs(np.array(model.encoder(mx.array(mel))) - encoded).max() < 1e-4 * encoded.std()
    tokens = json.loads((source / "vocabulary.json").read_text())
    names = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
    prompt = [tokens.index(name) for name in names]
    options = {"beam_size": 1, "max_length": 8, "suppress_blank": False, "suppress_tokens": []}
    (result,) = original.generate(features, [prompt], **options, return_logits_vocab=True)
    written = result.sequences_ids[0]
    expected = np.stack([np.array(step).reshape(-1) for step in result.logits[0]])
    assert len(expected) == len(written) > 2
    found = np.array(model(mx.array(mel), mx.array([[*prompt, *written[:-1]]])))[0, len(prompt) - 1 :]
    assert np.abs(found - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("kind", ["float16", "int8_float16"])
def test_verify(kind: str, tmp_path: Path) -> None:
    """Beside openai-whisper's model with the same weights."""
    report = convert(str(ct2.save(tmp_path / "source", of_kind(kind))), tmp_path / "out", verify=True)
    assert "encoder" in report.tables[""] and config(tmp_path / "out")["source"]["original"] == "openai-whisper"


# --- what is no such file --------------------------------------------------------------------------------------------


def refused(path: Path, kind: type[SourceError], *says: str) -> None:
    """One line that names the file, says these things and writes nothing."""
    with pytest.raises(SourceError) as caught:
        convert(str(path), path.parent / "out")
    message = str(caught.value)
    assert type(caught.value) is kind and message.startswith(str(path)) and "\n" not in message, message
    assert len(message) < 1000
    for text in says:
        assert text in message, message
    assert not (path.parent / "out").exists()


def tiny() -> ct2.Variables:
    return dict(of_kind("int8", "three heads"))


def test_variables_that_are_missing_or_too_many_are_all_listed(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    found = tiny()
    for name in ("encoder/conv2/bias", "decoder/layer_norm/gamma", "decoder/layer_0/attention/linear_2/bias"):
        del found[name]
    found["decoder/layer_0/ffn/linear_0_noact/weight"] = torch.zeros(2, 2)
    found["encoder/layer_5/ffn/linear_0/bias"] = torch.zeros(2)
    found["decoder/embeddings/weight_zero"] = torch.zeros(2, dtype=torch.int32)
    path.write_bytes(ct2.serialized(found))
    missing = ("encoder.conv2.bias", "decoder.ln.weight", "decoder.blocks.0.cross_attn.out.bias")
    extra = (
        "decoder/layer_0/ffn/linear_0_noact/weight",
        "encoder.blocks.5.mlp1.bias",
        "decoder/embeddings/weight_zero",
    )
    refused(path, WeightsMismatch, "3 tensors missing", "3 tensors unexpected", *missing, *extra)


def test_every_variable_counts(tmp_path: Path) -> None:
    """Without any one of them, or with it in another shape, it is refused; settings may be left out."""
    path = tmp_path / "model.bin"
    optional = {"decoder/alignment_heads", "decoder/alignment_layer", *(f"decoder/{name}" for name in ct2.SETTINGS)}
    for name, tensor in tiny().items():
        if name in optional:
            continue
        without = {other: value for other, value in tiny().items() if other != name}
        path.write_bytes(ct2.serialized(without, {}))
        assert refusal(path), name
        part = tensor.reshape(1) if tensor.ndim == 0 else tensor
        path.write_bytes(ct2.serialized({**tiny(), name: torch.cat([part, part], dim=-1)}, {}))
        assert refusal(path), name
    path.write_bytes(ct2.serialized({name: value for name, value in tiny().items() if name not in optional}, {}))
    assert not refusal(path)


def refusal(path: Path) -> str:
    """The error of a conversion that is only planned; "" where it is none."""
    try:
        convert(str(path), dry_run=True)
    except SourceError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        return str(error)
    return ""


@pytest.mark.parametrize(
    "name, value, says",
    [
        ("decoder/activation", 0, "decoder/activation=0"),
        ("decoder/pre_norm", 0, "decoder/pre_norm=0"),
        ("decoder/alibi", 1, "decoder/alibi=1"),
        ("decoder/scale_embeddings", 1, "decoder/scale_embeddings=1"),
        ("decoder/start_from_zero_embedding", 1, "start_from_zero_embedding=1"),
        ("encoder/num_heads", 0, "n_audio_head"),
        ("encoder/num_heads", -1, "n_audio_head"),
        ("decoder/num_heads", 5, "n_text_head"),
    ],
)
def test_settings_that_are_no_whispers(name: str, value: int, says: str, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(ct2.serialized({**tiny(), name: torch.tensor(value, dtype=torch.int16)}))
    refused(path, ConfigError, says)


def test_weights_that_are_no_whispers(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    found = {**of_kind("float32", "three heads")}
    bias = found["encoder/layer_0/self_attention/linear_0/bias"].clone()
    bias[12] = 1  # the first of the key's
    path.write_bytes(ct2.serialized({**found, "encoder/layer_0/self_attention/linear_0/bias": bias}))
    refused(path, ConfigError, "keys have a bias")
    path.write_bytes(ct2.serialized({**found, "decoder/projection/weight": torch.ones(300, 12)}, {}))
    refused(path, ConfigError, "output layer is not its token embedding")
    for number in (0.0, -1.0, float("nan"), float("inf")):
        scale = torch.full((300,), number)
        path.write_bytes(ct2.serialized({**tiny(), "decoder/embeddings/weight_scale": scale}))
        refused(path, CorruptFile, "decoder/embeddings/weight_scale: scales that are no positive numbers")
    for scale in (torch.ones(299), torch.ones(300, 1), torch.ones(300).half(), torch.ones(0)):
        path.write_bytes(ct2.serialized({**tiny(), "decoder/embeddings/weight_scale": scale}))
        refused(path, WeightsMismatch, "decoder/embeddings/weight: no quantized variable")
    path.write_bytes(ct2.serialized({**tiny(), "decoder/layer_norm/gamma_scale": torch.ones(12)}))
    refused(path, WeightsMismatch, "decoder/layer_norm/gamma: no quantized variable")
    without = {name: tensor for name, tensor in tiny().items() if name != "encoder/conv1/weight_scale"}
    path.write_bytes(ct2.serialized(without))
    refused(path, WeightsMismatch, "of the wrong type", "encoder.conv1.weight int8")


HEAD = struct.pack("<I", 6) + ct2.string("WhisperSpec") + struct.pack("<I", 3)
NONE = struct.pack("<I", 0)


def variable(
    name: bytes = b"a\0", length: int | None = None, shape: tuple = (2,), kind: int = 0, nbytes: int = 8
) -> bytes:
    described = struct.pack(f"<H{len(name)}s", len(name) if length is None else length, name)
    described += struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return HEAD + struct.pack("<I", 1) + described + struct.pack("<BI", kind, nbytes) + bytes(8) + NONE


ALIAS = HEAD + struct.pack("<I", 1) + ct2.entry("a", torch.zeros(2))
# what the file holds → what is wrong with it
WRONG: dict[str, tuple[bytes, type[SourceError], str]] = {
    "an older version": (struct.pack("<I", 5) + HEAD[4:] + NONE + NONE, CorruptFile, "version 5 of CTranslate2's"),
    "a newer version": (struct.pack("<I", 7) + HEAD[4:] + NONE + NONE, CorruptFile, "version 7 of CTranslate2's"),
    "an older revision": (HEAD[:-4] + struct.pack("<I", 2) + NONE + NONE, CorruptFile, "revision 2 of WhisperSpec"),
    "a translator": (
        struct.pack("<I", 6) + ct2.string("TransformerSpec") + struct.pack("<I", 7) + NONE,
        UnknownFamily,
        "'TransformerSpec' of CTranslate2; of its models only WhisperSpec",
    ),
    "a wav2vec2": (
        struct.pack("<I", 6) + ct2.string("Wav2Vec2Spec") + struct.pack("<I", 3) + NONE,
        UnknownFamily,
        "'Wav2Vec2Spec' of CTranslate2",
    ),
    "nothing": (HEAD + NONE + NONE, UnknownFamily, "no known family"),
    "no numbers": (HEAD, CorruptFile, "ends too early"),
    "no aliases": (variable()[:-4], CorruptFile, "ends too early"),
    "bytes behind it": (variable() + b"x", CorruptFile, "1 bytes follow"),
    "too many variables": (HEAD + struct.pack("<I", 2**32 - 1), CorruptFile, "4294967295 variables"),
    "too many aliases": (ALIAS + struct.pack("<I", 2**32 - 1), CorruptFile, "4294967295 variables"),
    "an empty name": (variable(b"\0"), CorruptFile, "a name of 1 bytes"),
    "no name": (variable(b""), CorruptFile, "a name of 0 bytes"),
    "a long name": (variable(b"a" * 60_000 + b"\0"), CorruptFile, "a name of 60001 bytes"),
    "a name without an end": (variable(b"ab"), CorruptFile, "for a name"),
    "two ends in a name": (variable(b"a\0b\0"), CorruptFile, "for a name"),
    "a line break in a name": (variable(b"a\nb\0"), CorruptFile, "for a name"),
    "a name that is no ASCII": (variable("ä\0".encode()), CorruptFile, "for a name"),
    "a name longer than the file": (variable(length=500), CorruptFile, "ends too early"),
    "many dimensions": (variable(shape=(1,) * 255), CorruptFile, "255 dimensions"),
    "an unknown type": (variable(kind=6), CorruptFile, "unknown type 6"),
    "fewer bytes than its shape": (variable(shape=(3,)), CorruptFile, "has 8 bytes for float32 [3]"),
    "more bytes than its shape": (variable(shape=(1,)), CorruptFile, "has 8 bytes for float32 [1]"),
    "a shape of endless size": (variable(shape=(2**32 - 1,) * 8), CorruptFile, "has 8 bytes for float32"),
    "four gigabytes": (variable(shape=(2**30 - 1,), nbytes=2**32 - 4), CorruptFile, "ends too early"),
    "a name twice": (
        HEAD + struct.pack("<I", 2) + 2 * ct2.entry("a", torch.zeros(2)) + NONE,
        CorruptFile,
        "two variables are named a",
    ),
    "an alias of nothing": (
        ALIAS + struct.pack("<I", 1) + ct2.string("b") + ct2.string("c"),
        CorruptFile,
        "b stands for c, which cannot be",
    ),
    "an alias of an alias": (
        ALIAS + struct.pack("<I", 2) + ct2.string("b") + ct2.string("a") + ct2.string("c") + ct2.string("b"),
        CorruptFile,
        "c stands for b, which cannot be",
    ),
    "an alias of itself": (
        ALIAS + struct.pack("<I", 1) + ct2.string("b") + ct2.string("b"),
        CorruptFile,
        "b stands for b, which cannot be",
    ),
    "an alias that is a variable": (
        ALIAS + struct.pack("<I", 1) + ct2.string("a") + ct2.string("a"),
        CorruptFile,
        "a stands for a, which cannot be",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_malformed_files(what: str, tmp_path: Path) -> None:
    content, kind, says = WRONG[what]
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    refused(path, kind, says)


def test_a_file_cut_anywhere(tmp_path: Path) -> None:
    whole = ct2.serialized(tiny())
    path = tmp_path / "model.bin"
    places = {*range(80), *range(80, len(whole), 97), *range(len(whole) - 80, len(whole))}
    for place in sorted(places):
        path.write_bytes(whole[:place])
        assert refusal(path), place
    path.write_bytes(whole)
    assert not refusal(path)


def test_any_byte_replaced(tmp_path: Path) -> None:
    """Read, or refused in one line: nothing else happens."""
    whole = ct2.serialized(tiny())
    path = tmp_path / "model.bin"
    random = np.random.default_rng(3)
    refusals = 0
    for place in [*range(64), *random.integers(0, len(whole), 400).tolist()]:
        changed = bytearray(whole)
        changed[place] ^= int(random.integers(1, 256))
        path.write_bytes(changed)
        refusals += bool(refusal(path))
    assert refusals > 60


def test_what_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    for content, expected in (
        (HEAD, True),
        (b"", False),
        (HEAD[:5], False),
        (HEAD[:10], False),
        (b"PK\x03\x04" + bytes(60), False),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", False),
        (struct.pack("<Q", 8) + b"{}      ", False),
        (struct.pack("<I", 6) + ct2.string("Whisper"), False),
        (struct.pack("<I", 0) + HEAD[4:], False),
        (struct.pack("<I", 10**6) + HEAD[4:], False),
        (struct.pack("<I", 6) + ct2.string("Änderungs-Spec"), False),
    ):
        path.write_bytes(content)
        assert recognises(path) is expected
