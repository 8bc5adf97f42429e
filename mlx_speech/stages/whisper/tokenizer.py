"""Whisper's tokens: text ↔ ids, the special ones, and which tokens make a word.

Source: openai/whisper `tokenizer.py`, whose names are kept. The vocabulary is a byte-level BPE, read from a
`tokenizer.json`, from the older `vocab.json` and `merges.txt`, from ranks as openai-whisper has them (`*.tiktoken`), or
from CTranslate2's `vocabulary.json`; every id is taken from it, so that vocabularies of other sizes work. OpenAI's own
ranks come with the package. As in all of Whisper, text comes before `<|endoftext|>`, then the other special tokens,
then the timestamps, 0.02 s apart.
"""

from __future__ import annotations

import base64
import gzip
import json
import string
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from itertools import count, groupby
from pathlib import Path
from typing import TypeAlias

from mlx_speech.errors import ConfigError, CorruptFile, OptionError, SourceError, brief, shorten
from mlx_speech.languages import LANGUAGES, to_language_code
from mlx_speech.package_data import ASSETS

# Languages whose tokens openai/whisper gathers into characters, not into words; its list has no Khmer and no Tibetan.
SPLIT_BY_CHARACTER = ("zh", "ja", "th", "lo", "my", "yue")

TIMESTAMPS = [f"<|{k * 0.02:.2f}|>" for k in range(1501)]  # 0.00 to 30.00 s
TASKS = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
GPT2 = 50256  # text tokens of the English-only models, whose vocabulary lists languages that they do not know

ENGLISH_ONLY = 51864  # tokens that an English-only model knows

# The ranks that come with the package, by how many tokens the model knows. The multilingual ones serve 99 languages
# and, since large-v3, 100.
RANKS = ASSETS / "whisper_tokenizer"
PUBLISHED = {ENGLISH_ONLY: "gpt2.tiktoken", 51865: "multilingual.tiktoken", 51866: "multilingual.tiktoken"}
MAX_TOKEN = 256  # bytes; OpenAI's longest has 128
MAX_FILE = 1 << 26  # bytes; the largest tokenizers have 10 million
# What annotates rather than says: speaker names in brackets, notes of music … "-" and "'" do so only before a word.
SYMBOLS = '" # ( ) * + / : ; < = > @ [ \\ ] ^ _ ` { | } ~ 「 」 『 』 << >> <<< >>> -- --- -( -[ '
SYMBOLS += "(' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪"
MUSIC = "♩♪♫♬♭♮♯"  # several tokens each; the first is shared by symbols that are not spoken either

Parts: TypeAlias = tuple[dict[str, int], list[tuple[str, str]], dict[str, int], bool]  # what a Tokenizer is made of


