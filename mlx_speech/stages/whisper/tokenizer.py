"""Whisper's tokens: text ↔ ids, the special ones, and which tokens make a word.

Source: openai/whisper `tokenizer.py`, whose names are kept. The vocabulary is a byte-level BPE,
read from a `tokenizer.json`, from the older `vocab.json` and `merges.txt`, from ranks as
openai-whisper has them (`*.tiktoken`), or from CTranslate2's `vocabulary.json`; every id is taken
from it, so that vocabularies of other sizes work. OpenAI's own ranks come with the package. As in
all of Whisper, text comes before `<|endoftext|>`, then the other special tokens, then the
timestamps, 0.02 s apart.
"""

from __future__ import annotations

import base64
import gzip
import json
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count, groupby
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_speech.errors import ConfigError, CorruptFile, OptionError, SourceError, brief, shorten
from mlx_speech.languages import LANGUAGES, to_language_code
from mlx_speech.package_data import ASSETS

if TYPE_CHECKING:
    import tokenizers

# Languages whose tokens openai/whisper gathers into characters, not into words. Its list has no
# Khmer and no Tibetan; with `languages.UNSPACED`, which has them, their words would not be
# upstream's.
SPLIT_BY_CHARACTER = ("zh", "ja", "th", "lo", "my", "yue")

