"""wav2vec2 CTC: transformers' folders, MMS with its adapters, and torchaudio's `.pth` files.

In transformers the sizes stand in config.json, the labels in vocab.json; in torchaudio's files there are only tensors:
sizes are read off them, and the labels are known by their number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mlx_speech.checkpoint import read_json
from mlx_speech.convert import fold, formats
from mlx_speech.convert.read import Source
from mlx_speech.convert.recipe import Drop, Recipe, Table, require, same
from mlx_speech.errors import ConfigError, OptionError, SourceNotFound, WeightsMismatch, shorten
from mlx_speech.tensors import Tensor

PIPELINE_TAG = "automatic-speech-recognition"
TAGS = ("wav2vec2", "ctc", "forced-alignment", "automatic-speech-recognition")
COMPANIONS = (
    "vocab.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
TAKES_LANGUAGE = True  # MMS has an adapter for each, torchaudio's bundles have their labels

_PRETRAINING = Drop("only used in pre-training")
TABLE: Table = {
    "quantizer.codevectors": _PRETRAINING,
    "quantizer.weight_proj": _PRETRAINING,
    "project_q": _PRETRAINING,
    "project_hid": _PRETRAINING,
    "wav2vec2.masked_spec_embed": _PRETRAINING,
    **same("conv", "layer_norm", path="wav2vec2.feature_extractor.conv_layers.{}."),
    **same("layer_norm", "projection", path="wav2vec2.feature_projection."),
    **same("pos_conv_embed.conv", "layer_norm", path="wav2vec2.encoder."),
    **same("q_proj", "k_proj", "v_proj", "out_proj", path="wav2vec2.encoder.layers.{}.attention."),
    **same("intermediate_dense", "output_dense", path="wav2vec2.encoder.layers.{}.feed_forward."),
    **same("norm", "linear_1", "linear_2", path="wav2vec2.encoder.layers.{}.adapter_layer."),
    **same("layer_norm", "final_layer_norm", path="wav2vec2.encoder.layers.{}."),
    **same("lm_head"),
}

PROJECTION = "feature_projection.projection.weight"
POSITIONS = "wav2vec2.encoder.pos_conv_embed.conv"
EXTRACTOR = "wav2vec2.feature_extractor.conv_layers"

# torchaudio's prefixes → transformers'; what follows is spelled alike
TORCHAUDIO = (
    ("encoder.feature_projection.", "wav2vec2.feature_projection."),
    ("encoder.transformer.", "wav2vec2.encoder."),
    ("feature_extractor.", "wav2vec2.feature_extractor."),
    ("mask_generator.mask_embedding", "wav2vec2.masked_spec_embed"),
    ("aux.", "lm_head."),
)
STRIDES = [5, 2, 2, 2, 2, 2, 2]  # of the convolutions of every wav2vec2
LARGE_WIDTH = 1024  # from which a model has 16 heads

# The labels of torchaudio's bundles (torchaudio.pipelines, get_labels), by language.
LABELS = {
    "en": "-|ETAONIHSRDLUMWCFGYPBVK'XJQZ",
    "de": "-|enirstadhulgcmobwfkzpvüäöjßyxq",
    "es": "-|eaosnrildctupmbqygvhófíájzñéxúkwü",
    "fr": "-|esnitraouldcpmévqfgbhxàjèyêzôkçœûùîâwïëüæ",
    "it": "-|eiaontrlscdupmgvhzfbqàèùéòìkyxwjóíï",
    "mms": "-aienoutsrmkldghybpwcvjzf'qx",
}
# Rows that fairseq's dictionary left in the published heads and that mean nothing.
SURPLUS_ROWS = {
    "en": (1, 2, 3),
    "de": (1, 2, 3, 35),
    "es": (1, 2, 3, 35),
    "fr": (1, 2, 3),
    "it": (1, 2, 3),
    "mms": (1, 2, 3),
}
BLANK = "<pad>"  # transformers' word for what is "-" in torchaudio's labels
WORD_DELIMITER = "|"

# Keys of transformers' config.json that are arguments of the model.
SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "layer_norm_eps",
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "conv_bias",
    "feat_extract_norm",
    "do_stable_layer_norm",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
    "adapter_attn_dim",
)


def recognise(source: Source) -> bool:
    """The projection of features, under transformers' name with its config.json, or under torchaudio's."""
    if f"encoder.{PROJECTION}" in source.tensors:
        return True
    return source.config.get("model_type") == "wav2vec2" and f"wav2vec2.{PROJECTION}" in source.tensors


def recipe(source: Source, language: str | None = None) -> Recipe:
    """The weight norm folded; labels, blank and word delimiter in the configuration.

    Raises `ConfigError` or `WeightsMismatch` for what is no CTC model, `OptionError` for a language it has not.
    """
    if f"encoder.{PROJECTION}" in source.tensors:
        return _torchaudio(source, language)
    return _transformers(source, language)


def _outputs(tensors: dict[str, Tensor]) -> int:
    """How many labels the head has."""
    head = tensors.get("lm_head.weight")
    if head is None or not head.shape:
        raise WeightsMismatch("no lm_head (aux): this wav2vec2 is not fine-tuned for CTC; choose one that is")
    return head.shape[0]


# --- transformers and MMS --------------------------------------------------------------------------------------------


def _transformers(source: Source, language: str | None) -> Recipe:
    tensors = dict(source.tensors)
    config: dict[str, Any] = {key: source.config[key] for key in SIZES if key in source.config}
    require(source.config, "a wav2vec2", hidden_act="gelu", feat_extract_activation="gelu")
    if source.config.get("add_adapter"):
        raise ConfigError("add_adapter=true (a convolutional adapter after the encoder) is not supported")
    if language is not None:
        tensors.update(_adapter(source, language))
        config["language"] = language
    config["vocab_size"] = _outputs(tensors)
    tokenizer = source.json("tokenizer_config.json")
    vocab = _vocabulary(source, tokenizer, language)
    labels = _labels(source, vocab, config["vocab_size"])
    config["vocab"] = labels
    config["blank_id"] = _blank(source, tokenizer, labels)
    delimiter = _token(tokenizer.get("word_delimiter_token")) or WORD_DELIMITER
    config["word_delimiter"] = delimiter if delimiter in labels else None
    config["do_normalize"] = bool(_preprocessor(source).get("do_normalize", True))
    fold.weight_norm(tensors, POSITIONS)
    documents = {"vocab.json": {label: index for index, label in enumerate(labels) if label}}
    return Recipe(config, tensors, TABLE, "transformers", companions=COMPANIONS, documents=documents)


def _preprocessor(source: Source) -> dict[str, Any]:
    """What the feature extractor says, in a file of its own or, by transformers 5, in the processor's."""
    own = source.json("preprocessor_config.json")
    within = source.json("processor_config.json").get("feature_extractor")
    return own or (within if isinstance(within, dict) else {})


