"""The demo Whisper's own vocabulary: bytes, the words of the grammar, then Whisper's special tokens in their order.

A byte-level BPE as GPT-2's (its alphabet, its way to part text), so that the readers of Whisper's `tokenizer.json`
and of its `.tiktoken` ranks take it as it is. Every word is one token, with the space before it, in lower case and
capitalised; the tokens that its merges pass through are there too.
"""

from __future__ import annotations

import base64
import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

from demo.grammar import WORDS
from mlx_speech.languages import LANGUAGES
from mlx_speech.stages.whisper.tokenizer import TASKS, TIMESTAMPS

SPECIAL = (
    *("<|endoftext|>", "<|startoftranscript|>"),
    *(f"<|{code}|>" for code in list(LANGUAGES)[:99]),
    *TASKS,
    *TIMESTAMPS,
)


def spelling() -> list[str]:
    """The character for each byte in GPT-2's alphabet: itself where it prints, else one from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


@cache
def text_tokens() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens of text → id, spelled in GPT-2's alphabet, and the merges that make them.

    The most frequent pair of pieces is joined, over and over, until every word is one piece (Sennrich et al. 2016).
    """
    spell = spelling()
    vocab = {
        spell[byte]: k for k, byte in enumerate(sorted(range(256), key=lambda byte: (ord(spell[byte]) > 255, byte)))
    }
    words = [[*("Ġ" + form)] for word in WORDS for form in (word, word.capitalize())]
    merges = []
    while True:
        counts: dict[tuple[str, str], int] = {}
        for pieces in words:
            for pair in itertools.pairwise(pieces):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            return vocab, merges
        pair = max(counts, key=lambda pair: (counts[pair], len(pair[0] + pair[1]), pair))
        merges.append(pair)
        vocab.setdefault(pair[0] + pair[1], len(vocab))
        words = [_joined(pieces, pair) for pieces in words]


def _joined(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


@cache
def ids() -> dict[str, int]:
    """Every token → id, the special ones included."""
    vocab, _ = text_tokens()
    return {**vocab, **{token: len(vocab) + k for k, token in enumerate(SPECIAL)}}


def languages() -> list[str]:
    return list(LANGUAGES)[:99]


@cache
def spoken() -> list[int]:
    """The tokens that are words."""
    return [ids()["Ġ" + form] for word in WORDS for form in (word, word.capitalize())]


def encoded(text: str) -> list[int]:
    """Of words of the grammar and full stops: " Anna sold seven boats." → one token for each."""
    return [ids()[token] for token in text.replace(".", " .").replace(" ", " Ġ").replace("Ġ.", ".").split()]


def tokenizer_json() -> dict[str, Any]:
    vocab, merges = text_tokens()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    model |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": ids()[token], "content": token, **flags, "special": not token[2].isdigit()} for token in SPECIAL
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", **model, "vocab": vocab, "merges": [" ".join(pair) for pair in merges]},
    }


def ranks() -> dict[bytes, int]:
    """For tiktoken: the bytes of every token of text → id."""
    byte = {character: value for value, character in enumerate(spelling())}
    return {bytes(byte[character] for character in token): k for token, k in text_tokens()[0].items()}


def write(folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json of transformers' WhisperTokenizer."""
    end = "<|endoftext|>"
    config = {"tokenizer_class": "WhisperTokenizer", "add_prefix_space": False, "errors": "replace"}
    config |= {"bos_token": end, "eos_token": end, "pad_token": end, "unk_token": end}
    # the last of them tells transformers where the timestamps begin
    config["additional_special_tokens"] = list(SPECIAL[: SPECIAL.index(TIMESTAMPS[0])])
    config |= {"model_max_length": 128, "return_attention_mask": False, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(), ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def tiktoken_lines() -> str:
    """The ranks as openai-whisper keeps them: a line is base64 of the bytes, and the rank."""
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks().items())
