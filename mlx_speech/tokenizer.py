"""Whisper's tokens: text ↔ ids, the special ones, and which tokens make a word.

Source: openai/whisper `tokenizer.py`, whose names are kept. The vocabulary is a byte-level BPE, read from a
`tokenizer.json`, from the older `vocab.json` and `merges.txt`, or from the ranks that openai-whisper ships; every id is
taken from it, so that vocabularies of other sizes work. As in all of Whisper, text comes before `<|endoftext|>`, then
the other special tokens, then the timestamps, 0.02 s apart.
"""

from __future__ import annotations

import base64
import difflib
import importlib.util
import json
import string
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from mlx_speech import hub
from mlx_speech.errors import ConfigError, CorruptFile, OptionError, OutputError, SourceError, brief, shorten

NAMES = (
    "en:english,zh:chinese,de:german,es:spanish,ru:russian,ko:korean,fr:french,ja:japanese,pt:portuguese,tr:turkish,"
    "pl:polish,ca:catalan,nl:dutch,ar:arabic,sv:swedish,it:italian,id:indonesian,hi:hindi,fi:finnish,vi:vietnamese,"
    "he:hebrew,uk:ukrainian,el:greek,ms:malay,cs:czech,ro:romanian,da:danish,hu:hungarian,ta:tamil,no:norwegian,"
    "th:thai,ur:urdu,hr:croatian,bg:bulgarian,lt:lithuanian,la:latin,mi:maori,ml:malayalam,cy:welsh,sk:slovak,"
    "te:telugu,fa:persian,lv:latvian,bn:bengali,sr:serbian,az:azerbaijani,sl:slovenian,kn:kannada,et:estonian,"
    "mk:macedonian,br:breton,eu:basque,is:icelandic,hy:armenian,ne:nepali,mn:mongolian,bs:bosnian,kk:kazakh,"
    "sq:albanian,sw:swahili,gl:galician,mr:marathi,pa:punjabi,si:sinhala,km:khmer,sn:shona,yo:yoruba,so:somali,"
    "af:afrikaans,oc:occitan,ka:georgian,be:belarusian,tg:tajik,sd:sindhi,gu:gujarati,am:amharic,yi:yiddish,lo:lao,"
    "uz:uzbek,fo:faroese,ht:haitian creole,ps:pashto,tk:turkmen,nn:nynorsk,mt:maltese,sa:sanskrit,lb:luxembourgish,"
    "my:myanmar,bo:tibetan,tl:tagalog,mg:malagasy,as:assamese,tt:tatar,haw:hawaiian,ln:lingala,ha:hausa,ba:bashkir,"
    "jw:javanese,su:sundanese,yue:cantonese"
)
# code → English name, in the order of the tokens
LANGUAGES = {code: name for code, _, name in (entry.partition(":") for entry in NAMES.split(","))}
ALIASES = {"burmese": "my", "valencian": "ca", "flemish": "nl", "haitian": "ht", "letzeburgesch": "lb", "pushto": "ps"}
ALIASES |= {"panjabi": "pa", "moldavian": "ro", "moldovan": "ro", "sinhalese": "si", "castilian": "es"}
ALIASES |= {"mandarin": "zh"}
UNSPACED = ("zh", "ja", "th", "lo", "my", "yue")  # languages written without spaces between words

TIMESTAMPS = 1501  # 0.00 to 30.00 s
GPT2 = 50256  # text tokens of the English-only models, whose vocabulary lists languages that they do not know
MAX_FILE = 64 * 1024 * 1024  # bytes; the largest tokenizers have 10

# size of a vocabulary → who publishes it on the hub, the file of ranks in openai-whisper, the number of languages
PUBLISHED = {
    51864: ("openai/whisper-tiny.en", "gpt2", 99),
    51865: ("openai/whisper-tiny", "multilingual", 99),
    51866: ("openai/whisper-large-v3", "multilingual", 100),
}
# What annotates rather than says: speaker names in brackets, notes of music … "-" and "'" do so only before a word.
SYMBOLS = '" # ( ) * + / : ; < = > @ [ \\ ] ^ _ ` { | } ~ 「 」 『 』 << >> <<< >>> -- --- -( -[ '
SYMBOLS += "(' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪"
MUSIC = "♩♪♫♬♭♮♯"  # several tokens each; the first is shared by symbols that are not spoken either


def to_language_code(text: str) -> str:
    """Whisper's code of a language: "English", "en" and "EN" give "en". Raises `OptionError` naming similar ones."""
    found = text.strip().lower()
    codes = {name: code for code, name in LANGUAGES.items()} | ALIASES
    if found in LANGUAGES or found in codes:
        return codes.get(found, found)
    similar = difflib.get_close_matches(found, [*codes, *LANGUAGES], 3)
    raise OptionError(
        f"language {brief(text)}: not one of Whisper's; "
        + (f"did you mean {' or '.join(similar)}?" if similar else "give its English name or its code (en, de, zh …)")
    )