def _adapter(source: Source, language: str) -> dict[str, Tensor]:
    """The tensors of an MMS adapter, under the names that the model itself uses."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", language):  # it becomes part of a path
        raise OptionError(f"language={language}: not a language code")
    paths = [source.folder / f"adapter.{language}.{ending}" for ending in ("safetensors", "bin")]
    for path in paths:
        if path.is_file():
            return formats.read(path).tensors
    languages = sorted(path.name.split(".")[1] for path in source.folder.glob("adapter.*"))
    there = shorten(languages) or "none"
    raise SourceNotFound(f"{paths[0]}: no adapter for language={language} (there are: {there})")


def _vocabulary(source: Source, tokenizer: dict[str, Any], language: str | None) -> dict[str, Any]:
    """vocab.json: label → number. MMS has one for every language. tokenizer : tokenizer_config.json"""
    path = source.folder / "vocab.json"
    vocab = read_json(path)
    if not vocab or not all(isinstance(entry, dict) for entry in vocab.values()):
        return vocab
    chosen = str(language or tokenizer.get("target_lang") or source.config.get("target_lang") or "eng")
    if chosen not in vocab:
        raise OptionError(f"{path}: no labels for language {chosen}; name one as language=…")
    return vocab[chosen]


def _labels(source: Source, vocab: dict[str, Any], outputs: int) -> list[str]:
    """The label of each of the head's outputs, "" for those that have none."""
    if not all(type(index) is int and 0 <= index < outputs for index in vocab.values()):
        raise ConfigError(f"{source.folder / 'vocab.json'}: labels outside the {outputs} outputs of the model")
    labels = [""] * outputs
    for label, index in vocab.items():
        labels[index] = label
    for label, index in source.json("added_tokens.json").items():
        if type(index) is int and 0 <= index < outputs and not labels[index]:
            labels[index] = label
    return labels


def _blank(source: Source, tokenizer: dict[str, Any], labels: list[str]) -> Any:
    """The number of the blank, which is the padding token: as tokenizer_config.json calls it, or as is usual."""
    for label in (_token(tokenizer.get("pad_token")), BLANK, "[PAD]", "[pad]"):
        if label and label in labels:
            return labels.index(label)
    return source.config.get("pad_token_id", 0)


