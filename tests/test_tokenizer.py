"""The tokenizer beside openai-whisper's own, its files in every layout, and where it is found."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import whisper.tokenizer as upstream
from hub_server import HubServer, Repo
from hypothesis import given, settings
from hypothesis import strategies as st
from test_convert import hub_environment, python

from mlx_speech.errors import ConfigError, CorruptFile, OptionError, SourceError
from mlx_speech.languages import LANGUAGES, to_language_code
from mlx_speech.stages.whisper.tokenizer import RANKS, SPLIT_BY_CHARACTER, TASKS, TIMESTAMPS, Tokenizer, from_ranks

ASSETS = Path(upstream.__file__).parent / "assets"
FILES = ("gpt2.tiktoken", "multilingual.tiktoken")
SIZES = (51864, 51865, 51866)  # English only, 99 languages, 100 languages
FAST = settings(max_examples=150, deadline=None, derandomize=True)
TEXTS = [
    "",
    " ",
    "Hello, world!",
    " And so, my fellow Americans: ask not what your country can do for you — ask what you can do…",
    "don't we'll I'VE it's  two  spaces\nlines\r\n\ttabs   ",
    "3.14159 1,000,000 20% $5 £3 №7 ½ ² ௧௨௩ ٣٤٥",
    " Grüße aus Köln, où l'été naïve façade; señor ¿qué? år øl œuvre İstanbul",
    "我们今天来讨论一个非常重要的问题。",
    "今日はとても良い天気ですね。カタカナ、ひらがな、漢字。",
    "สวัสดีครับ วันนี้อากาศดีมาก",
    "ສະບາຍດີ ຂອບໃຈ",
    "မင်္ဂလာပါ",
    "오늘 날씨가 정말 좋네요.",
    "Привет, как дела? Їжак єхидна",
    "مرحبا كيف حالك؟ سلام، חג שמח",
    "नमस्ते दुनिया, আমার সোনার বাংলা, தமிழ்",
    "Γειά σου Κόσμε, ქართული, հայերեն, አማርኛ",
    "Tiếng Việt có dấu: ư ơ ă đ",
    "👩‍👩‍👧‍👦 🇺🇦 emoji ♪♪♪ ♩♯ ☃",
    "e\u0301 zero\u200bwidth \u00a0nbsp \u3000wide \ufeffbom \u2028line",
    "aaaaaaaaaaaaaaaa abababab --- ((( ]]] ___ ...",
    "\x00\x01\x7f control",
    "<|endoftext|><|0.00|> <|en|> is text",
]
SPLIT = {
    "en": " Hello, world! It's 9 o'clock (really) - don't.",
    "zh": "我们今天来讨论一个非常重要的问题。",
    "ja": "今日は良い天気ですね、東京タワー。",
    "th": "สวัสดีครับ วันนี้",
    "lo": "ສະບາຍດີ",
    "my": "မင်္ဂလာပါ",
    "yue": "今日天氣好好 㗎喎",
    "ko": " 오늘 날씨가 정말 좋네요.",
    "de": " Grüße, “Köln” 👩‍👧 Straße",
    "ar": " مرحبا كيف حالك؟",
}


@cache
def ours(n_vocab: int) -> Tokenizer:
    """The one that comes with the package."""
    return Tokenizer.find(None, n_vocab)


@cache
def theirs(n_vocab: int, language: str | None = None, task: str | None = None) -> upstream.Tokenizer:
    languages = 100 if n_vocab == 51866 else 99
    return upstream.get_tokenizer(n_vocab != 51864, num_languages=languages, language=language, task=task)


# --- as openai-whisper -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_vocab", SIZES)
def test_special_tokens(n_vocab: int) -> None:
    mine, other = ours(n_vocab), theirs(n_vocab)
    for name in ("eot", "sot", "translate", "transcribe", "sot_lm", "sot_prev", "no_speech", "no_timestamps"):
        assert getattr(mine, name) == getattr(other, name), name
    assert mine.timestamp_begin == other.timestamp_begin and mine.n_vocab == other.encoding.n_vocab == n_vocab
    assert mine.non_speech_tokens == other.non_speech_tokens
    assert len(mine.non_speech_tokens) == (84 if n_vocab == 51864 else 82)
    assert mine.multilingual == (n_vocab >= 51865) == bool(mine.languages)
    if mine.multilingual:
        found = dict(zip(other.all_language_codes, other.all_language_tokens, strict=True))  # in no order
        assert mine.languages == found and list(mine.languages) == list(LANGUAGES)[: len(found)]
    names = other.special_tokens
    assert mine.decode_with_timestamps(names.values()) == "".join(names)


@pytest.mark.parametrize("n_vocab", SIZES)
def test_sot_sequence(n_vocab: int) -> None:
    mine = ours(n_vocab)
    for language in [*upstream.LANGUAGES, None]:
        for task in ("transcribe", "translate"):
            if language == "yue" and n_vocab == 51865:
                with pytest.raises(OptionError, match="language yue: this model does not know it"):
                    mine.sot_sequence(language, task)
            else:
                assert mine.sot_sequence(language, task) == theirs(n_vocab, language, task).sot_sequence
    if mine.multilingual:
        with pytest.raises(OptionError, match="transcribe, translate"):
            mine.sot_sequence("en", "lang_id")


def test_languages() -> None:
    assert upstream.LANGUAGES == LANGUAGES and list(upstream.LANGUAGES) == list(LANGUAGES)
    for name, code in upstream.TO_LANGUAGE_CODE.items():
        assert to_language_code(name) == to_language_code(name.title()) == to_language_code(f" {name.upper()} ") == code
    for code in LANGUAGES:
        assert to_language_code(code) == to_language_code(code.upper()) == code
    for wrong, advice in (
        ("englsh", "did you mean english"),
        ("xx", "its code"),
        ("", "its code"),
        ("en-US", "did you mean en"),
    ):
        with pytest.raises(OptionError, match=advice) as caught:
            to_language_code(wrong)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n_vocab", SIZES)
@pytest.mark.parametrize("text", TEXTS)
def test_texts(n_vocab: int, text: str) -> None:
    tokens = ours(n_vocab).encode(text)
    assert tokens == theirs(n_vocab).encode(text, disallowed_special=())
    assert ours(n_vocab).decode(tokens) == text


@FAST
@given(text=st.text(max_size=60), n_vocab=st.sampled_from(SIZES))
def test_any_text(text: str, n_vocab: int) -> None:
    tokens = ours(n_vocab).encode(text)
    assert tokens == theirs(n_vocab).encode(text, disallowed_special=())
    assert ours(n_vocab).decode(tokens) == text


@FAST
@given(text=st.text(st.sampled_from("aan  eeth'ts.-\n"), max_size=80), n_vocab=st.sampled_from(SIZES))
def test_repetitive_text(text: str, n_vocab: int) -> None:
    """Where one token can be reached by several merges that overlap."""
    assert ours(n_vocab).encode(text) == theirs(n_vocab).encode(text)


@FAST
@given(data=st.data(), n_vocab=st.sampled_from(SIZES))
def test_any_tokens(data: st.DataObject, n_vocab: int) -> None:
    """Most of them broken UTF-8, with special tokens in between."""
    broken = [220, *ours(n_vocab).encode("日本語のテキスト👩‍👧 Привет £")]
    token = st.one_of(st.integers(0, n_vocab - 1), st.integers(50200, n_vocab - 1), st.sampled_from(broken))
    tokens = data.draw(st.lists(token, max_size=30))
    mine, other = ours(n_vocab), theirs(n_vocab)
    text = [token for token in tokens if token < other.eot]
    assert mine.decode(tokens) == other.decode(text)
    assert mine.decode_with_timestamps(tokens) == other.decode_with_timestamps(tokens)
    for language in ("en", "ja"):
        words, parts = mine.split_to_word_tokens(tokens, language)
        assert [token for part in parts for token in part] == tokens
        method = other.split_tokens_on_unicode if language in SPLIT_BY_CHARACTER else other.split_tokens_on_spaces
        try:
            expected = method(tokens)
        except IndexError:  # its own, where broken characters meet
            continue
        if sum(map(len, expected[1])) == len(tokens):
            assert (words, parts) == expected


@pytest.mark.parametrize("language", SPLIT)
@pytest.mark.parametrize("n_vocab", SIZES)
def test_words(n_vocab: int, language: str) -> None:
    tokens = [*ours(n_vocab).encode(SPLIT[language]), ours(n_vocab).eot]
    other = theirs(n_vocab, language if n_vocab == 51866 or language != "yue" else "zh")
    words, parts = ours(n_vocab).split_to_word_tokens(tokens, language if n_vocab != 51864 else None)
    assert (words, parts) == other.split_to_word_tokens(tokens)
    assert "".join(words) == f"{SPLIT[language]}<|endoftext|>" and words[-1] == "<|endoftext|>"


def test_broken_characters_that_meet_lose_no_token() -> None:
    mine = ours(51865)
    lone = {byte: mine.encode(bytes([byte]).decode("latin-1"))[-1:] for byte in range(128)}
    first, rest = mine.encode("€")[0], mine.encode("あ")  # bytes of characters that are never completed
    for tokens in ([first, *rest], [first, first], [*rest[:1], *lone[65]], [first]):
        words, parts = mine.split_to_word_tokens(tokens, "ja")
        assert [token for part in parts for token in part] == tokens and len(words) == len(parts)


@pytest.mark.parametrize("n_vocab", SIZES)
def test_numerals(n_vocab: int) -> None:
    other = theirs(n_vocab)
    expected = [k for k in range(other.eot) if any(c in "0123456789%$£" for c in other.decode([k]).removeprefix(" "))]
    assert list(ours(n_vocab).numeral_tokens) == expected and len(expected) > 400


# --- files -----------------------------------------------------------------------------------------------------------


def definition(tokenizer: Tokenizer, **changes: Any) -> dict[str, Any]:
    """A tokenizer.json as transformers writes Whisper's: special tokens added, and put around every text."""
    backend = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    template = {"single": "<|sot|> $A <|eot|>", "special_tokens": [("<|sot|>", 50258), ("<|eot|>", 50257)]}
    backend.post_processor = tokenizers.processors.TemplateProcessing(**template)
    content = json.loads(backend.to_str())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = {index: token for index, token in tokenizer._special.items() if index < tokenizer.n_vocab}
    content["added_tokens"] = [
        {"id": index, "content": token, **plain, "special": index < tokenizer.timestamp_begin}
        for index, token in sorted(special.items())
    ]
    return {**content, **changes}


