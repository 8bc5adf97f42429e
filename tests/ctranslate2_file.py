"""CTranslate2's model.bin, written from openai-whisper's state dict in every type of weight that the format has.

Written for the tests from the description of the format alone; `test_ctranslate2.py` lets CTranslate2 itself load it.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch

TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "bfloat16": 5}
KINDS = ("float32", "float16", "bfloat16", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16")
ALIASES = {"decoder/projection/weight": "decoder/embeddings/weight"}
Variables = dict[str, torch.Tensor]


SETTINGS = {"activation": 3, "alibi": 0, "pre_norm": 1, "scale_embeddings": 0, "start_from_zero_embedding": 0}
PLAIN = {
    "encoder/position_encodings/encodings": "encoder.positional_embedding",
    "decoder/position_encodings/encodings": "decoder.positional_embedding",
    "decoder/embeddings/weight": "decoder.token_embedding.weight",
}


def norms(dims: dict[str, int]) -> dict[str, str]:
    """CTranslate2's name of each norm → OpenAI's."""
    found = {"encoder/layer_norm": "encoder.ln_post", "decoder/layer_norm": "decoder.ln"}
    for ours, theirs in layers(dims):
        found[f"{ours}/self_attention/layer_norm"] = f"{theirs}.attn_ln"
        found[f"{ours}/ffn/layer_norm"] = f"{theirs}.mlp_ln"
        if ours.startswith("decoder"):
            found[f"{ours}/attention/layer_norm"] = f"{theirs}.cross_attn_ln"
    return found


def linears(dims: dict[str, int]) -> dict[str, list[str]]:
    """CTranslate2's name of each linear layer or convolution → OpenAI's of those that are stacked in it."""
    found = {f"encoder/{name}": [f"encoder.{name}"] for name in ("conv1", "conv2")}
    for ours, theirs in layers(dims):
        found[f"{ours}/self_attention/linear_0"] = [f"{theirs}.attn.{part}" for part in ("query", "key", "value")]
        found[f"{ours}/self_attention/linear_1"] = [f"{theirs}.attn.out"]
        found[f"{ours}/ffn/linear_0"] = [f"{theirs}.mlp.0"]
        found[f"{ours}/ffn/linear_1"] = [f"{theirs}.mlp.2"]
        if ours.startswith("decoder"):
            found[f"{ours}/attention/linear_0"] = [f"{theirs}.cross_attn.query"]
            found[f"{ours}/attention/linear_1"] = [f"{theirs}.cross_attn.key", f"{theirs}.cross_attn.value"]
            found[f"{ours}/attention/linear_2"] = [f"{theirs}.cross_attn.out"]
    return found


def layers(dims: dict[str, int]) -> list[tuple[str, str]]:
    counts = {"encoder": dims["n_audio_layer"], "decoder": dims["n_text_layer"]}
    return [(f"{side}/layer_{k}", f"{side}.blocks.{k}") for side, count in counts.items() for k in range(count)]


def variables(state: dict[str, torch.Tensor], dims: dict[str, int]) -> Variables:
    """CTranslate2's variables, in float32, of a state dict in OpenAI's names."""
    state = {name: tensor.detach().float() for name, tensor in state.items()}
    found: Variables = {
        "encoder/num_heads": torch.tensor(dims["n_audio_head"], dtype=torch.int16),
        "decoder/num_heads": torch.tensor(dims["n_text_head"], dtype=torch.int16),
        "decoder/alignment_heads": torch.tensor(1, dtype=torch.int16),
        "decoder/alignment_layer": torch.tensor(-1, dtype=torch.int16),
    }
    found |= {f"decoder/{name}": torch.tensor(value, dtype=torch.int8) for name, value in SETTINGS.items()}
    found |= {ours: state[theirs] for ours, theirs in PLAIN.items()}
    for ours, theirs in norms(dims).items():
        found[f"{ours}/gamma"] = state[f"{theirs}.weight"]
        found[f"{ours}/beta"] = state[f"{theirs}.bias"]
    zeros = torch.zeros(dims["n_text_state"])  # for the keys, which have no bias
    for ours, parts in linears(dims).items():
        found[f"{ours}/weight"] = torch.cat([state[f"{theirs}.weight"] for theirs in parts])
        found[f"{ours}/bias"] = torch.cat([state.get(f"{theirs}.bias", zeros) for theirs in parts])
    return found


def multi_query(dims: dict[str, int]) -> Variables:
    """What some versions of its converters write of heads that share keys and values, which Whisper's do not."""
    found = {f"{ours}/self_attention/multi_query": torch.tensor(0, dtype=torch.int8) for ours, _ in layers(dims)}
    for ours, _ in layers(dims):
        if ours.startswith("decoder"):
            found[f"{ours}/attention/multi_query"] = torch.tensor(0, dtype=torch.int8)
    return found


