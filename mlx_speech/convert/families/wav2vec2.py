"""wav2vec2 CTC: transformers' folders, MMS with its adapters, and torchaudio's `.pth` files.

In transformers the sizes stand in config.json, the labels in vocab.json; in torchaudio's files there are only tensors:
sizes are read off them, and the labels are known by their number.
"""

from __future__ import annotations

import re
from typing import Any

from mlx_speech.checkpoint import read_json
from mlx_speech.convert import fold
from mlx_speech.convert.formats.pytorch import read_torch, state_dict
from mlx_speech.convert.port import Drop, Recipe, Table, require, same
from mlx_speech.convert.read import Source
from mlx_speech.errors import ConfigError, OptionError, SourceNotFound, WeightsMismatch, shorten
from mlx_speech.tensors import Tensor, read_safetensors

PIPELINE_TAG = "automatic-speech-recognition"
TAGS = ["wav2vec2", "ctc", "forced-alignment", "automatic-speech-recognition"]

COMPANIONS = ("vocab.json", "preprocessor_config.json", "special_tokens_map.json", "tokenizer_config.json")

_PRETRAINING = Drop("only used in pre-training")
TABLE: Table = {
    **dict.fromkeys(("quantizer.codevectors", "quantizer.weight_proj", "project_q", "project_hid"), _PRETRAINING),
    "wav2vec2.masked_spec_embed": _PRETRAINING,
    **same("conv", "layer_norm", path="wav2vec2.feature_extractor.conv_layers.{}."),
    **same("layer_norm", "projection", path="wav2vec2.feature_projection."),
    **same("pos_conv_embed.conv", "layer_norm", path="wav2vec2.encoder."),
    **same(*(f"{leaf}_proj" for leaf in ("q", "k", "v", "out")), path="wav2vec2.encoder.layers.{}.attention."),
    **same("intermediate_dense", "output_dense", path="wav2vec2.encoder.layers.{}.feed_forward."),
    **same("norm", "linear_1", "linear_2", path="wav2vec2.encoder.layers.{}.adapter_layer."),
    **same("layer_norm", "final_layer_norm", path="wav2vec2.encoder.layers.{}."),
    **same("lm_head"),
}

PROJECTION = "feature_projection.projection.weight"

# torchaudio's prefixes → transformers'; what follows is spelled alike
TORCHAUDIO = (
    ("encoder.feature_projection.", "wav2vec2.feature_projection."),
    ("encoder.transformer.", "wav2vec2.encoder."),
    ("feature_extractor.", "wav2vec2.feature_extractor."),
    ("mask_generator.mask_embedding", "wav2vec2.masked_spec_embed"),
    ("aux.", "lm_head."),
)

# The labels of torchaudio's bundles (torchaudio.pipelines, get_labels), by language.
LABELS = {
    "en": "-|ETAONIHSRDLUMWCFGYPBVK'XJQZ",
    "de": "-|enirstadhulgcmobwfkzpvüäöjßyxq",
    "es": "-|eaosnrildctupmbqygvhófíájzñéxúkwü",
    "fr": "-|esnitraouldcpmévqfgbhxàjèyêzôkçœûùîâwïëüæ",
    "it": "-|eiaontrlscdupmgvhzfbqàèùéòìkyxwjóíï",
    "mms": "-aienoutsrmkldghybpwcvjzf'qx",
}
# Rows that fairseq's dictionary left in the published heads and that mean nothing: language → those rows.
SURPLUS = {**dict.fromkeys(LABELS, (1, 2, 3)), "de": (1, 2, 3, 35), "es": (1, 2, 3, 35)}

SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps"),
    *("conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm", "do_stable_layer_norm"),
    *("num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "adapter_attn_dim"),
)


def recognise(source: Source) -> bool:
    theirs = source.config.get("model_type") == "wav2vec2" and f"wav2vec2.{PROJECTION}" in source.tensors
    return theirs or f"encoder.{PROJECTION}" in source.tensors


def recipe(source: Source, language: str | None = None) -> Recipe:
    return (_torchaudio if f"encoder.{PROJECTION}" in source.tensors else _transformers)(source, language)