def write(folder: Path, content: Any, name: str = "tokenizer.json") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder / name


def same(one: Tokenizer, other: Tokenizer) -> None:
    for text in TEXTS:
        assert one.encode(text) == other.encode(text)
    tokens = [0, 99, 220, *one.encode("日本"), one.eot, one.sot, one.no_speech, one.timestamp_begin, one.n_vocab - 1]
    for name in ("eot", "sot", "translate", "transcribe", "sot_lm", "sot_prev", "no_speech", "no_timestamps"):
        assert getattr(one, name) == getattr(other, name)
    assert (one.timestamp_begin, one.n_vocab) == (other.timestamp_begin, other.n_vocab)
    assert one.languages == other.languages and one.multilingual == other.multilingual
    assert one.decode(tokens) == other.decode(tokens)
    assert one.decode_with_timestamps(tokens[-2:]) == other.decode_with_timestamps(tokens[-2:]) == "<|0.00|><|30.00|>"


@pytest.mark.parametrize("n_vocab", SIZES)
def test_written_and_read_again(tmp_path: Path, n_vocab: int) -> None:
    path = write(tmp_path, definition(ours(n_vocab)))
    same(Tokenizer.from_file(path), ours(n_vocab))
    same(Tokenizer.find(tmp_path, n_vocab), ours(n_vocab))
    assert Tokenizer.from_file(path).encode("hello") == theirs(n_vocab).encode("hello"), "nothing is put around it"