TIMESTAMPS = [f"<|{k * 0.02:.2f}|>" for k in range(1501)]  # 0.00 to 30.00 s
TASKS = (
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
# Text tokens of the English-only models, whose vocabulary lists languages that they do not know.
GPT2 = 50256
ENGLISH_ONLY = 51864  # tokens that an English-only model knows

# The ranks that come with the package, by how many tokens the model knows. The multilingual ones
# serve 99 languages and, since large-v3, 100.
RANKS = ASSETS / "whisper_tokenizer"
PUBLISHED = {
    ENGLISH_ONLY: "gpt2.tiktoken",
    51865: "multilingual.tiktoken",
    51866: "multilingual.tiktoken",
}
MAX_TOKEN = 256  # bytes; OpenAI's longest has 128
MAX_FILE = 1 << 26  # bytes; the largest tokenizers have 10 million

# What annotates rather than says: speaker names in brackets, notes of music … (openai/whisper
# `non_speech_tokens`)
SINGLE_SYMBOLS = tuple('"#()*+/:;<=>@[\\]^_`{|}~「」『』')
OPENING_SYMBOLS = ("<<", "<<<", "-(", "-[", "('", '("', "((", "(((", "[[", "{{")
CLOSING_SYMBOLS = (">>", ">>>", "))", ")))", "]]", "}}")
DASHES = ("--", "---")
SEVERAL_NOTES = ("♪♪", "♪♪♪")
SYMBOLS = (*SINGLE_SYMBOLS, *OPENING_SYMBOLS, *CLOSING_SYMBOLS, *DASHES, *SEVERAL_NOTES)
# Several tokens each, of which the first is shared by symbols that are not spoken either.
MUSIC = tuple("♩♪♫♬♭♮♯")
ANNOTATE_BEFORE_A_WORD = (" -", " '")  # elsewhere they are spelling

REPLACEMENT = "\ufffd"  # stands for bytes that are no character
NUMERALS = frozenset("0123456789%$£")  # characters of what `suppress_numerals` stands for


@dataclass(frozen=True)
class Vocabulary:
    """What a `Tokenizer` is made of.

    vocab : every token, spelled in GPT-2's alphabet of bytes → id
    merges : pairs of tokens, in the order in which they are joined
    added : special tokens that `vocab` lacks → id
    ignore_merges : a word that is a token is taken as it is, as tiktoken does

    Raises `ValueError` for ids that are none, and for merges of other tokens.
    """

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    added: dict[str, int]
    ignore_merges: bool

    def __post_init__(self) -> None:
        for index in (*self.vocab.values(), *self.added.values()):
            if type(index) is not int or not 0 <= index < 1 << 31:
                raise ValueError("ids that are no numbers")
        for left, right in self.merges:
            if not (left in self.vocab and right in self.vocab and left + right in self.vocab):
                raise ValueError("merges of tokens that it does not have")


class Tokenizer:
    """The ids of the special tokens, and text to ids and back.

    eot, sot, translate, transcribe, sot_lm, sot_prev, no_speech, no_timestamps, timestamp_begin :
        ids
    multilingual : whether languages can be told apart; languages : code → id, empty where not
    n_vocab : the ids lie below it, timestamps included

    Raises `ConfigError` for a vocabulary that is not a Whisper's.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        ids = {**vocabulary.vocab, **vocabulary.added}
        ids.setdefault("<|nospeech|>", ids.get("<|nocaptions|>", -1))  # its name in older files
        needed = ("<|endoftext|>", "<|startoftranscript|>", *TASKS)
        missing = [token for token in needed if ids.get(token, -1) < 0]
        if missing:
            raise ConfigError(f"not a Whisper's vocabulary: it lacks {', '.join(missing)}")
        self.eot = ids["<|endoftext|>"]
        self.sot = ids["<|startoftranscript|>"]
        self.translate = ids["<|translate|>"]
        self.transcribe = ids["<|transcribe|>"]
        self.sot_lm = ids["<|startoflm|>"]
        self.sot_prev = ids["<|startofprev|>"]
        self.no_speech = ids["<|nospeech|>"]
        self.no_timestamps = ids["<|notimestamps|>"]

        languages = {code: ids[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in ids}
        self.languages = languages if self.eot != GPT2 else {}
        self.multilingual = bool(self.languages)

        times = [ids[token] for token in TIMESTAMPS if token in ids]
        if not times:  # older files of transformers end with <|notimestamps|>, and mean the same
            times = [self.no_timestamps + 1 + k for k in range(len(TIMESTAMPS))]
        self.timestamp_begin = times[0]
        self.n_vocab = times[-1] + 1

        text = [index for token, index in vocabulary.vocab.items() if not _is_special(token)]
        special = [ids[token] for token in needed[1:]] + list(languages.values())
        text_is_first = max(text, default=-1) < self.eot < min(special)
        times_are_last = max(special) < self.timestamp_begin
        times_count_up = times == list(range(self.timestamp_begin, self.n_vocab))
        if not (text_is_first and times_are_last and times_count_up):
            order = "text, special tokens and timestamps are in another order"
            raise ConfigError(f"not a Whisper's vocabulary: {order}")
        self._special = {index: token for token, index in ids.items() if index >= self.eot}
        self._special.update(enumerate(TIMESTAMPS, self.timestamp_begin))
        self._backend = _byte_level_bpe(vocabulary)

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Of a `tokenizer.json`. Raises `SourceError` naming the file."""
        return _built(Path(path), _tokenizer_json)

    @classmethod
    def find(cls, folder: Path | None, n_vocab: int) -> Tokenizer:
        """The tokenizer of the model in `folder`, or else OpenAI's for its size of vocabulary.

        Raises `SourceError` where there is none, or where it has more tokens than the model.
        """
        tokenizer = _beside(folder, n_vocab) if folder is not None else None
        if tokenizer is None:
            tokenizer = _published(folder or "this model", n_vocab)
        if tokenizer.n_vocab > n_vocab:
            reason = f"{tokenizer.n_vocab} tokens for a model that knows {n_vocab}"
            raise ConfigError(f"{folder}: {reason}: fetch it again")
        return tokenizer

    def sot_sequence(self, language: str | None, task: str) -> tuple[int, ...]:
        """What a transcript starts with; no language means English, as upstream.

        Models that are not multilingual have only one. Raises `OptionError` for a language or task
        they do not know.
        """
        if not self.multilingual:
            return (self.sot,)
        if task not in ("transcribe", "translate"):
            raise OptionError(f"task={task!r}: choose from transcribe, translate")
        code = to_language_code(language or "en")
        if code not in self.languages:
            known = shorten(list(self.languages), 12)
            raise OptionError(f"language {code}: this model does not know it, only {known}")
        if task == "translate":
            return (self.sot, self.languages[code], self.translate)
        return (self.sot, self.languages[code], self.transcribe)

    def encode(self, text: str) -> list[int]:
        """The ids of plain text; the name of a special token in it is text like any other."""
        return self._backend.encode(text).ids

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of the text tokens among `tokens`; bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode([int(token) for token in tokens if token < self.eot])

    def decode_with_timestamps(self, tokens: Iterable[int]) -> str:
        """The text, and every special token by its name: <|1.08|>."""
        texts = []
        for is_text, run in groupby(map(int, tokens), key=lambda token: token < self.eot):
            if is_text:
                texts.append(self.decode(run))
            else:
                texts += [self._special.get(token, "") for token in run]
        return "".join(texts)

    @cached_property
    def non_speech_tokens(self) -> tuple[int, ...]:
        """Tokens that annotate rather than speak, which `suppress_tokens="-1"` stands for."""
        result: set[int] = set()
        for text in ANNOTATE_BEFORE_A_WORD:
            result.update(self.encode(text)[:1])
        for symbol in SYMBOLS + MUSIC:
            for text in (symbol, f" {symbol}"):
                tokens = self.encode(text)
                if len(tokens) == 1 or symbol in MUSIC:
                    result.update(tokens[:1])
        return tuple(sorted(result))

    @cached_property
    def numeral_tokens(self) -> tuple[int, ...]:
        """Tokens with a digit or one of % $ £, which `suppress_numerals` stands for (WhisperX)."""
        texts = self._backend.decode_batch([[token] for token in range(self.eot)])
        return tuple(token for token, text in enumerate(texts) if not NUMERALS.isdisjoint(text))

    def split_to_word_tokens(self, tokens: Sequence[int], language: str | None) -> tuple[list[str], list[list[int]]]:
        """`tokens` as words, each with its tokens: between spaces, or by character in languages
        without them."""
        pieces = self._split_on_unicode(tokens)
        if language not in SPLIT_BY_CHARACTER:
            pieces = self._joined(pieces)
        return [text for text, _ in pieces], [ids for _, ids in pieces]

    def _joined(self, pieces: Sequence[tuple[str, list[int]]]) -> list[tuple[str, list[int]]]:
        """Pieces as words: what follows without a space belongs to the word before, but for
        punctuation and special tokens."""
        words: list[tuple[str, list[int]]] = []
        for text, ids in pieces:
            is_special = ids[0] >= self.eot
            is_punctuation = text.strip() in string.punctuation
            if not words or is_special or is_punctuation or text.startswith(" "):
                words.append((text, ids))
            else:
                word, word_ids = words[-1]
                words[-1] = (word + text, word_ids + ids)
        return words

    def _split_on_unicode(self, tokens: Sequence[int]) -> list[tuple[str, list[int]]]:
        """The shortest runs of tokens that are whole characters, or bytes that are none in the full
        text either."""
        full = self.decode_with_timestamps(tokens)
        pieces: list[tuple[str, list[int]]] = []
        run: list[int] = []
        offset = 0
        for token in tokens:
            run.append(token)
            text = self.decode_with_timestamps(run)
            broken = text.find(REPLACEMENT)
            if broken < 0 or full[offset + broken : offset + broken + 1] == REPLACEMENT:
                pieces.append((text, run))
                offset += len(text)
                run = []
        if run:  # where two broken characters meet in one token, upstream loses the rest or fails
            pieces.append((self.decode_with_timestamps(run), run))
        return pieces


def _is_special(token: str) -> bool:
    return token.startswith("<|") and token.endswith("|>")


def _byte_level_bpe(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    import tokenizers

    merges = vocabulary.merges
    model = tokenizers.models.BPE(vocabulary.vocab, merges, ignore_merges=vocabulary.ignore_merges)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


# --- files ----------------------------------------------------------------------------------------


def from_ranks(path: Path, n_vocab: int) -> Tokenizer:
    """From a file of ranks, as openai-whisper and mlx-whisper have them (`*.tiktoken`, or
    compressed `*.tiktoken.gz`).

    n_vocab : tokens that the model knows; how many languages there are follows from it
    Raises `SourceError` naming the file.
    """
    return _built(path, partial(_ranks, n_vocab=n_vocab))


def _beside(folder: Path, n_vocab: int) -> Tokenizer | None:
    """The tokenizer whose files lie in `folder`, None where there are none. Raises
    `SourceError`."""
    usual = folder / PUBLISHED.get(n_vocab, "multilingual.tiktoken")
    others = sorted(path for path in folder.glob("*.tiktoken") if path != usual)
    read_ranks = partial(_ranks, n_vocab=n_vocab)
    readers: list[tuple[Path, Callable[[Path], Vocabulary]]] = [
        (folder / "tokenizer.json", _tokenizer_json),
        (folder / "merges.txt", _legacy),
        (usual, read_ranks),
        *((path, read_ranks) for path in others),
        (folder / "vocabulary.json", _vocabulary),
        (folder / "vocabulary.txt", _vocabulary),
    ]
    for path, read in readers:
        if path.is_file():
            return _built(path, read)
    return None


def _published(place: str | Path, n_vocab: int) -> Tokenizer:
    """OpenAI's tokenizer of that size, which comes with the package."""
    if n_vocab not in PUBLISHED:
        reason = f"no tokenizer, and {n_vocab} tokens are not OpenAI's"
        raise SourceError(f"{place}: {reason}: put its tokenizer.json there")
    return from_ranks(RANKS / f"{PUBLISHED[n_vocab]}.gz", n_vocab)


def _built(path: Path, read: Callable[[Path], Vocabulary]) -> Tokenizer:
    """The tokenizer of a file. Raises `SourceError` naming it, of the kind that fits."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise ValueError(f"{path.stat().st_size} bytes are too many")
        return Tokenizer(read(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}: fetch it again") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = f"no tokenizer that can be read ({brief(str(error))})"
        raise CorruptFile(f"{path}: {reason}: fetch it again") from error


def _tokenizer_json(path: Path) -> Vocabulary:
    """transformers' and tokenizers' own file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    model = content["model"]
    before = content["pre_tokenizer"]
    is_bpe = model.get("type", "BPE") == "BPE"
    is_byte_level = before["type"] == "ByteLevel" and not before.get("add_prefix_space")
    if not (is_bpe and is_byte_level):
        raise ConfigError("not a byte-level BPE, as all of Whisper's are")
    merges = []
    for pair in model["merges"]:
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        merges.append((left, right))
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    return Vocabulary(model["vocab"], merges, added, bool(model.get("ignore_merges")))


def _legacy(path: Path) -> Vocabulary:
    """merges.txt, with vocab.json and, where there is one, added_tokens.json beside it."""
    vocab = json.loads(path.with_name("vocab.json").read_text(encoding="utf-8"))
    added = {}
    extra = path.with_name("added_tokens.json")
    if extra.is_file():
        added = json.loads(extra.read_text(encoding="utf-8"))
    merges = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        pair = line.split(" ")
        if len(pair) == 2 and pair[0] != "#version:":
            merges.append((pair[0], pair[1]))
    return Vocabulary(vocab, merges, added, False)


def _ranks(path: Path, n_vocab: int) -> Vocabulary:
    """A file of ranks: a line is a token's bytes in base64, and its rank, which is its id."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    lines = [line.rpartition(" ") for line in content.decode("ascii").splitlines() if line]
    # after the text: <|endoftext|>, <|startoftranscript|>, the languages, the tasks, the timestamps
    languages = n_vocab - len(lines) - 2 - len(TASKS) - len(TIMESTAMPS)
    english_only = len(lines) == GPT2
    if not 0 <= languages <= len(LANGUAGES) or english_only != (n_vocab == ENGLISH_ONLY):
        model = f"a model that knows {n_vocab} tokens"
        raise ConfigError(f"{len(lines)} ranks do not make the vocabulary of {model}")
    spell = _byte_alphabet()
    vocab: dict[str, int] = {}
    for encoded, _, rank in lines:
        token = b""
        if encoded not in ("", "="):  # OpenAI's last multilingual token, which it writes as "="
            token = base64.b64decode(encoded, validate=True)
        vocab["".join(spell[byte] for byte in token)] = int(rank)
    if sorted(vocab.values()) != list(range(len(lines))):
        raise ValueError("ranks that do not count up, or a token twice")
    names = ["<|endoftext|>", "<|startoftranscript|>"]
    names += [f"<|{code}|>" for code in list(LANGUAGES)[:languages]]
    names += [*TASKS, *TIMESTAMPS]
    added = {token: index for index, token in enumerate(names, len(vocab))}
    return Vocabulary(vocab, _merges(vocab), added, True)


def _vocabulary(path: Path) -> Vocabulary:
    """CTranslate2's list of all tokens in the order of ids: an array in JSON, or a line each.

    It has no merges; the ids of text tokens are their ranks, as in every vocabulary that was
    trained as GPT-2's was.
    """
    text = path.read_text(encoding="utf-8")
    tokens = text.removesuffix("\n").split("\n")
    if path.suffix == ".json":
        tokens = json.loads(text)
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
    return Vocabulary(vocab, _merges(vocab), added, True)


def _byte_alphabet() -> list[str]:
    """GPT-2's letter for each of the 256 bytes: itself where it is printable, else one of those
    from U+0100."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = count(256)
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _merges(vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every way in which a token is two others, by rank: tiktoken joins the pair whose union ranks
    lowest."""
    merges = []
    for token in sorted(vocab, key=vocab.__getitem__):
        if len(token) > MAX_TOKEN:
            raise ValueError(f"a token of {len(token)} bytes")
        for place in range(1, len(token)):
            left, right = token[:place], token[place:]
            if left in vocab and right in vocab:
                merges.append((left, right))
    return merges
