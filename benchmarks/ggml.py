"""Whisper in the file format of whisper.cpp: magic number, sizes, mel filters, tokens, tensors by name.

Source: whisper.cpp's `models/convert-pt-to-ggml.py`, for what a file holds and in which order.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    import torch

MAGIC = 0x67676D6C
FLOAT32, FLOAT16 = 0, 1  # ggml's numbers of these types
MULTILINGUAL = 51865  # tokens, at least
SIZES = ("n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer")
SIZES += ("n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels")


def save(state: Mapping[str, torch.Tensor], dims: Mapping[str, int], path: Path) -> None:
    """Write a model of openai-whisper, matrices and kernels in float16: whisper.cpp computes convolutions with no
    others, and asks for one type of all. state : its tensors by its names; dims : its sizes"""
    with path.open("wb") as file:
        _write_numbers(file, MAGIC, *(dims[name] for name in SIZES), FLOAT16)
        filters = _mel_filters(dims["n_mels"])
        _write_numbers(file, *filters.shape)
        file.write(filters.tobytes())
        tokens = _tokens(multilingual=dims["n_vocab"] >= MULTILINGUAL)
        _write_numbers(file, len(tokens))
        for token in tokens:
            _write_numbers(file, len(token))
            file.write(token)
        for name, tensor in state.items():
            _write_tensor(file, name, tensor.float().numpy())


def _write_tensor(file: BinaryIO, name: str, array: np.ndarray) -> None:
    is_half = array.ndim > 1 and "positional_embedding" not in name
    if re.fullmatch(r"encoder\.conv\d\.bias", name):
        array = array[:, None]  # it is added to (channels, positions)
    title = name.encode()
    _write_numbers(file, array.ndim, len(title), FLOAT16 if is_half else FLOAT32)
    _write_numbers(file, *reversed(array.shape))  # the dimension that runs fastest comes first
    file.write(title)
    file.write(np.ascontiguousarray(array, np.float16 if is_half else np.float32).tobytes())


def _write_numbers(file: BinaryIO, *numbers: int) -> None:
    """Little-endian, of 4 bytes each."""
    file.write(struct.pack(f"<{len(numbers)}i", *numbers))


def _mel_filters(count: int) -> np.ndarray:
    """(mels, 201) float32, of the openai-whisper package."""
    return np.load(_assets() / "mel_filters.npz")[f"mel_{count}"].astype(np.float32)


def _tokens(multilingual: bool) -> list[bytes]:
    """The bytes of every token of text, by its number."""
    file = _assets() / ("multilingual.tiktoken" if multilingual else "gpt2.tiktoken")
    pairs = [line.split() for line in file.read_bytes().splitlines() if line]
    return [base64.b64decode(token) for token, _ in sorted(pairs, key=lambda pair: int(pair[1]))]


def _assets() -> Path:
    import whisper

    return Path(whisper.__file__).parent / "assets"