def test_a_file_of_transformers(tmp_path: Path) -> None:
    """Written by transformers itself, with merges of its own kind, a prefix and a suffix."""
    from transformers import WhisperTokenizer

    mine = ours(51865)
    model = definition(mine)["model"]
    vocab, merges = {**model["vocab"], "<|endoftext|>": 50257}, [tuple(pair) for pair in model["merges"]]
    original = WhisperTokenizer(vocab=vocab, merges=merges)
    special = [token for index, token in sorted(mine._special.items()) if mine.eot < index < mine.timestamp_begin]
    original.add_special_tokens({"additional_special_tokens": special})
    original.add_tokens(TIMESTAMPS)
    original.set_prefix_tokens(language="german", task="translate")
    original.save_pretrained(tmp_path)
    assert original("hello").input_ids[:2] == [50258, 50261]
    same(Tokenizer.from_file(tmp_path / "tokenizer.json"), mine)


def test_older_names_and_files(tmp_path: Path) -> None:
    """vocab.json, merges.txt and added_tokens.json; <|nocaptions|>; no timestamps, which follow all the same."""
    mine = ours(51865)
    content = definition(mine)
    added = {token["content"]: token["id"] for token in content["added_tokens"] if token["special"]}
    added["<|nocaptions|>"] = added.pop("<|nospeech|>")
    write(tmp_path, {**content["model"]["vocab"], "<|endoftext|>": added.pop("<|endoftext|>")}, "vocab.json")
    write(tmp_path, "#version: 0.2\n" + "\n".join(map(" ".join, content["model"]["merges"])) + "\n", "merges.txt")
    with pytest.raises(ConfigError, match=r"lacks <\|startoftranscript\|>"):
        Tokenizer.find(tmp_path, 51865)
    write(tmp_path, added, "added_tokens.json")
    same(Tokenizer.find(tmp_path, 51865), mine)
    everything = json.loads((tmp_path / "vocab.json").read_text()) | added
    write(tmp_path, everything, "vocab.json")  # as some write it
    (tmp_path / "added_tokens.json").unlink()
    same(Tokenizer.find(tmp_path, 51865), mine)
    merges = [" ".join(pair) for pair in content["model"]["merges"]]  # as `tokenizers` wrote them before 0.20
    write(tmp_path, {**content, "model": {**content["model"], "merges": merges}})
    (tmp_path / "merges.txt").write_text("no longer read")
    same(Tokenizer.find(tmp_path, 51865), mine)