class Tokenizer:
    """The ids of the special tokens, and text to ids and back. It is made of:

    vocab : every token, spelled in GPT-2's alphabet of bytes → id
    merges : pairs of tokens, in the order in which they are joined
    added : special tokens that `vocab` lacks → id
    ignore_merges : a word that is a token is taken as it is, as tiktoken does

    eot, sot, translate, transcribe, sot_lm, sot_prev, no_speech, no_timestamps, timestamp_begin : ids
    multilingual : whether languages can be told apart; languages : code → id, empty where not
    n_vocab : the ids lie below it, timestamps included
    """

    def __init__(self, parts: Parts):
        import tokenizers

        vocab, merges, added, ignore_merges = parts
        if not all(type(index) is int and 0 <= index < 1 << 31 for index in [*vocab.values(), *added.values()]):
            raise ValueError("ids that are no numbers")
        if not all(left in vocab and right in vocab and left + right in vocab for left, right in merges):
            raise ValueError("merges of tokens that it does not have")
        self._backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, ignore_merges=ignore_merges))
        self._backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._backend.decoder = tokenizers.decoders.ByteLevel()
        ids = {**vocab, **added}
        ids.setdefault("<|nospeech|>", ids.get("<|nocaptions|>", -1))  # its name in older files
        needed = ("<|endoftext|>", "<|startoftranscript|>", *TASKS)
        missing = [token for token in needed if ids.get(token, -1) < 0]
        if missing:
            raise ConfigError(f"not a Whisper's vocabulary: it lacks {', '.join(missing)}")
        self.eot, self.sot, self.translate, self.transcribe, *rest = (ids[token] for token in needed)
        self.sot_lm, self.sot_prev, self.no_speech, self.no_timestamps = rest
        languages = {code: ids[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in ids}
        self.languages = languages if self.eot != GPT2 else {}
        self.multilingual = bool(self.languages)
        # older files of transformers end with <|notimestamps|>, and mean the same
        times = [ids[token] for token in TIMESTAMPS if token in ids] or [self.no_timestamps + k for k in range(1, 1502)]
        self.timestamp_begin, self.n_vocab = times[0], times[-1] + 1
        text = [index for token, index in vocab.items() if not (token.startswith("<|") and token.endswith("|>"))]
        special = [*(ids[token] for token in needed[1:]), *languages.values()]
        ordered = max(text, default=-1) < self.eot < min(special) <= max(special) < self.timestamp_begin
        if not ordered or times != list(range(self.timestamp_begin, self.n_vocab)):
            raise ConfigError("not a Whisper's vocabulary: text, special tokens and timestamps are in another order")
        self._special = {index: token for token, index in ids.items() if index >= self.eot}
        self._special |= dict(enumerate(TIMESTAMPS, self.timestamp_begin))

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Of a `tokenizer.json`. Raises `SourceError` naming the file."""
        return _built(Path(path), _tokenizer_json)

    @classmethod
    def find(cls, folder: Path | None, n_vocab: int) -> Tokenizer:
        """The tokenizer of the model in `folder`, or, where that has none, OpenAI's for its size of vocabulary.

        Raises `SourceError` where there is none, or where it has more tokens than the model.
        """
        found = _beside(folder, n_vocab) if folder is not None else None
        if found is None:
            found = _published(folder or "this model", n_vocab)
        if found.n_vocab > n_vocab:
            raise ConfigError(f"{folder}: {found.n_vocab} tokens for a model that knows {n_vocab}: fetch it again")
        return found

    def sot_sequence(self, language: str | None, task: str) -> tuple[int, ...]:
        """What a transcript starts with, without <|notimestamps|>; no language means English, as upstream.

        Models that are not multilingual have only one. Raises `OptionError` for a language or task they do not know.
        """
        if not self.multilingual:
            return (self.sot,)
        if task not in ("transcribe", "translate"):
            raise OptionError(f"task={task!r}: choose from transcribe, translate")
        code = to_language_code(language or "en")
        if code not in self.languages:
            raise OptionError(f"language {code}: this model does not know it, only {shorten(list(self.languages), 12)}")
        return (self.sot, self.languages[code], self.transcribe if task == "transcribe" else self.translate)

    def encode(self, text: str) -> list[int]:
        """The ids of plain text; the name of a special token in it is text like any other."""
        return self._backend.encode(text).ids

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of the text tokens among `tokens`; bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode([int(token) for token in tokens if token < self.eot])

    def decode_with_timestamps(self, tokens: Iterable[int]) -> str:
        """The text, and every special token by its name: <|1.08|>."""
        runs = groupby(map(int, tokens), key=lambda token: token < self.eot)
        texts = (self.decode(run) if text else "".join(self._special.get(t, "") for t in run) for text, run in runs)
        return "".join(texts)

    @cached_property
    def non_speech_tokens(self) -> tuple[int, ...]:
        """Tokens that annotate rather than speak, which `suppress_tokens="-1"` stands for."""
        result = {*self.encode(" -")[:1], *self.encode(" '")[:1]}
        for symbol in (*SYMBOLS.split(), *MUSIC):
            for tokens in (self.encode(symbol), self.encode(f" {symbol}")):
                result.update(tokens[:1] if len(tokens) == 1 or symbol in MUSIC else ())
        return tuple(sorted(result))

    @cached_property
    def numeral_tokens(self) -> tuple[int, ...]:
        """Tokens with a digit or one of % $ £, which `suppress_numerals` stands for (WhisperX)."""
        texts = self._backend.decode_batch([[token] for token in range(self.eot)])
        return tuple(token for token, text in enumerate(texts) if not set("0123456789%$£").isdisjoint(text))

    def split_to_word_tokens(self, tokens: Sequence[int], language: str | None) -> tuple[list[str], list[list[int]]]:
        """`tokens` as words, each with its tokens: between spaces, or by character in languages without them."""
        pieces = self._split_on_unicode(tokens)
        words: list[tuple[str, list[int]]] = []
        for piece, ids in pieces if language not in SPLIT_BY_CHARACTER else ():
            if not words or ids[0] >= self.eot or piece.startswith(" ") or piece.strip() in string.punctuation:
                words.append((piece, ids))
            else:
                words[-1] = (words[-1][0] + piece, words[-1][1] + ids)
        words = words or pieces
        return [word for word, _ in words], [ids for _, ids in words]

    def _split_on_unicode(self, tokens: Sequence[int]) -> list[tuple[str, list[int]]]:
        """The shortest runs of tokens that are whole characters, or bytes that are none in the full text either."""
        full = self.decode_with_timestamps(tokens)
        pieces: list[tuple[str, list[int]]] = []
        run, offset = list[int](), 0
        for token in tokens:
            run.append(token)
            text = self.decode_with_timestamps(run)
            wrong = text.find("\ufffd")
            if wrong < 0 or full[offset + wrong : offset + wrong + 1] == "\ufffd":
                pieces.append((text, run))
                offset += len(text)
                run = []
        # where two broken characters meet in one token, upstream loses the rest or fails
        return [*pieces, (self.decode_with_timestamps(run), run)] if run else pieces


def from_ranks(path: Path, n_vocab: int) -> Tokenizer:
    """From a file of ranks, as openai-whisper and mlx-whisper have them (`*.tiktoken`, or compressed `*.tiktoken.gz`).

    n_vocab : tokens that the model knows; how many languages there are follows from it
    Raises `SourceError` naming the file.
    """
    return _built(path, partial(_ranks, n_vocab=n_vocab))


def _beside(folder: Path, n_vocab: int) -> Tokenizer | None:
    """The tokenizer whose files lie in `folder`, None where there are none. Raises `SourceError`."""
    usual = folder / PUBLISHED.get(n_vocab, "multilingual.tiktoken")
    ranks = [usual, *sorted(path for path in folder.glob("*.tiktoken") if path != usual)]
    places: list[tuple[Path, Callable[[Path], Parts]]] = [
        (folder / "tokenizer.json", _tokenizer_json),
        (folder / "merges.txt", _legacy),
        *((path, partial(_ranks, n_vocab=n_vocab)) for path in ranks),
        (folder / "vocabulary.json", _vocabulary),
        (folder / "vocabulary.txt", _vocabulary),
    ]
    for path, read in places:
        if path.is_file():
            return _built(path, read)
    return None


def _published(place: str | Path, n_vocab: int) -> Tokenizer:
    """OpenAI's tokenizer of that size, which comes with the package."""
    if n_vocab not in PUBLISHED:
        raise SourceError(f"{place}: no tokenizer, and {n_vocab} tokens are not OpenAI's: put its tokenizer.json there")
    return from_ranks(RANKS / f"{PUBLISHED[n_vocab]}.gz", n_vocab)


def _built(path: Path, read: Callable[[Path], Parts]) -> Tokenizer:
    try:
        if path.stat().st_size > MAX_FILE:
            raise ValueError(f"{path.stat().st_size} bytes are too many")
        return Tokenizer(read(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}: fetch it again") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptFile(f"{path}: no tokenizer that can be read ({brief(str(error))}): fetch it again") from error


def _tokenizer_json(path: Path) -> Parts:
    content = json.loads(path.read_text(encoding="utf-8"))
    model, before = content["model"], content["pre_tokenizer"]
    if model.get("type", "BPE") != "BPE" or before["type"] != "ByteLevel" or before.get("add_prefix_space"):
        raise ConfigError("not a byte-level BPE, as all of Whisper's are")
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    return model["vocab"], [(left, right) for left, right in pairs], added, bool(model.get("ignore_merges"))


def _legacy(path: Path) -> Parts:
    """merges.txt, with vocab.json and, where there is one, added_tokens.json beside it."""
    extra = path.with_name("added_tokens.json")
    added = json.loads(extra.read_text(encoding="utf-8")) if extra.is_file() else {}
    vocab = json.loads(path.with_name("vocab.json").read_text(encoding="utf-8"))
    lines = [line.split(" ") for line in path.read_text(encoding="utf-8").split("\n")]
    return vocab, [(line[0], line[1]) for line in lines if len(line) == 2 and line[0] != "#version:"], added, False


def _ranks(path: Path, n_vocab: int) -> Parts:
    """A file of ranks: a line is a token's bytes in base64, and its rank, which is its id."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    lines = [line.rpartition(" ") for line in content.decode("ascii").splitlines() if line]
    # After the text: <|endoftext|>, <|startoftranscript|>, the languages, the tasks, the timestamps.
    languages = n_vocab - len(lines) - 2 - len(TASKS) - len(TIMESTAMPS)
    english_only = len(lines) == GPT2
    if not 0 <= languages <= len(LANGUAGES) or english_only != (n_vocab == ENGLISH_ONLY):
        raise ConfigError(f"{len(lines)} ranks do not make the vocabulary of a model that knows {n_vocab} tokens")
    spell = _byte_alphabet()
    vocab: dict[str, int] = {}
    for encoded, _, rank in lines:
        empty = encoded in ("", "=")  # OpenAI's last multilingual token, which it writes as "="
        token = b"" if empty else base64.b64decode(encoded, validate=True)
        vocab["".join(spell[byte] for byte in token)] = int(rank)
    if sorted(vocab.values()) != list(range(len(lines))):
        raise ValueError("ranks that do not count up, or a token twice")
    names = ["<|endoftext|>", "<|startoftranscript|>"]
    names += [f"<|{code}|>" for code in list(LANGUAGES)[:languages]]
    names += [*TASKS, *TIMESTAMPS]
    added = {token: index for index, token in enumerate(names, len(vocab))}
    return vocab, _merges(vocab), added, True


def _vocabulary(path: Path) -> Parts:
    """CTranslate2's list of all tokens, in the order of their ids: an array in JSON, or a line each.

    It has no merges; the ids of text tokens are their ranks, as in every vocabulary that was trained as GPT-2's was.
    """
    text = path.read_text(encoding="utf-8")
    tokens = json.loads(text) if path.suffix == ".json" else text.removesuffix("\n").split("\n")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ValueError("no list of tokens")
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise ValueError("a token twice")
    if "<|endoftext|>" not in ids:
        raise ConfigError("not a Whisper's vocabulary: it lacks <|endoftext|>")
    end = ids["<|endoftext|>"]
    vocab = {token: index for token, index in ids.items() if index < end}
    added = {token: index for token, index in ids.items() if index >= end}
    return vocab, _merges(vocab), added, True


def _byte_alphabet() -> list[str]:
    """GPT-2's letter for each of the 256 bytes: itself where it is printable, else one of those from U+0100."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = count(256)
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _merges(vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every way in which a token is two others, by rank: tiktoken joins the pair whose union ranks lowest."""
    merges = []
    for token in sorted(vocab, key=vocab.__getitem__):
        if len(token) > MAX_TOKEN:
            raise ValueError(f"a token of {len(token)} bytes")
        for place in range(1, len(token)):
            left, right = token[:place], token[place:]
            if left in vocab and right in vocab:
                merges.append((left, right))
    return merges