class Tokenizer:
    """The ids of the special tokens, and text to ids and back.

    vocab : every token, spelled in GPT-2's alphabet of bytes → id
    merges : pairs of tokens, in the order in which they are joined
    added : special tokens that `vocab` lacks → id
    ignore_merges : a word that is a token is taken as it is, as tiktoken does

    eot, sot, translate, transcribe, sot_lm, sot_prev, no_speech, no_timestamps, timestamp_begin : ids
    multilingual : whether languages can be told apart; languages : code → id, empty where not
    n_vocab : the ids lie below it, timestamps included
    """

    def __init__(
        self, vocab: dict[str, int], merges: list[tuple[str, str]], added: dict[str, int], ignore_merges: bool = False
    ):
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers

        _check(vocab, merges, added)
        self._backend = Backend(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
        self._backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._backend.decoder = decoders.ByteLevel()
        ids = {**vocab, **added}
        ids.setdefault("<|nospeech|>", ids.get("<|nocaptions|>", -1))  # its name in older files
        needed = ["endoftext", "startoftranscript", "translate", "transcribe", "startoflm", "startofprev"]
        needed = [f"<|{name}|>" for name in (*needed, "nospeech", "notimestamps")]
        missing = [token for token in needed if ids.get(token, -1) < 0]
        if missing:
            raise ConfigError(f"not a Whisper's vocabulary: it lacks {', '.join(missing)}")
        found = [ids[token] for token in needed]
        self.eot, self.sot, self.translate, self.transcribe, self.sot_lm, self.sot_prev = found[:6]
        self.no_speech, self.no_timestamps = found[6:]
        languages = {code: ids[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in ids}
        self.languages = languages if self.eot != GPT2 else {}
        self.multilingual = bool(self.languages)
        # older files of transformers end with <|notimestamps|>, and mean the same
        self.timestamp_begin = ids.get("<|0.00|>", self.no_timestamps + 1)
        times = sum(f"<|{k * 0.02:.2f}|>" in ids for k in range(TIMESTAMPS)) or TIMESTAMPS
        self.n_vocab = self.timestamp_begin + times
        last = ids.get(f"<|{(times - 1) * 0.02:.2f}|>", self.n_vocab - 1)
        text = (index for token, index in vocab.items() if not (token.startswith("<|") and token.endswith("|>")))
        special = [*found[1:], *languages.values()]
        ordered = max(text, default=-1) < self.eot < min(special) <= max(special) < self.timestamp_begin
        if not ordered or last != self.n_vocab - 1:
            raise ConfigError("not a Whisper's vocabulary: text, special tokens and timestamps are in another order")
        self._special = {index: token for token, index in ids.items() if index >= self.eot}

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Of a `tokenizer.json`. Raises `SourceError` naming the file."""
        return _of_file(Path(path), _tokenizer_json)

    @classmethod
    def find(cls, folder: Path | None, n_vocab: int) -> Tokenizer:
        """The tokenizer of the model in `folder`, or, where that has none, OpenAI's for its size of vocabulary.

        OpenAI's comes from the hub or its cache, or from an installed openai-whisper or mlx-whisper.
        Raises `SourceError` where there is none, or where it has more tokens than the model.
        """
        found = _of_folder(folder) if folder is not None else None
        found = found or _published(folder, n_vocab)
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
        return "".join(self.decode(run) if text else "".join(map(self._name, run)) for text, run in runs)

    def _name(self, token: int) -> str:
        seconds = (token - self.timestamp_begin) * 0.02
        return self._special.get(token, "") if seconds < 0 else f"<|{seconds:.2f}|>"

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
        if language not in UNSPACED:
            words: list[tuple[str, list[int]]] = []
            for piece, ids in pieces:
                alone = ids[0] >= self.eot or piece.startswith(" ") or piece.strip() in string.punctuation
                if alone or not words:
                    words.append((piece, ids))
                else:
                    words[-1] = (words[-1][0] + piece, words[-1][1] + ids)
            pieces = words
        return [piece for piece, _ in pieces], [ids for _, ids in pieces]

    def _split_on_unicode(self, tokens: Sequence[int]) -> list[tuple[str, list[int]]]:
        """The shortest runs of tokens that are whole characters, or bytes that are none in the full text either."""
        full = self.decode_with_timestamps(tokens)
        pieces: list[tuple[str, list[int]]] = []
        run: list[int] = []
        offset = 0
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


def from_ranks(path: Path, num_languages: int) -> Tokenizer:
    """From the ranks that openai-whisper and mlx-whisper ship (`*.tiktoken`): a line is base64 of the bytes, rank.

    tiktoken joins the pair whose union ranks lowest, whichever way it is parted, so every way becomes a merge.
    Raises `SourceError`.
    """
    return _of_file(path, lambda file: _ranks(file, num_languages))


def _ranks(path: Path, num_languages: int) -> Tokenizer:
    lines = [line.split() for line in _read(path).splitlines() if line]
    spell, ranks = _alphabet(), {base64.b64decode(token): int(rank) for token, rank in lines}
    vocab = {"".join(spell[byte] for byte in token): rank for token, rank in ranks.items()}
    merges = []
    for token in vocab:
        parts = [(token[:k], token[k:]) for k in range(1, len(token))]
        known = [pair for pair in parts if pair[0] in vocab and pair[1] in vocab]
        merges += sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    names = ["endoftext", "startoftranscript", *list(LANGUAGES)[:num_languages], "translate", "transcribe"]
    names += ["startoflm", "startofprev", "nospeech", "notimestamps", *(f"{k * 0.02:.2f}" for k in range(TIMESTAMPS))]
    added = {f"<|{name}|>": index for index, name in enumerate(names, len(vocab))}
    return Tokenizer(vocab, merges, added, ignore_merges=True)


def _alphabet() -> list[str]:
    """GPT-2's spelling of each byte: printable characters stand for themselves, the others for those from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(256 + others.index(byte)) if byte in others else chr(byte) for byte in range(256)]


def _check(vocab: dict[str, int], merges: list[tuple[str, str]], added: dict[str, int]) -> None:
    """Raises `ValueError` for what the library `tokenizers` would not survive."""
    ids = [*vocab.values(), *added.values()]
    if not all(type(index) is int and 0 <= index < 1 << 31 for index in ids):
        raise ValueError("ids that are no numbers")
    if not all(left in vocab and right in vocab and left + right in vocab for left, right in merges):
        raise ValueError("merges of tokens that it does not have")


def _of_file(path: Path, build: Any) -> Tokenizer:
    """`build(path)`, with the errors of a user."""
    try:
        return build(path)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}: fetch it again") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptFile(f"{path}: no tokenizer that can be read ({brief(str(error))}): fetch it again") from error


def _of_folder(folder: Path) -> Tokenizer | None:
    if (folder / "tokenizer.json").is_file():
        return Tokenizer.from_file(folder / "tokenizer.json")
    if (folder / "merges.txt").is_file() and (folder / "vocab.json").is_file():
        return _of_file(folder / "vocab.json", _legacy)
    return None


def _read(path: Path) -> str:
    if path.stat().st_size > MAX_FILE:
        raise ValueError(f"{path.stat().st_size} bytes are too many")
    return path.read_text(encoding="utf-8")


def _tokenizer_json(path: Path) -> Tokenizer:
    content = json.loads(_read(path))
    model, before = content["model"], content["pre_tokenizer"]
    if model.get("type", "BPE") != "BPE" or before["type"] != "ByteLevel" or before.get("add_prefix_space"):
        raise ConfigError("not a byte-level BPE, as all of Whisper's are")
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    merges = [(left, right) for left, right in pairs]
    return Tokenizer(model["vocab"], merges, added, ignore_merges=bool(model.get("ignore_merges")))


def _legacy(path: Path) -> Tokenizer:
    """vocab.json with merges.txt and, where there is one, added_tokens.json beside it."""
    extra = path.with_name("added_tokens.json")
    added = json.loads(_read(extra)) if extra.is_file() else {}
    lines = [line.split(" ") for line in _read(path.with_name("merges.txt")).splitlines()]
    merges = [(line[0], line[1]) for line in lines if len(line) == 2 and line[0] != "#version:"]
    return Tokenizer(json.loads(_read(path)), merges, dict(added))


def _published(folder: Path | None, n_vocab: int) -> Tokenizer:
    """OpenAI's tokenizer of that size."""
    place = folder or "this model"
    if n_vocab not in PUBLISHED:
        raise SourceError(f"{place}: no tokenizer, and {n_vocab} tokens are not OpenAI's: put its tokenizer.json there")
    repo, ranks, num_languages = PUBLISHED[n_vocab]
    try:
        return Tokenizer.from_file(hub.fetch_file(repo, "tokenizer.json"))
    except (SourceError, OutputError) as error:
        for package in ("whisper", "mlx_whisper"):
            spec = importlib.util.find_spec(package)  # nothing is imported
            for base in (spec.submodule_search_locations or []) if spec else []:
                if (Path(base) / "assets" / f"{ranks}.tiktoken").is_file():
                    return from_ranks(Path(base) / "assets" / f"{ranks}.tiktoken", num_languages)
        raise SourceError(
            f"{place}: no tokenizer here, and {error}; or put the tokenizer.json of {repo} there"
        ) from error