def small(languages: list[str], words: list[str], timestamps: int = 1501, merges: bool = False) -> dict[str, Any]:
    """A byte-level vocabulary of 256 bytes, some words, and special tokens, built by the library `tokenizers`."""
    model = json.loads(ours(51865)._backend.to_str())["model"]
    letters = sorted((token for token in model["vocab"] if len(token) == 1), key=lambda token: model["vocab"][token])
    tokens, pairs = letters[:256], []
    for word in words if not merges else ():
        tokens.append("Ġ" + word)
    for word in words if merges else ():
        for end in range(1, len(word) + 1):
            left, right = ("Ġ" + word)[:end], ("Ġ" + word)[end]
            if left + right not in tokens:
                tokens.append(left + right)
                pairs.append((left, right))
    bpe = tokenizers.models.BPE({token: k for k, token in enumerate(tokens)}, pairs, ignore_merges=not merges)
    backend = tokenizers.Tokenizer(bpe)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    codes = [f"<|{code}|>" for code in languages]
    special = ["<|endoftext|>", "<|startoftranscript|>", *codes, *TASKS, *TIMESTAMPS[:timestamps]]
    backend.add_special_tokens(special)
    return json.loads(backend.to_str())


@pytest.mark.parametrize("merges", [False, True])
@pytest.mark.parametrize("timestamps", [1501, 101])
@pytest.mark.parametrize("languages", [[], ["en"], ["de", "en", "yue"], list(LANGUAGES)])
def test_a_vocabulary_of_its_own(tmp_path: Path, languages: list[str], timestamps: int, merges: bool) -> None:
    words = [f"{first}{last}" for first in ("one", "two", "three", "four") for last in ("", "s", "ty")]
    content = small(languages, words, timestamps, merges)
    path = write(tmp_path, content)
    size = len(content["model"]["vocab"]) + 8 + len(languages) + timestamps
    mine = Tokenizer.find(tmp_path, size)
    assert mine.n_vocab == size and mine.eot == len(content["model"]["vocab"]) and mine.sot == mine.eot + 1
    assert mine.timestamp_begin == size - timestamps and mine.multilingual == bool(languages)
    assert set(mine.languages) == set(languages)
    assert mine.decode_with_timestamps([mine.timestamp_begin + 4, mine.eot]) == "<|0.08|><|endoftext|>"
    text = " one twoty three, fours1 日本"
    assert len(mine.encode(text)) == 13 and mine.decode(mine.encode(text)) == text
    words, parts = mine.split_to_word_tokens([*mine.encode(" one fours!"), mine.eot], "en")
    assert words == [" one", " fours", "!", "<|endoftext|>"] and [len(part) for part in parts] == [1, 1, 1, 1]
    assert {mine.decode([token]) for token in mine.numeral_tokens} == set("0123456789%$")
    assert set(mine.non_speech_tokens) >= {mine.encode(symbol)[0] for symbol in "(["}
    if languages:
        assert mine.sot_sequence(languages[-1], "translate")[1:] == (mine.languages[languages[-1]], mine.translate)
    else:
        assert mine.sot_sequence("de", "translate") == (mine.sot,)
    with pytest.raises(ConfigError, match="tokens for a model that knows"):
        Tokenizer.find(tmp_path, size - 1)
    assert Tokenizer.from_file(path).n_vocab == size


