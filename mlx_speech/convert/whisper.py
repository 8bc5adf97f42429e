"""Whisper: OpenAI's `.pt`, transformers' folders (fine-tuned, turbo, distil), and mlx-community's repositories.

Sizes come from `dims`, transformers' config.json or mlx-whisper's. The encoder's positions are kept as the source has
them: OpenAI's were rounded to float16, and the formula in full precision gives encodings that differ by 6e-3.
"""

from __future__ import annotations

from typing import Any

from mlx_speech.convert.port import Drop, Recipe, Table, require, same
from mlx_speech.convert.read import Source
from mlx_speech.errors import ConfigError, brief
from mlx_speech.hub import sha256
from mlx_speech.models.whisper import sinusoids
from mlx_speech.tensors import Tensor, combine

PIPELINE_TAG = "automatic-speech-recognition"
TAGS = ["whisper", "automatic-speech-recognition"]

COMPANIONS = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json", "normalizer.json"),
    *("special_tokens_map.json", "generation_config.json", "preprocessor_config.json"),
    *("*.tiktoken", "vocabulary.json", "vocabulary.txt"),
)

OPENAI: Table = {
    **same("conv{}", "ln_post", "positional_embedding", path="encoder."),
    **same("token_embedding", "ln", "positional_embedding", path="decoder."),
    "alignment_heads": Drop("kept in config.json"),
}
for _blocks in ("encoder.blocks.{}.", "decoder.blocks.{}."):
    for _part in ("attn", "cross_attn"):
        OPENAI |= same("query", "key", "value", "out", path=f"{_blocks}{_part}.")
    OPENAI |= same("attn_ln", "cross_attn_ln", "mlp_ln", "mlp1", "mlp2", path=_blocks)
    OPENAI |= {f"{_blocks}mlp.0": f"{_blocks}mlp1", f"{_blocks}mlp.2": f"{_blocks}mlp2"}

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
LARGE_V1 = "9,19 11,2 11,4 11,17 22,7 22,11 22,17 23,2 23,15"
LARGE_V1_SHA256 = "e4b87e7e0bf463eb8e6956e646f1e277e901512310def2c24bf0e11bd3c28e9a"


def recognise(source: Source) -> bool:
    names = {name.removeprefix("model.") for name in source.tensors}
    positions = {"decoder.positional_embedding", "decoder.embed_positions.weight"} & names
    return bool(positions) and "encoder.conv1.weight" in names


def recipe(source: Source, language: str | None = None) -> Recipe:
    tensors = {name.removeprefix("model."): tensor for name, tensor in source.tensors.items()}
    ours = "decoder.positional_embedding" in tensors
    config = _openai_dims(source) if ours else _transformers_dims(source)
    if not {"encoder.positional_embedding", "encoder.embed_positions.weight"} & set(tensors):
        name = "encoder.positional_embedding" if ours else "encoder.embed_positions.weight"
        tensors[name] = _positions(config, tensors["encoder.conv1.weight"].dtype)
    config["alignment_heads"] = _alignment_heads(source, config, tensors)
    # a kernel of three: in torch's layout the last axis, in MLX's the middle one
    mlx_layout = tensors["encoder.conv1.weight"].shape[1:2] == (3,)
    original = "openai-whisper" if ours else "transformers"
    return Recipe(config, tensors, OPENAI if ours else TRANSFORMERS, original, mlx_layout, COMPANIONS)


def _openai_dims(source: Source) -> dict[str, Any]:
    dims = source.extra.get("dims", source.config)
    missing = [name for name in DIMS if not isinstance(dims, dict) or name not in dims]
    if missing:
        raise ConfigError(f"a Whisper without its sizes ({', '.join(missing)}): they stand in dims, or in config.json")
    return {name: dims[name] for name in DIMS}


def _transformers_dims(source: Source) -> dict[str, Any]:
    missing = [name for name in ("d_model", *SIZES) if name not in source.config]
    if missing:
        raise ConfigError(f"config.json of this Whisper lacks {', '.join(missing)}")
    require(source.config, "a Whisper", activation_function="gelu", scale_embedding=False, tie_word_embeddings=True)
    config = {ours: source.config[theirs] for theirs, ours in SIZES.items()}
    return {**config, "n_audio_state": source.config["d_model"], "n_text_state": source.config["d_model"]}


def _positions(config: dict[str, Any], dtype: str) -> Tensor:
    """Of a source that has none (mlx-whisper computes them, in the dtype of its weights)."""
    length, width = config["n_audio_ctx"], config["n_audio_state"]
    if not all(type(n) is int and 4 <= n <= 1 << 16 for n in (length, width)):
        raise ConfigError(f"n_audio_ctx={brief(length)} and n_audio_state={brief(width)} make no sense")
    return combine([], lambda: sinusoids(length, width), (length, width), dtype)


def _alignment_heads(source: Source, config: dict[str, Any], tensors: dict[str, Tensor]) -> list[list[int]]:
    """From generation_config.json or the weights where they fit this decoder (distilled models carry their teacher's),
    else the published ones of this size, else all heads of the upper half of the layers, as openai/whisper does."""
    layers, heads = config["n_text_layer"], config["n_text_head"]
    size = (config["n_vocab"], config["n_text_state"], layers)
    if not all(type(n) is int and 0 < n <= 1 << 20 for n in (*size, heads)) or max(layers, heads) > 1024:
        return []  # refused soon
    published = ALIGNMENT_HEADS.get(size, "")
    large = size == (51865, 1280, 32) and source.files[0].suffix == ".pt"  # v1 and v2 have the same sizes
    if large and sha256(source.files[0]) == LARGE_V1_SHA256:
        published = LARGE_V1
    stated = source.json("generation_config.json").get("alignment_heads")
    kept = tensors["alignment_heads"].numpy().tolist() if "alignment_heads" in tensors else None
    for found in (stated, kept, [[int(n) for n in pair.split(",")] for pair in published.split()]):
        if found and isinstance(found, list) and all(_fits(pair, layers, heads) for pair in found):
            return [[int(n) for n in pair] for pair in found]
    return [[layer, head] for layer in range(layers // 2, layers) for head in range(heads)]


def _fits(pair: Any, layers: int, heads: int) -> bool:
    whole = isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int) for n in pair)
    return whole and 0 <= pair[0] < layers and 0 <= pair[1] < heads