def state_dict(found: Variables, dims: dict[str, int]) -> dict[str, torch.Tensor]:
    """The other way, for variables of floats."""
    state = {theirs: found[ours] for ours, theirs in PLAIN.items()}
    for ours, theirs in norms(dims).items():
        state[f"{theirs}.weight"] = found[f"{ours}/gamma"]
        state[f"{theirs}.bias"] = found[f"{ours}/beta"]
    for ours, parts in linears(dims).items():
        for leaf in ("weight", "bias"):
            pieces = found[f"{ours}/{leaf}"].chunk(len(parts))
            state |= {f"{theirs}.{leaf}": piece for theirs, piece in zip(parts, pieces, strict=True)}
    return {name: tensor.clone() for name, tensor in state.items() if not name.endswith("key.bias")}


def of_kind(found: Variables, kind: str) -> Variables:
    """The variables as a conversion with `--quantization kind` stores them."""
    floats = {"int8_float16": "float16", "int8_bfloat16": "bfloat16", "float16": "float16", "bfloat16": "bfloat16"}
    plain: torch.dtype = getattr(torch, floats.get(kind, "float32"))
    result: Variables = {}
    for name, tensor in found.items():
        if not tensor.is_floating_point():
            result[name] = tensor
        elif kind.startswith("int") and name.endswith("/weight"):
            result[name], result[f"{name}_scale"] = quantized(tensor, kind)
        else:
            result[name] = tensor.to(plain)
    return result


def quantized(tensor: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers and their scale, one for all (int16) or one a row (int8)."""
    if kind == "int16":
        scale = 1024 / tensor.abs().max()
        return torch.round(tensor * scale).to(torch.int16), scale
    rows = tensor.reshape(tensor.shape[0], -1)
    scale = 127 / rows.abs().amax(dim=1)
    return torch.round(rows * scale[:, None]).to(torch.int8).reshape(tensor.shape), scale


def dequantized(found: Variables) -> Variables:
    """What the variables stand for, in float32."""
    result: Variables = {}
    for name, tensor in found.items():
        if name.endswith("_scale"):
            continue
        scale = found.get(f"{name}_scale")
        if scale is not None:
            tensor = tensor.float() / scale.reshape(-1, *[1] * (tensor.ndim - 1))
        result[name] = tensor.float() if tensor.is_floating_point() else tensor
    return result


def string(text: str) -> bytes:
    return struct.pack("<H", len(text.encode()) + 1) + text.encode() + b"\0"


def entry(name: str, tensor: torch.Tensor) -> bytes:
    """A variable of the file."""
    kind = str(tensor.dtype).removeprefix("torch.")
    data = (tensor.view(torch.int16) if kind == "bfloat16" else tensor).contiguous().numpy().tobytes()
    shape = struct.pack(f"<B{tensor.ndim}I", tensor.ndim, *tensor.shape)
    return string(name) + shape + struct.pack("<BI", TYPES[kind], len(data)) + data


def serialized(
    found: Variables,
    aliases: dict[str, str] = ALIASES,
    version: int = 6,
    specification: str = "WhisperSpec",
    revision: int = 3,
) -> bytes:
    """The whole file."""
    parts = [struct.pack("<I", version), string(specification), struct.pack("<II", revision, len(found))]
    parts += [entry(name, tensor) for name, tensor in sorted(found.items())]
    parts.append(struct.pack("<I", len(aliases)))
    parts += [string(alias) + string(name) for alias, name in aliases.items()]
    return b"".join(parts)


def save(folder: Path, found: Variables, **config: Any) -> Path:
    """model.bin, config.json and vocabulary.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.bin").write_bytes(serialized(found))
    content = {"alignment_heads": None, "lang_ids": [], "suppress_ids": None, "suppress_ids_begin": None, **config}
    (folder / "config.json").write_text(json.dumps(content))
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>"]
    special += ["<|startofprev|>", "<|nocaptions|>", "<|notimestamps|>"]
    count = found["decoder/embeddings/weight"].shape[0]
    tokens = [*(f"t{k}" for k in range(count - len(special) - 200)), *special]
    tokens += [f"<|{k * 0.02:.2f}|>" for k in range(200)]
    (folder / "vocabulary.json").write_text(json.dumps(tokens))
    return folder