def test_files_that_are_none(tmp_path: Path) -> None:
    good = small(["en"], ["one"], merges=True)
    model = good["model"]

    def without(token: str) -> list[dict]:
        return [entry for entry in good["added_tokens"] if entry["content"] != token]

    def moved(token: str, index: int) -> list[dict]:
        return [{**entry, "id": index} if entry["content"] == token else entry for entry in good["added_tokens"]]

    cases: list[tuple[Any, type[Exception], str]] = [
        ("", CorruptFile, "fetch it again"),
        ("[1, 2]", CorruptFile, "fetch it again"),
        ("[" * 100_000, CorruptFile, "fetch it again"),
        (json.dumps(good)[:-9], CorruptFile, "fetch it again"),
        ({}, CorruptFile, "model"),
        ({**good, "model": None}, CorruptFile, "fetch it again"),
        ({**good, "model": {**model, "vocab": ["a"]}}, CorruptFile, "fetch it again"),
        ({**good, "model": {**model, "vocab": {"a": "x"}, "merges": []}}, CorruptFile, "no numbers"),
        ({**good, "model": {**model, "vocab": {"a": -1}, "merges": []}}, CorruptFile, "no numbers"),
        ({**good, "model": {**model, "merges": [["Ġ", "zz"]]}}, CorruptFile, "merges of tokens"),
        ({**good, "model": {**model, "merges": ["Ġ"]}}, CorruptFile, "fetch it again"),
        ({**good, "model": {**model, "merges": [7]}}, CorruptFile, "fetch it again"),
        ({**good, "model": {**model, "type": "Unigram"}}, ConfigError, "byte-level BPE"),
        ({**good, "pre_tokenizer": {"type": "Whitespace"}}, ConfigError, "byte-level BPE"),
        ({**good, "pre_tokenizer": None}, CorruptFile, "fetch it again"),
        ({**good, "added_tokens": without("<|notimestamps|>")}, ConfigError, r"lacks <\|notimestamps"),
        ({**good, "added_tokens": []}, ConfigError, r"lacks <\|endoftext\|>, <\|startof"),
        ({**good, "added_tokens": without("<|0.02|>")}, ConfigError, "another order"),
        ({**good, "added_tokens": moved("<|endoftext|>", 5)}, ConfigError, "another order"),
        ({**good, "added_tokens": moved("<|en|>", 5000)}, ConfigError, "another order"),
        ({**good, "added_tokens": moved("<|0.00|>", 5000)}, ConfigError, "another order"),
    ]
    for content, kind, says in cases:
        path = write(tmp_path, content)
        with pytest.raises(SourceError, match=says) as caught:
            Tokenizer.from_file(path)
        assert type(caught.value) is kind and str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(SourceError, match=r"none\.json: cannot be read"):
        Tokenizer.from_file(tmp_path / "none.json")
    path.write_bytes(b"\xff\xfe" * 10)
    with pytest.raises(CorruptFile):
        Tokenizer.from_file(path)
    with path.open("wb") as file:
        file.truncate(1 << 27)
    with pytest.raises(CorruptFile, match="too many"):
        Tokenizer.from_file(path)


