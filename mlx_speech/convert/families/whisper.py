"""Whisper: OpenAI's `.pt`, transformers' folders (fine-tuned, turbo, distil), mlx-community's repositories, and
CTranslate2's `model.bin`, which faster-whisper runs.

Sizes come from `dims`, transformers' config.json or mlx-whisper's, or are read off the weights. The encoder's positions
are kept as the source has them: OpenAI's were rounded to float16, and the formula in full precision gives encodings
that differ by 6e-3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mlx_speech.convert import fold
from mlx_speech.convert.formats import ctranslate2
from mlx_speech.convert.read import Source
from mlx_speech.convert.recipe import Drop, Recipe, Table, require, same
from mlx_speech.errors import ConfigError, WeightsMismatch, brief
from mlx_speech.hub import sha256
from mlx_speech.models.base import MAX_SIZE
from mlx_speech.models.whisper import sinusoids
from mlx_speech.tensors import FLOATS, Tensor, combine

PIPELINE_TAG = "automatic-speech-recognition"
TAGS = ("whisper", "automatic-speech-recognition")
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "normalizer.json",
    "special_tokens_map.json",
    "generation_config.json",
    "preprocessor_config.json",
    "*.tiktoken",
    "vocabulary.json",
    "vocabulary.txt",
)
TAKES_LANGUAGE = False

OPENAI: Table = {
    **same("conv{}", "ln_post", "positional_embedding", path="encoder."),
    **same("token_embedding", "ln", "positional_embedding", path="decoder."),
    "alignment_heads": Drop("kept in config.json"),
}
for _blocks in ("encoder.blocks.{}.", "decoder.blocks.{}."):
    for _part in ("attn", "cross_attn"):
        OPENAI |= same("query", "key", "value", "out", path=f"{_blocks}{_part}.")
    OPENAI |= same("attn_ln", "cross_attn_ln", "mlp_ln", "mlp1", "mlp2", path=_blocks)
    OPENAI[f"{_blocks}mlp.0"] = f"{_blocks}mlp1"
    OPENAI[f"{_blocks}mlp.2"] = f"{_blocks}mlp2"

# fmt: off
# transformers' names, without the leading "model."
TRANSFORMERS: Table = {
    "encoder.embed_positions.weight": "encoder.positional_embedding", "encoder.conv{}": "encoder.conv{}",
    "encoder.layer_norm": "encoder.ln_post", "decoder.embed_tokens": "decoder.token_embedding",
    "decoder.embed_positions.weight": "decoder.positional_embedding", "decoder.layer_norm": "decoder.ln",
    "proj_out": Drop("tied to the token embedding"),
}
_LAYER = {
    "self_attn.q_proj": "attn.query", "encoder_attn.q_proj": "cross_attn.query",
    "self_attn.k_proj": "attn.key", "encoder_attn.k_proj": "cross_attn.key",
    "self_attn.v_proj": "attn.value", "encoder_attn.v_proj": "cross_attn.value",
    "self_attn.out_proj": "attn.out", "encoder_attn.out_proj": "cross_attn.out",
    "self_attn_layer_norm": "attn_ln", "encoder_attn_layer_norm": "cross_attn_ln",
    "fc1": "mlp1", "fc2": "mlp2", "final_layer_norm": "mlp_ln",
}
for _side in ("encoder", "decoder"):
    for _theirs, _ours in _LAYER.items():
        TRANSFORMERS[f"{_side}.layers.{{}}.{_theirs}"] = f"{_side}.blocks.{{}}.{_ours}"

# CTranslate2's names. Query, key and value of self-attention, key and value of cross-attention are stacked there.
_UNUSED = Drop("not used by Whisper")
_SETTING = Drop("a setting, not a weight")
CTRANSLATE2: Table = {
    "encoder/position_encodings/encodings": "encoder.positional_embedding",
    "decoder/position_encodings/encodings": "decoder.positional_embedding",
    "decoder/embeddings/weight": "decoder.token_embedding.weight",
    "decoder/projection/weight": Drop("tied to the token embedding"),
    "encoder/num_heads": _SETTING, "decoder/num_heads": _SETTING, "decoder/activation": _SETTING,
    "decoder/pre_norm": _SETTING, "decoder/scale_embeddings": _SETTING, "decoder/start_from_zero_embedding": _SETTING,
    "decoder/alibi": _SETTING, "decoder/alibi_use_positive_positions": _UNUSED, "decoder/scale_alibi": _UNUSED,
    "decoder/alignment_layer": _UNUSED, "decoder/alignment_heads": _UNUSED,
    # whether keys and values are one for several heads: as written by some versions, also where they are not
    "decoder/multi_query_attention": _UNUSED, "decoder/layer_{}/attention/multi_query": _UNUSED,
    "encoder/layer_{}/self_attention/multi_query": _UNUSED, "decoder/layer_{}/self_attention/multi_query": _UNUSED,
}
_LINEAR = {
    "encoder/conv1": "encoder.conv1", "encoder/conv2": "encoder.conv2",
    "decoder/layer_{}/attention/linear_0": "decoder.blocks.{}.cross_attn.query",
    "decoder/layer_{}/attention/linear_2": "decoder.blocks.{}.cross_attn.out",
}
_STACKED = {"decoder/layer_{}/attention/linear_1": "decoder.blocks.{}.cross_attn"}
_NORM = {
    "encoder/layer_norm": "encoder.ln_post", "decoder/layer_norm": "decoder.ln",
    "decoder/layer_{}/attention/layer_norm": "decoder.blocks.{}.cross_attn_ln",
}
for _side in ("encoder", "decoder"):
    _theirs = f"{_side}/layer_{{}}"
    _ours = f"{_side}.blocks.{{}}"
    _LINEAR[f"{_theirs}/self_attention/linear_1"] = f"{_ours}.attn.out"
    _LINEAR[f"{_theirs}/ffn/linear_0"] = f"{_ours}.mlp1"
    _LINEAR[f"{_theirs}/ffn/linear_1"] = f"{_ours}.mlp2"
    _STACKED[f"{_theirs}/self_attention/linear_0"] = f"{_ours}.attn"
    _NORM[f"{_theirs}/self_attention/layer_norm"] = f"{_ours}.attn_ln"
    _NORM[f"{_theirs}/ffn/layer_norm"] = f"{_ours}.mlp_ln"
for _theirs, _ours in _LINEAR.items():
    CTRANSLATE2[f"{_theirs}/weight"] = f"{_ours}.weight"
    CTRANSLATE2[f"{_theirs}/bias"] = f"{_ours}.bias"
for _theirs, _ours in _NORM.items():
    CTRANSLATE2[f"{_theirs}/gamma"] = f"{_ours}.weight"
    CTRANSLATE2[f"{_theirs}/beta"] = f"{_ours}.bias"
for _theirs, _ours in _STACKED.items():
    for _part in ("query", "key", "value"):
        CTRANSLATE2[f"{_theirs}/weight/{_part}"] = f"{_ours}.{_part}.weight"
        CTRANSLATE2[f"{_theirs}/bias/{_part}"] = f"{_ours}.{_part}.bias"
    CTRANSLATE2[f"{_theirs}/bias/key"] = Drop("zero: Whisper's keys have no bias")
# What is stacked in a variable of which layer, in this order.
STACKED_PARTS = {"self_attention/linear_0": ("query", "key", "value"), "attention/linear_1": ("key", "value")}
# the only settings that are Whisper's: 3 is the exact GELU
SETTINGS = {
    "decoder/activation": 3, "decoder/pre_norm": 1, "decoder/scale_embeddings": 0, "decoder/alibi": 0,
    "decoder/start_from_zero_embedding": 0,
}

# transformers' name of each size → ours
SIZES = {
    "num_mel_bins": "n_mels", "vocab_size": "n_vocab",
    "max_source_positions": "n_audio_ctx", "max_target_positions": "n_text_ctx",
    "encoder_attention_heads": "n_audio_head", "decoder_attention_heads": "n_text_head",
    "encoder_layers": "n_audio_layer", "decoder_layers": "n_text_layer",
}
DIMS = (*SIZES.values(), "n_audio_state", "n_text_state")

# (layer, head) of the cross-attention that follows the audio; openai/whisper keeps them in code, keyed by name.
# Here by (vocabulary, width, decoder layers); large-v1 and large-v2 have the same sizes.
ALIGNMENT_HEADS = {
    (51864, 384, 4): "1,0 2,0 2,5 3,0 3,1 3,2 3,3 3,4",
    (51865, 384, 4): "2,2 3,0 3,2 3,3 3,4 3,5",
    (51864, 512, 6): "3,3 4,7 5,1 5,5 5,7",
    (51865, 512, 6): "3,1 4,2 4,3 4,7 5,1 5,2 5,4 5,6",
    (51864, 768, 12): "6,6 7,0 7,3 7,8 8,2 8,5 8,7 9,0 9,4 9,8 9,10 10,0 10,1 10,2 10,3 10,6 10,11 11,2 11,4",
    (51865, 768, 12): "5,3 5,9 8,0 8,4 8,7 8,8 9,0 9,7 9,9 10,5",
    (51864, 1024, 24): "11,4 14,1 14,12 14,14 15,4 16,0 16,4 16,9 17,12 17,14 18,7 18,10 18,15 20,0 20,3 20,9 20,14 "
    "21,12",
    (51865, 1024, 24): "13,15 15,4 15,15 16,1 20,0 23,4",
    (51865, 1280, 32): "10,12 13,17 16,11 16,12 16,13 17,15 17,16 18,4 18,11 18,19 19,11 21,2 21,3 22,3 22,9 22,12 "
    "23,5 23,7 23,13 25,5 26,1 26,12 27,15",
    (51866, 1280, 32): "7,0 10,17 12,18 13,12 16,1 17,14 19,11 21,4 24,1 25,6",
    (51866, 1280, 4): "2,4 2,11 3,3 3,6 3,11 3,14",
}
# fmt: on
LARGE_SIZE = (51865, 1280, 32)
PUBLISHED_WIDTHS = {width for _, width, _ in ALIGNMENT_HEADS}  # whose heads are 64 wide
LARGE_V1 = "9,19 11,2 11,4 11,17 22,7 22,11 22,17 23,2 23,15"
LARGE_V1_SHA256 = "e4b87e7e0bf463eb8e6956e646f1e277e901512310def2c24bf0e11bd3c28e9a"

KERNEL = 3  # of the convolutions
HEAD_WIDTH = 64
MAX_HEADS = 1024  # and layers
MAX_POSITIONS = 1 << 16


@dataclass(frozen=True)
class Spelling:
    """The tensors that a Whisper is recognised by and its sizes are read off, as one kind of source names them."""

    audio_positions: str
    text_positions: str
    embedding: str
    audio_layer: str
    text_layer: str
    convolution: str = "encoder.conv1.weight"


OPENAI_SPELLING = Spelling(
    "encoder.positional_embedding",
    "decoder.positional_embedding",
    "decoder.token_embedding.weight",
    "encoder.blocks.{}.attn_ln.weight",
    "decoder.blocks.{}.attn_ln.weight",
)
TRANSFORMERS_SPELLING = Spelling(
    "encoder.embed_positions.weight",
    "decoder.embed_positions.weight",
    "decoder.embed_tokens.weight",
    "encoder.layers.{}.self_attn_layer_norm.weight",
    "decoder.layers.{}.self_attn_layer_norm.weight",
)
CTRANSLATE2_SPELLING = Spelling(
    "encoder/position_encodings/encodings",
    "decoder/position_encodings/encodings",
    "decoder/embeddings/weight",
    "encoder/layer_{}/self_attention/layer_norm/gamma",
    "decoder/layer_{}/self_attention/layer_norm/gamma",
    "encoder/conv1/weight",
)
SPELLINGS = (OPENAI_SPELLING, TRANSFORMERS_SPELLING, CTRANSLATE2_SPELLING)


def recognise(source: Source) -> bool:
    """The first convolution and the decoder's positions, in one of the spellings."""
    return _spelling(source.tensors) is not None