def _token(entry: Any) -> str | None:
    """A special token as tokenizer_config.json spells it: a string, or an object with its content."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None


# --- torchaudio ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bundle:
    """Whose labels a torchaudio file has: a language, or "mms", and the head's rows that mean nothing."""

    name: str
    surplus_rows: tuple[int, ...]


def _torchaudio(source: Source, language: str | None) -> Recipe:
    tensors = {_transformers_name(name): tensor for name, tensor in source.tensors.items()}
    rows = _outputs(tensors)
    bundle = _bundle(source, rows, language)
    if bundle.surplus_rows:
        kept = [row for row in range(rows) if row not in bundle.surplus_rows]
        for name in ("lm_head.weight", "lm_head.bias"):
            if name in tensors:
                head = tensors[name]
                tensors[name] = head.map(partial(_take_rows, kept=kept), (len(kept), *head.shape[1:]))
    config = _sizes(tensors)
    labels = [BLANK, *LABELS[bundle.name][1:]]
    config["vocab"] = labels
    config["blank_id"] = 0
    config["word_delimiter"] = WORD_DELIMITER if WORD_DELIMITER in labels else None
    config["language"] = bundle.name if bundle.name != "mms" else None
    # The LV60K bundles and MMS, those with layer norm, were trained on normalised waveforms.
    config["do_normalize"] = config["feat_extract_norm"] == "layer"
    fold.weight_norm(tensors, POSITIONS)
    documents = {"vocab.json": {label: index for index, label in enumerate(labels)}}
    return Recipe(config, tensors, TABLE, "torchaudio", documents=documents)


def _transformers_name(name: str) -> str:
    """transformers' name of a tensor of torchaudio's."""
    for theirs, ours in TORCHAUDIO:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _take_rows(array: np.ndarray, kept: list[int]) -> np.ndarray:
    return array[kept]


def _bundle(source: Source, rows: int, language: str | None) -> _Bundle:
    """The bundle whose head has so many rows: as published, or as torchaudio leaves it.

    32 rows are published English, or German without its surplus: the latter only when `language` says so.
    """
    if language is not None and language not in LABELS:
        raise OptionError(f"language={language}: a torchaudio file is one of {', '.join(LABELS)}")
    if rows == 32 and "voxpopuli" in source.name.lower() and language != "de":
        raise ConfigError("VoxPopuli's English head looks like LibriSpeech's: convert facebook/wav2vec2-base-960h")
    candidates = [language] if language is not None else list(LABELS)
    for name in candidates:
        if len(LABELS[name]) + len(SURPLUS_ROWS[name]) == rows:
            return _Bundle(name, SURPLUS_ROWS[name])
    for name in candidates:
        if len(LABELS[name]) == rows:
            return _Bundle(name, ())
    raise ConfigError(f"{rows} outputs fit no torchaudio bundle, and it has no labels: give a transformers folder")


def _sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What the tensors say of a torchaudio model. The strides are wav2vec2's own, as are heads of 64 in a base model
    and 16 heads in a large one."""
    convolutions = [tensor.shape for tensor in fold.numbered(tensors, f"{EXTRACTOR}.{{}}.conv.weight")]
    layers = len(fold.numbered(tensors, "wav2vec2.encoder.layers.{}.attention.k_proj.weight"))
    positions = []
    for name, tensor in tensors.items():
        if name.endswith(("pos_conv_embed.conv.weight_v", "original1")):
            positions.append(tensor.shape)
    inner = tensors.get("wav2vec2.encoder.layers.0.feed_forward.intermediate_dense.weight")
    sound = len(convolutions) == len(STRIDES) and all(len(shape) == 3 for shape in convolutions) and layers > 0
    sound = sound and len(positions) == 1 and len(positions[0]) == 3 and positions[0][1] > 0
    if not sound or inner is None or not inner.shape:
        raise WeightsMismatch(f"not torchaudio's wav2vec2: {len(convolutions)} convolutions, {layers} layers")
    width, channels_per_group, kernel = positions[0]
    layer_norm = f"{EXTRACTOR}.1.layer_norm.weight" in tensors
    return {
        "vocab_size": tensors["lm_head.weight"].shape[0],
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 16 if width >= LARGE_WIDTH else max(1, width // 64),
        "intermediate_size": inner.shape[0],
        "conv_dim": [shape[0] for shape in convolutions],
        "conv_kernel": [shape[2] for shape in convolutions],
        "conv_stride": list(STRIDES),
        "conv_bias": f"{EXTRACTOR}.0.conv.bias" in tensors,
        "feat_extract_norm": "layer" if layer_norm else "group",
        "do_stable_layer_norm": layer_norm,
        "num_conv_pos_embeddings": kernel,
        "num_conv_pos_embedding_groups": width // channels_per_group,
    }