# --- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_the_ranks_that_come_with_the_package_are_openai_whispers(name: str) -> None:
    original = (ASSETS / name).read_bytes()
    assert gzip.decompress((RANKS / f"{name}.gz").read_bytes()) == original
    notice = (RANKS / "NOTICE").read_text(encoding="utf-8")
    assert f"{hashlib.sha256(original).hexdigest()}  {name}" in notice
    assert "Copyright (c) 2022 OpenAI" in notice and "version 20250625" in notice


@pytest.mark.parametrize("n_vocab", SIZES)
def test_every_token(n_vocab: int) -> None:
    """Each of them alone: the same text, and the same ids of that text."""
    mine, other = ours(n_vocab), theirs(n_vocab)
    texts = mine._backend.decode_batch([[token] for token in range(other.eot)])
    assert texts == [other.decode([token]) for token in range(other.eot)]
    found = [encoding.ids for encoding in mine._backend.encode_batch(texts)]
    assert found == [other.encode(text, disallowed_special=()) for text in texts]
    special = range(other.eot, n_vocab)
    assert [mine.decode_with_timestamps([token]) for token in special] == [
        other.decode_with_timestamps([token]) for token in special
    ]


@pytest.mark.parametrize("n_vocab", SIZES)
def test_ranks_beside_the_weights(tmp_path: Path, n_vocab: int) -> None:
    """By their usual names, of which the model's size says the one that is meant, or by any other."""
    for name in FILES:
        (tmp_path / name).write_bytes((ASSETS / name).read_bytes())
    same(Tokenizer.find(tmp_path, n_vocab), ours(n_vocab))
    wanted = FILES[n_vocab != 51864]
    (tmp_path / wanted).rename(tmp_path / "a.tiktoken")
    same(Tokenizer.find(tmp_path, n_vocab), ours(n_vocab))
    (tmp_path / "a.tiktoken").unlink()
    with pytest.raises(ConfigError, match=rf"ranks do not make the vocabulary of a model that knows {n_vocab} tokens"):
        Tokenizer.find(tmp_path, n_vocab)


