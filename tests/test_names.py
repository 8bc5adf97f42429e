"""The tables of names, what a name leads to, and what `load` makes of it: a model's folder, quantized originals."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from test_convert import Shelf, whisper_input
from test_load import cached

import mlx_speech
from mlx_speech import names, package_data
from mlx_speech.errors import OptionError
from mlx_speech.models.whisper import Model, ModelArgs
from mlx_speech.names import ALIGN, WHISPER, Source, align_source, whisper_sources

# width, heads, layers of the encoder and of the decoder; large-v3 and its kin have 128 mels, English 51864 tokens
SHAPES = {"tiny": (384, 6, 4, 4), "base": (512, 8, 6, 6), "small": (768, 12, 12, 12), "medium": (1024, 16, 24, 24)}
SHAPES |= {"large": (1280, 20, 32, 32), "large-v3-turbo": (1280, 20, 32, 4), "turbo": (1280, 20, 32, 4)}
SHAPES |= {"distil-small": (768, 12, 12, 4), "distil-medium": (1024, 16, 24, 2), "distil-large": (1280, 20, 32, 2)}


def shape(name: str) -> ModelArgs:
    stem = next(k for k in sorted(SHAPES, key=len, reverse=True) if name.startswith(k))
    (width, heads, encoder, decoder), newer = SHAPES[stem], "v3" in name or name in ("large", "turbo")
    return ModelArgs(
        n_mels=128 if newer else 80,
        n_audio_ctx=1500,
        n_audio_state=width,
        n_audio_head=heads,
        n_audio_layer=encoder,
        n_vocab=51866 if newer else 51864 if name.endswith(".en") else 51865,
        n_text_ctx=448,
        n_text_state=width,
        n_text_head=heads,
        n_text_layer=decoder,
    )


# --- tables ----------------------------------------------------------------------------------------------------------


def test_every_name_is_there() -> None:
    import whisper

    distilled = [f"distil-{size}" for size in ("small.en", "medium.en", "large-v2", "large-v3", "large-v3.5")]
    assert sorted(WHISPER) == sorted([*whisper.available_models(), *distilled])
    assert names.DEFAULT_GPU in WHISPER and names.DEFAULT_CPU in WHISPER
    for name, model in WHISPER.items():
        assert model.original.split("/")[0] == ("distil-whisper" if name.startswith("distil") else "openai")
        assert model.use and ("English" in model.use) == (name.endswith(".en") or name.startswith("distil"))
        if name not in ("large-v1", "large", "turbo"):  # the hub calls large-v1 "large"
            assert model.original.endswith(name)
            assert model.mlx is None or name in model.mlx.replace("distil-whisper", "distil")


@pytest.mark.parametrize("name", WHISPER)
def test_sizes(name: str) -> None:
    """Counted from the shapes; nothing is computed."""
    model = Model(shape(name))
    assert WHISPER[name].millions == round(sum(array.size for array in model.arrays().values()) / 1e6, 1)


def test_bytes_of_a_quantized_model(shelf: Shelf) -> None:
    """Of what is quantized, as the converter quantizes; the rest (positions, convolutions, norms) is little."""
    layer = mx.quantize(mx.zeros((512, 512), dtype=mx.float16), group_size=64, bits=4)
    one = names.Whisper("", 512 * 512 / 1e6, "")
    assert one.megabytes(4) * 1e6 == sum(array.nbytes for array in layer)
    assert one.megabytes() * 1e6 == 512 * 512 * 2
    assert WHISPER["large-v3-turbo"].megabytes() == pytest.approx(1617.8) and WHISPER["tiny"].megabytes(8) < 41


def test_alignment_models_are_those_of_whisperx() -> None:
    spec = importlib.util.find_spec("whisperx")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("whisperx is not installed")
    tree = ast.parse((Path(next(iter(spec.submodule_search_locations))) / "alignment.py").read_text())
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)  # type: ignore[attr-defined]
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
    }
    bundles, repos = tables["DEFAULT_ALIGN_MODELS_TORCH"], tables["DEFAULT_ALIGN_MODELS_HF"]
    assert set(ALIGN) == {*bundles, *repos} and len(ALIGN) == 41
    assert {code: repo for code, repo in ALIGN.items() if code not in bundles} == repos


def test_alignment_models() -> None:
    from mlx_speech.hub import is_repo_id
    from mlx_speech.languages import LANGUAGES

    assert set(ALIGN) <= set(LANGUAGES) and all(is_repo_id(repo) and "/" in repo for repo in ALIGN.values())
    assert align_source("en") == "facebook/wav2vec2-base-960h" and align_source("xx") is None
    for code in ("fr", "de", "es", "it"):
        repo = align_source(code)
        assert repo is not None and repo.endswith(LANGUAGES[code])


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHISPER)
def test_sources_of_every_name(name: str) -> None:
    model = WHISPER[name]
    plain = whisper_sources(name)
    assert plain[-1] == Source(model.original) and len(plain) == (2 if model.mlx else 1)
    for suffix, bits in (("-q4", 4), ("-4bit", 4), ("-q8", 8), ("-8bit", 8), ("-6bit", 6)):
        *ready, original = whisper_sources(name + suffix)
        assert original == Source(model.original, bits)
        assert len(ready) <= 1 and all(source.q_bits is None for source in ready)
        for source in ready:
            assert re.fullmatch(rf"{plain[0].repo}-(q{bits}|{bits}bit)", source.repo)
    assert whisper_sources(f"{name}-q4") == whisper_sources(f"{name}-4bit")


def test_sources() -> None:
    turbo, original = "mlx-community/whisper-large-v3-turbo", "openai/whisper-large-v3-turbo"
    assert whisper_sources("turbo") == whisper_sources("large-v3-turbo") == [Source(turbo), Source(original)]
    assert whisper_sources("turbo-4bit") == [Source(f"{turbo}-q4"), Source(original, 4)]
    assert whisper_sources("turbo-8bit") == [Source(original, 8)]
    assert whisper_sources("small-q8")[0] == Source("mlx-community/whisper-small-mlx-8bit")
    assert whisper_sources("large") == whisper_sources("large-v3")
    assert whisper_sources("distil-small.en-8bit") == [Source("distil-whisper/distil-small.en", 8)]


def test_everything_else_is_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine.pt").touch()
    (tmp_path / "small").mkdir()
    for name in ("org/name", "org/name-4bit", "./small", "/nowhere/model", "mine", "mine.pt", str(tmp_path), "~"):
        assert whisper_sources(name) == [Source(name)]
    assert len(whisper_sources("small")) == 2, "a name of the table is a name"
    for name, advice in (
        ("smal", "did you mean small"),
        ("large-v3-trubo", "large-v3-turbo"),
        ("Large-V3", "large-v3"),
        ("medium.e-4bit", "medium.en-4bit or medium-4bit"),
        ("nothing.pt", "choose from tiny, tiny.en"),
        ("", "choose from"),
        ("x" * 5000, "choose from"),
        ("a\0b", "choose from"),
        ("~nobody-of-that-name", "choose from"),
    ):
        with pytest.raises(OptionError, match=re.escape(advice)) as caught:
            whisper_sources(name)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


def test_the_folder_of_a_model(shelf: Shelf, tmp_path: Path) -> None:
    converted = shelf.converted("whisper safetensors")
    assert mlx_speech.load(converted).folder == converted
    source = shutil.copytree(shelf["whisper safetensors"], tmp_path / "hf")
    (source / "tokenizer.json").write_text('{"model": "tokens"}')
    model = mlx_speech.load(source)
    assert [model.folder] == cached() and model.folder is not None
    assert (model.folder / "tokenizer.json").read_text() == '{"model": "tokens"}', "it comes along"
    assert mlx_speech.load(shelf["whisper pt"]).folder in cached()
    for place in (shelf["whisper npz"], shelf["whisper npz"] / "weights.npz"):
        assert mlx_speech.load(place).folder == shelf["whisper npz"], "built in memory, from there"
    assert mlx_speech.load("silero_vad").folder == package_data.BUNDLED["silero_vad"]
    assert Model(shape("tiny")).folder is None
    pipeline = mlx_speech.load(shelf.converted("pipeline"))
    assert pipeline.folder == shelf.converted("pipeline")
    assert pipeline.segmentation.folder == pipeline.folder / "segmentation"


def encoded(model: object) -> np.ndarray:
    assert isinstance(model, Model)
    return np.array(model.encoder(mx.array(whisper_input()[0])))


@pytest.mark.parametrize("name", ["whisper safetensors", "whisper pt"])
@pytest.mark.parametrize("bits", [4, 8])
def test_an_original_is_quantized_into_the_cache(shelf: Shelf, name: str, bits: int) -> None:
    plain = mlx_speech.load(shelf[name])
    model = mlx_speech.load(shelf[name], q_bits=bits)
    assert len(cached()) == 2 and model.folder != plain.folder and model.folder is not None
    assert model.folder.name.startswith(f"{shelf[name].stem}-{bits}bit-")
    stated = json.loads((model.folder / "config.json").read_text())["quantization"]
    assert (stated["bits"], stated["group_size"]) == (bits, 64)
    expected = mlx_speech.load(shelf.converted(name, quantize=True, q_bits=bits))
    for key, array in expected.arrays().items():
        assert mx.array_equal(model.arrays()[key], array), key
    state = (model.folder / "model.safetensors").stat().st_mtime_ns
    again = mlx_speech.load(shelf[name], q_bits=bits)
    assert (model.folder / "model.safetensors").stat().st_mtime_ns == state and again.folder == model.folder
    assert len(cached()) == 2
    assert mlx_speech.load(shelf[name], q_bits=3).folder not in (plain.folder, model.folder)


def test_what_is_in_mlx_layout_is_quantized_in_memory(shelf: Shelf) -> None:
    model = mlx_speech.load(shelf["whisper npz"], q_bits=4)
    expected = mlx_speech.load(shelf["whisper npz 4 bits"])
    assert not cached() and model.folder == shelf["whisper npz"]
    for key, array in expected.arrays().items():
        assert mx.allclose(model.arrays()[key], array, atol=1e-6), key


def test_what_is_quantized_already(shelf: Shelf) -> None:
    """As many bits are what was asked for; others are an error, in one line."""
    for place, bits in (
        (shelf["whisper npz 4 bits"], 4),
        (shelf["whisper weights 8 bits"], 8),
        (shelf.converted("whisper safetensors", quantize=True), 4),
    ):
        assert mlx_speech.load(place, q_bits=bits).folder == place
        with pytest.raises(OptionError, match="already") as caught:
            mlx_speech.load(place, q_bits=6)
        assert str(place) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(OptionError, match="is converted already, unquantized: convert the original again"):
        mlx_speech.load(shelf.converted("whisper safetensors"), q_bits=4)
    with pytest.raises(OptionError, match="choose from 2, 3, 4, 5, 6, 8"):
        mlx_speech.load(shelf["whisper safetensors"], q_bits=7)
    assert not cached()


def test_what_is_never_quantized_is_loaded_as_it_is(shelf: Shelf) -> None:
    plain, model = mlx_speech.load(shelf["pyannet"]), mlx_speech.load(shelf["pyannet"], q_bits=4)
    assert all(mx.array_equal(array, plain.arrays()[name]) for name, array in model.arrays().items())


def model_table() -> str:
    """The README's table of models: what is downloaded from the first source, and what is held in float16."""
    rows = ["| `--model` | download | memory | for whom |\n|---|---|---|---|\n"]
    for name, model in names.WHISPER.items():
        if name in ("large", "turbo"):
            continue
        also = {"large-v3": ", `large`", "large-v3-turbo": ", `turbo`"}.get(name, "")
        size = f"{model.megabytes() / 1000:.1f} GB" if model.megabytes() > 1000 else f"{model.megabytes():.0f} MB"
        small = model.megabytes(4)
        rows.append(f"| `{name}`{also} | {size} | {size}; `-q4` {small:.0f} MB | {model.use} |\n")
    return "".join(rows)


def test_the_readme_has_the_models() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert readme.split("<!-- models -->\n")[1].split("<!-- /models -->")[0] == model_table()