def _transformers(source: Source, language: str | None) -> Recipe:
    tensors = dict(source.tensors)
    config: dict[str, Any] = {key: source.config[key] for key in SIZES if key in source.config}
    require(source.config, "a wav2vec2", hidden_act="gelu", feat_extract_activation="gelu")
    if source.config.get("add_adapter"):
        raise ConfigError("add_adapter=true (a convolutional adapter after the encoder) is not supported")
    tokenizer = source.json("tokenizer_config.json")
    if language is not None:
        tensors |= _adapter(source, language)
        config["language"] = language
    config["vocab_size"] = _outputs(tensors)
    documents = _labels(source, tokenizer, config, language)
    config["do_normalize"] = bool(source.json("preprocessor_config.json").get("do_normalize", True))
    fold.weight_norm(tensors, "wav2vec2.encoder.pos_conv_embed.conv")
    return Recipe(config, tensors, TABLE, "transformers", companions=COMPANIONS, documents=documents)


def _outputs(tensors: dict[str, Tensor]) -> int:
    """How many labels the head has."""
    if "lm_head.weight" not in tensors or not tensors["lm_head.weight"].shape:
        raise WeightsMismatch("no lm_head (aux): this wav2vec2 is not fine-tuned for CTC; choose one that is")
    return tensors["lm_head.weight"].shape[0]