def _spelling(tensors: dict[str, Tensor]) -> Spelling | None:
    """How a Whisper spells its tensors; None where they are no Whisper's."""
    for spelling in SPELLINGS:
        if spelling.convolution in tensors and spelling.text_positions in tensors:
            return spelling
    return None


def recipe(source: Source, language: str | None = None) -> Recipe:
    """Sizes, alignment heads, and the encoder's positions where the source has none.

    Raises `ConfigError` for sizes that are not stated and cannot be told, and for settings that are not Whisper's.
    """
    spelling = _spelling(source.tensors)
    if spelling is CTRANSLATE2_SPELLING:
        return _ctranslate2(source)
    if spelling is OPENAI_SPELLING:
        return _openai(source)
    return _transformers(source)


# --- openai-whisper's names, and mlx-whisper's -----------------------------------------------------------------------


def _openai(source: Source) -> Recipe:
    tensors = dict(source.tensors)
    config = _openai_dims(source, tensors)
    _finish(source, config, tensors, OPENAI_SPELLING)
    return Recipe(config, tensors, OPENAI, "openai-whisper", _has_mlx_layout(tensors), COMPANIONS)


def _openai_dims(source: Source, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if "dims" not in source.extra and "d_model" in source.config:  # mlx-audio's: these names, transformers' sizes
        return _transformers_dims(source, tensors)
    dims = source.extra.get("dims", source.config)
    if isinstance(dims, dict) and not any(name in dims for name in DIMS):  # a state dict alone, as training saves it
        return _measured_with_heads(tensors, OPENAI_SPELLING, "dims")
    missing = [name for name in DIMS if not isinstance(dims, dict) or name not in dims]
    if missing:
        raise ConfigError(f"a Whisper without its sizes ({', '.join(missing)}): they stand in dims, or in config.json")
    return {name: dims[name] for name in DIMS}


# --- transformers' names ---------------------------------------------------------------------------------------------


def _transformers(source: Source) -> Recipe:
    tensors = dict(source.tensors)
    if TRANSFORMERS_SPELLING.embedding not in tensors and "proj_out.weight" in tensors:
        # They are tied: either may have been saved.
        tensors[TRANSFORMERS_SPELLING.embedding] = tensors.pop("proj_out.weight")
    config = _transformers_dims(source, tensors)
    _finish(source, config, tensors, TRANSFORMERS_SPELLING)
    return Recipe(config, tensors, TRANSFORMERS, "transformers", _has_mlx_layout(tensors), COMPANIONS)


def _transformers_dims(source: Source, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if not source.config:
        return _measured_with_heads(tensors, TRANSFORMERS_SPELLING, "config.json")
    missing = [name for name in ("d_model", *SIZES) if name not in source.config]
    if missing:
        raise ConfigError(f"config.json of this Whisper lacks {', '.join(missing)}")
    require(
        source.config,
        "a Whisper",
        activation_function="gelu",
        scale_embedding=False,
        tie_word_embeddings=True,
    )
    config = {ours: source.config[theirs] for theirs, ours in SIZES.items()}
    config["n_audio_state"] = source.config["d_model"]
    config["n_text_state"] = source.config["d_model"]
    return config


# --- what both have in common ----------------------------------------------------------------------------------------


def _finish(source: Source, config: dict[str, Any], tensors: dict[str, Tensor], spelling: Spelling) -> None:
    """Put in what no source states with its sizes: positions into `tensors`, the rest into `config`."""
    known = {OPENAI_SPELLING.audio_positions, TRANSFORMERS_SPELLING.audio_positions}
    if not known & set(tensors):
        tensors[spelling.audio_positions] = _positions(config, tensors[spelling.convolution].dtype)
    config["alignment_heads"] = _alignment_heads(source, config, tensors)
    if "silent_padding" in source.config:  # no key of transformers': the demo's models say it
        config["silent_padding"] = source.config["silent_padding"]


def _has_mlx_layout(tensors: dict[str, Tensor]) -> bool:
    """A kernel of three is in torch's layout the last axis, in MLX's the middle one."""
    return tensors[OPENAI_SPELLING.convolution].shape[1:2] == (KERNEL,)


def _positions(config: dict[str, Any], dtype: str) -> Tensor:
    """Of a source that has none (mlx-whisper computes them, in the dtype of its weights)."""
    length = config["n_audio_ctx"]
    width = config["n_audio_state"]
    if not all(type(size) is int and 4 <= size <= MAX_POSITIONS for size in (length, width)):
        raise ConfigError(f"n_audio_ctx={brief(length)} and n_audio_state={brief(width)} make no sense")
    return combine([], partial(sinusoids, length, width), (length, width), dtype)


def _measured(tensors: dict[str, Tensor], spelling: Spelling) -> dict[str, Any]:
    """The sizes that the weights show, which is all but the heads."""
    ranks = {
        spelling.convolution: 3,
        spelling.audio_positions: 2,
        spelling.text_positions: 2,
        spelling.embedding: 2,
    }
    wrong = [name for name, rank in ranks.items() if name not in tensors or len(tensors[name].shape) != rank]
    if wrong:
        raise WeightsMismatch(f"sizes of a Whisper cannot be read off it: {', '.join(wrong)} missing or misshapen")
    width, second, third = tensors[spelling.convolution].shape
    n_vocab, n_text_state = tensors[spelling.embedding].shape
    return {
        "n_mels": third if second == KERNEL else second,  # MLX's layout has the kernel first
        "n_vocab": n_vocab,
        "n_audio_ctx": tensors[spelling.audio_positions].shape[0],
        "n_text_ctx": tensors[spelling.text_positions].shape[0],
        "n_audio_state": width,
        "n_text_state": n_text_state,
        "n_audio_layer": len(fold.numbered(tensors, spelling.audio_layer)),
        "n_text_layer": len(fold.numbered(tensors, spelling.text_layer)),
    }


def _measured_with_heads(tensors: dict[str, Tensor], spelling: Spelling, lacks: str) -> dict[str, Any]:
    """All sizes. lacks : what should have stated them"""
    config = _measured(tensors, spelling)
    config["n_audio_head"] = _heads(config["n_audio_state"], lacks)
    config["n_text_head"] = _heads(config["n_text_state"], lacks)
    return config


def _heads(width: int, lacks: str) -> int:
    """Of a Whisper that does not say it: OpenAI's heads are 64 wide.

    lacks : what should have said it; named where the width is none of OpenAI's
    """
    if width not in PUBLISHED_WIDTHS:
        raise ConfigError(f"a Whisper without its sizes ({lacks}), and of a width of its own: {width}")
    return width // HEAD_WIDTH


# --- CTranslate2's names ---------------------------------------------------------------------------------------------


def _ctranslate2(source: Source) -> Recipe:
    _check_tied(source.tensors)
    tensors = ctranslate2.dequantized(source.tensors)
    settings = {name: _setting(name, tensors[name]) for name in tensors if CTRANSLATE2.get(name) is _SETTING}
    require(settings, "a Whisper", **SETTINGS)
    config = _measured(tensors, CTRANSLATE2_SPELLING)
    for side, kind in (("encoder", "audio"), ("decoder", "text")):
        name = f"{side}/num_heads"
        if name in settings:
            config[f"n_{kind}_head"] = settings[name]
        else:
            config[f"n_{kind}_head"] = _heads(config[f"n_{kind}_state"], name)
    for name in list(tensors):
        path, _, leaf = name.rpartition("/")
        for ending, parts in STACKED_PARTS.items():
            if path.endswith(f"/{ending}") and leaf in ("weight", "bias"):
                fold.split(tensors, name, *parts)
                _check_zero(tensors, f"{name}/key")
    config["alignment_heads"] = _alignment_heads(source, config, tensors)
    documents = {} if source.beside("generation_config.json") else _generation_config(source, config)
    return Recipe(config, tensors, CTRANSLATE2, "openai-whisper", companions=COMPANIONS, documents=documents)


def _setting(name: str, tensor: Tensor) -> int:
    if tensor.shape or tensor.dtype in FLOATS:
        raise WeightsMismatch(f"{name} is {tensor.dtype} {list(tensor.shape)}, where it should be one whole number")
    return int(tensor.numpy())


def _check_tied(tensors: dict[str, Tensor]) -> None:
    """The output layer, where there is one, is the token embedding: an alias of it, or the same values."""
    for leaf in ("weight", "weight_scale"):
        projection = tensors.get(f"decoder/projection/{leaf}")
        embedding = tensors.get(f"decoder/embeddings/{leaf}")
        if projection is None or (embedding is not None and projection.raw is embedding.raw):
            continue
        if embedding is None or not np.array_equal(projection.raw(), embedding.raw()):
            raise ConfigError("a Whisper whose output layer is not its token embedding, which is not supported")


def _check_zero(tensors: dict[str, Tensor], name: str) -> None:
    """The keys have a place for a bias there, which none of Whisper's has."""
    if name.endswith("bias/key") and tensors[name].numpy().any():
        raise ConfigError(f"a Whisper whose keys have a bias ({name}), which is not supported")


def _generation_config(source: Source, config: dict[str, Any]) -> dict[str, Any]:
    """What CTranslate2's config.json says, in the file and under the names that transformers has for it."""
    content: dict[str, Any] = {"alignment_heads": config["alignment_heads"]}
    for theirs, ours in (
        ("suppress_ids", "suppress_tokens"),
        ("suppress_ids_begin", "begin_suppress_tokens"),
    ):
        ids = source.config.get(theirs)
        if isinstance(ids, list) and all(type(token) is int and 0 <= token < config["n_vocab"] for token in ids):
            content[ours] = ids
    return {"generation_config.json": content}


# --- alignment heads -------------------------------------------------------------------------------------------------


def _alignment_heads(source: Source, config: dict[str, Any], tensors: dict[str, Tensor]) -> list[list[int]]:
    """(layer, head) of every head whose attention follows the audio.

    From generation_config.json, CTranslate2's config.json or the weights where they fit this decoder (distilled
    models carry their teacher's), else the published ones of this size, else all heads of the upper half of the
    layers, as openai/whisper does.
    """
    layers = config["n_text_layer"]
    heads = config["n_text_head"]
    size = (config["n_vocab"], config["n_text_state"], layers)
    if not _sound(*size, heads) or max(layers, heads) > MAX_HEADS:
        return []  # such a model is refused soon
    stated = source.json("generation_config.json").get("alignment_heads") or source.config.get("alignment_heads")
    kept = tensors["alignment_heads"].numpy().tolist() if "alignment_heads" in tensors else None
    for pairs in (stated, kept, _published_heads(source, size)):
        if pairs and isinstance(pairs, list) and all(_fits(pair, layers, heads) for pair in pairs):
            return [[int(number) for number in pair] for pair in pairs]
    return [[layer, head] for layer in range(layers // 2, layers) for head in range(heads)]


def _published_heads(source: Source, size: tuple[int, int, int]) -> list[list[int]]:
    """Those that openai/whisper has for a model of this size, [] where it has no such model."""
    text = ALIGNMENT_HEADS.get(size, "")
    # Large v1 and v2 have the same sizes: only the file tells. OpenAI's own has dims.
    if size == LARGE_SIZE and "dims" in source.extra and sha256(source.files[0]) == LARGE_V1_SHA256:
        text = LARGE_V1
    pairs = []
    for pair in text.split():
        layer, head = pair.split(",")
        pairs.append([int(layer), int(head)])
    return pairs


def _sound(*sizes: Any) -> bool:
    return all(type(size) is int and 0 < size <= MAX_SIZE for size in sizes)


def _fits(pair: Any, layers: int, heads: int) -> bool:
    """Whether it is a layer and a head of such a decoder."""
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(number, int) for number in pair):
        return False
    layer, head = pair
    return 0 <= layer < layers and 0 <= head < heads