def rank_file(path: Path, tokens: list[bytes], end: str = "\n") -> Path:
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    path.write_text(end.join(lines) + end, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_ranks_of_a_vocabulary_of_its_own(tmp_path: Path, end: str) -> None:
    """A fine-tuned model's are taken, though OpenAI's come with the package."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" the", "ü".encode(), b""]
    rank_file(tmp_path / "vocab.tiktoken", tokens, end)
    size = len(tokens) + 2 + 3 + len(TASKS) + len(TIMESTAMPS)
    mine = Tokenizer.find(tmp_path, size)
    assert mine.encode(" theü") == [258, 259]
    assert mine.decode(mine.encode(" the ü!")) == " the ü!" and list(mine.languages) == ["en", "zh", "de"]
    assert mine.eot == len(tokens) and mine.n_vocab == size


def test_ranks_that_are_none(tmp_path: Path) -> None:
    letters = [bytes([byte]) for byte in range(256)]
    size = 256 + 2 + len(TASKS) + len(TIMESTAMPS)
    assert from_ranks(rank_file(tmp_path / "x.tiktoken", letters), size).n_vocab == size
    good = (tmp_path / "x.tiktoken").read_text()
    cases = [
        ("", ConfigError, "0 ranks do not make"),
        (good[: len(good) // 2], ConfigError, "ranks do not make"),
        (good[:-6], CorruptFile, "fetch it again"),
        (good.replace(" 255", " 254"), CorruptFile, "count up"),
        (good.replace(" 255", " 300"), CorruptFile, "count up"),
        (good.replace(" 255", " x"), CorruptFile, "invalid literal"),
        (good.replace(" 255", ""), CorruptFile, "fetch it again"),
        (good.replace("/w== 255", "AA== 255"), CorruptFile, "a token twice"),
        (good.replace("/w== 255", "/*w== 255"), CorruptFile, "fetch it again"),
        (good.replace("/w== 255", "é 255"), CorruptFile, "fetch it again"),
        (good.replace("/w== 255", f"{base64.b64encode(bytes(300)).decode()} 255"), CorruptFile, "300 bytes"),
        (good + "YWE= 256\n", ConfigError, "257 ranks"),
    ]
    for text, kind, says in cases:
        (tmp_path / "x.tiktoken").write_text(text, encoding="utf-8")
        with pytest.raises(SourceError, match=says) as caught:
            Tokenizer.find(tmp_path, size)
        assert type(caught.value) is kind and "x.tiktoken" in str(caught.value) and "\n" not in str(caught.value)
    for n_vocab, name in ((51865, "gpt2.tiktoken"), (51864, "multilingual.tiktoken")):
        with pytest.raises(ConfigError, match="ranks do not make the vocabulary"):
            from_ranks(ASSETS / name, n_vocab)


# --- CTranslate2's list of tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["json", "txt"])
@pytest.mark.parametrize("n_vocab", SIZES)
def test_a_list_of_tokens(tmp_path: Path, n_vocab: int, suffix: str) -> None:
    mine = ours(n_vocab)
    ids = {**json.loads(mine._backend.to_str())["model"]["vocab"]}
    ids |= {token: index for index, token in mine._special.items()}
    tokens = sorted(ids, key=ids.__getitem__)
    write(tmp_path, tokens if suffix == "json" else "\n".join(tokens) + "\n", f"vocabulary.{suffix}")
    same(Tokenizer.find(tmp_path, n_vocab), mine)


def test_a_list_of_tokens_that_is_none(tmp_path: Path) -> None:
    cases = [
        (["a", "b"], ConfigError, "lacks <|endoftext|>"),
        (["a", "a", "<|endoftext|>"], CorruptFile, "a token twice"),
        (["a" * 300, "<|endoftext|>"], CorruptFile, "300 bytes"),
        ({"a": 1}, CorruptFile, "no list of tokens"),
        ([1, 2], CorruptFile, "no list of tokens"),
        ([[]], CorruptFile, "no list of tokens"),
        (7, CorruptFile, "no list of tokens"),
        ("[", CorruptFile, "fetch it again"),
    ]
    for content, kind, says in cases:
        write(tmp_path, content, "vocabulary.json")
        with pytest.raises(SourceError, match=re.escape(says)) as caught:
            Tokenizer.find(tmp_path, 51865)
        assert type(caught.value) is kind and "vocabulary.json" in str(caught.value)


# --- where it is found -----------------------------------------------------------------------------------------------


def test_there_is_none(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        with pytest.raises(SourceError, match="50000 tokens are not OpenAI's: put its"):
            Tokenizer.find(folder, 50_000)


def test_a_tokenizer_beside_the_weights_comes_first(tmp_path: Path) -> None:
    content = small(["en"], ["one"], merges=True)
    write(tmp_path, content)
    (tmp_path / "multilingual.tiktoken").write_bytes((ASSETS / "multilingual.tiktoken").read_bytes())
    assert Tokenizer.find(tmp_path, 51865).eot == len(content["model"]["vocab"])


MODEL = {"n_mels": 80, "n_audio_ctx": 16, "n_audio_state": 64, "n_audio_head": 1, "n_audio_layer": 1, "n_vocab": 51865}
MODEL |= {"n_text_ctx": 8, "n_text_state": 64, "n_text_head": 1, "n_text_layer": 1}
SCRIPT = """
import sys
import mlx_speech
from mlx_speech.stages.whisper.tokenizer import Tokenizer
assert "tokenizers" not in sys.modules
model = mlx_speech.load("mlx-community/whisper-tiny-mlx")
found = Tokenizer.find(model.folder, model.args.n_vocab)
print(found.sot_sequence("fr", "transcribe"), found.decode(found.encode(" Bonjour")), model.folder.name)
assert not {"whisper", "mlx_whisper", "torch", "transformers"} & set(sys.modules)
"""


def test_a_repository_that_has_none(tmp_path: Path) -> None:
    """mlx-community's have no tokenizer: the one that comes with the package serves, and nothing else is asked for."""
    mlx_whisper(tmp_path / "mlx")
    files = {path.name: path.read_bytes() for path in (tmp_path / "mlx").iterdir()}
    with HubServer({"mlx-community/whisper-tiny-mlx": Repo(files)}) as hub:
        found = python(tmp_path, "-c", SCRIPT, env=hub_environment(hub.url, tmp_path / "home")).stdout.strip()
        assert found.startswith("(50258, 50265, 50359)  Bonjour ")
        assert hub.downloaded() == set(files)
        assert not [request.path for request in hub.log if "openai" in request.path or "token" in request.path]


def test_a_repository_with_ranks(tmp_path: Path) -> None:
    """They are fetched with the weights, used, and go along into a converted folder."""
    mlx_whisper(tmp_path / "mlx")
    files = {path.name: path.read_bytes() for path in (tmp_path / "mlx").iterdir()}
    files["multilingual.tiktoken"] = (ASSETS / "multilingual.tiktoken").read_bytes()
    with HubServer({"mlx-community/whisper-tiny-mlx": Repo(files)}) as hub:
        env = hub_environment(hub.url, tmp_path / "home")
        model = ("--model", "mlx-community/whisper-tiny-mlx", "--mlx-path", "out")
        python(tmp_path, "-m", "mlx_speech.convert", *model, env=env)
    assert (tmp_path / "out" / "multilingual.tiktoken").read_bytes() == files["multilingual.tiktoken"]


def mlx_whisper(folder: Path) -> None:
    """A repository in mlx-whisper's layout: config.json and weights.npz."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_whisper.whisper import ModelDimensions, Whisper

    folder.mkdir()
    model = Whisper(ModelDimensions(**MODEL), mx.float16)
    mx.savez(str(folder / "weights.npz"), **dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps({**MODEL, "model_type": "whisper"}))