def _adapter(source: Source, language: str) -> dict[str, Tensor]:
    """The tensors of an MMS adapter, under the names that the model itself uses."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", language):
        raise OptionError(f"language={language}: not a language code")
    safe, torch = (source.folder / f"adapter.{language}.{ending}" for ending in ("safetensors", "bin"))
    if safe.is_file():
        return read_safetensors(safe)
    if torch.is_file():
        return state_dict(read_torch(torch))
    found = sorted(path.name.split(".")[1] for path in source.folder.glob("adapter.*"))
    raise SourceNotFound(f"{safe}: no adapter for language={language} (there are: {shorten(found) or 'none'})")


def _labels(source: Source, tokenizer: dict[str, Any], config: dict[str, Any], language: str | None) -> dict[str, Any]:
    """Put labels, blank and word delimiter into `config`; returns the vocab.json to be written."""
    path = source.folder / "vocab.json"
    vocab = read_json(path)
    if vocab and all(isinstance(entry, dict) for entry in vocab.values()):  # MMS: a vocabulary per language
        chosen = str(language or tokenizer.get("target_lang") or source.config.get("target_lang") or "eng")
        if chosen not in vocab:
            raise OptionError(f"{path}: no labels for language {chosen}; name one as language=…")
        vocab = vocab[chosen]
    if not all(type(index) is int and 0 <= index < config["vocab_size"] for index in vocab.values()):
        raise ConfigError(f"{path}: labels outside the {config['vocab_size']} outputs of the model")
    labels = [""] * config["vocab_size"]
    for label, index in vocab.items():
        labels[index] = label
    for label, index in source.json("added_tokens.json").items():
        if type(index) is int and 0 <= index < len(labels):
            labels[index] = labels[index] or label
    pad = _token(tokenizer.get("pad_token")) or "<pad>"
    candidates = [label for label in (pad, "<pad>", "[PAD]", "[pad]") if label in labels]
    config["vocab"] = labels
    config["blank_id"] = labels.index(candidates[0]) if candidates else source.config.get("pad_token_id", 0)
    delimiter = _token(tokenizer.get("word_delimiter_token")) or "|"
    config["word_delimiter"] = delimiter if delimiter in labels else None
    return {"vocab.json": {label: index for index, label in enumerate(labels) if label}}


def _token(entry: Any) -> str | None:
    """A special token as tokenizer_config.json spells it: a string, or an object with its content."""
    found = entry.get("content") if isinstance(entry, dict) else entry
    return found if isinstance(found, str) else None


def _torchaudio(source: Source, language: str | None) -> Recipe:
    tensors = {_from_torchaudio(name): tensor for name, tensor in source.tensors.items()}
    rows = _outputs(tensors)
    found, surplus = _bundle(source, rows, language)
    if surplus:
        kept = [row for row in range(rows) if row not in surplus]
        for name in tensors.keys() & {"lm_head.weight", "lm_head.bias"}:
            tensors[name] = tensors[name].map(lambda array: array[kept], (len(kept), *tensors[name].shape[1:]))
    config = _sizes(tensors)
    labels = ["<pad>", *LABELS[found][1:]]  # torchaudio's "-"
    config |= {"vocab": labels, "blank_id": 0, "word_delimiter": "|" if "|" in labels else None}
    config["language"] = found if found != "mms" else None
    # the LV60K bundles and MMS, those with layer norm, were trained on normalised waveforms
    config["do_normalize"] = config["feat_extract_norm"] == "layer"
    fold.weight_norm(tensors, "wav2vec2.encoder.pos_conv_embed.conv")
    documents = {"vocab.json": {label: index for index, label in enumerate(labels)}}
    return Recipe(config, tensors, TABLE, "torchaudio", documents=documents)


def _bundle(source: Source, rows: int, language: str | None) -> tuple[str, tuple[int, ...]]:
    """Which bundle's labels a head of `rows` has, and its surplus rows: as published, or as torchaudio leaves it.

    32 rows are published English, or German without its surplus: the latter only when `language` says so.
    """
    if language is not None and language not in LABELS:
        raise OptionError(f"language={language}: a torchaudio file is one of {', '.join(LABELS)}")
    if rows == 32 and "voxpopuli" in source.name.lower() and language != "de":
        raise ConfigError("VoxPopuli's English head looks like LibriSpeech's: convert facebook/wav2vec2-base-960h")
    for published in (True, False):
        for name, labels in LABELS.items():
            surplus = SURPLUS[name] if published else ()
            if len(labels) + len(surplus) == rows and language in (None, name):
                return name, surplus
    raise ConfigError(f"{rows} outputs fit no torchaudio bundle, and it has no labels: give a transformers folder")


def _from_torchaudio(name: str) -> str:
    return next((ours + name.removeprefix(start) for start, ours in TORCHAUDIO if name.startswith(start)), name)


def _sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What the tensors say of a torchaudio model. The strides are wav2vec2's own, as are heads of 64 in a base model
    and 16 heads in a large one."""
    extractor = "wav2vec2.feature_extractor.conv_layers"
    convs = [t.shape for t in fold.numbered(tensors, f"{extractor}.{{}}.conv.weight")]
    layers = len(fold.numbered(tensors, "wav2vec2.encoder.layers.{}.attention.k_proj.weight"))
    positions = [t.shape for n, t in tensors.items() if n.endswith(("pos_conv_embed.conv.weight_v", "original1"))]
    inner = tensors.get("wav2vec2.encoder.layers.0.feed_forward.intermediate_dense.weight")
    odd = len(positions) != 1 or len(positions[0]) != 3 or not positions[0][1] or inner is None or not inner.shape
    if len(convs) != 7 or any(len(shape) != 3 for shape in convs) or not layers or inner is None or odd:
        raise WeightsMismatch(f"not torchaudio's wav2vec2: {len(convs)} convolutions, {layers} layers")
    width, per_group, kernel = positions[0]
    layer_norm = f"{extractor}.1.layer_norm.weight" in tensors
    heads = 16 if width >= 1024 else max(1, width // 64)
    sizes = {"vocab_size": tensors["lm_head.weight"].shape[0], "hidden_size": width, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": heads, "intermediate_size": inner.shape[0]}
    sizes |= {"conv_dim": [shape[0] for shape in convs], "conv_kernel": [shape[2] for shape in convs]}
    sizes |= {"conv_stride": [5, 2, 2, 2, 2, 2, 2], "conv_bias": f"{extractor}.0.conv.bias" in tensors}
    sizes |= {"feat_extract_norm": "layer" if layer_norm else "group", "do_stable_layer_norm": layer_norm}
    return {**sizes, "num_conv_pos_embeddings": kernel, "num_conv_pos_embedding_groups": width // per_group}
