"""How text is divided into words and characters, and how numbers and symbols are spoken.

The words for numbers come from the num2words package, in the languages that it knows.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from decimal import Decimal

from mlx_speech.languages import unspaced

# num2words' codes, or those of languages whose numbers sound alike; Japanese numerals are written in Chinese
_CODES = {"zh": "ja", "yue": "ja", "nn": "no", "kk": "kz", "hr": "sr", "bs": "sr", "ms": "id"}
_POINT = ("en", "ja", "zh", "yue", "ko", "th", "he", "hi", "ur", "bn", "ta", "te")  # 1,234.5; the others 1.234,5
_PAIRED = ("en", "de", "nl", "da", "no")  # languages that read 1999 as nineteen ninety-nine
_ORDINAL = {"en": "st|nd|rd|th", "fr": "er|re|ère|e|ème", "nl": "e|de|ste", "sv": ":a|:e", "es": "º|ª", "it": "º|ª"}
_UNITS = {
    "%": "en percent|de prozent|fr pour cent|es por ciento|it per cento|pt por cento|nl procent|sv procent|da procent"
    "|no prosent|pl procent|cs procent|fi prosenttia|ro la sută|hu százalék|ru процентов|uk відсотків|ja パーセント",
    "$": "en dollars|de dollar|fr dollars|es dólares|it dollari|pt dólares|nl dollar|sv dollar|da dollar|no dollar"
    "|pl dolarów|cs dolarů|fi dollaria|ro dolari|hu dollár|ru долларов|uk доларів|ja ドル|zh 美元",
    "€": "en euros|de euro|fr euros|es euros|it euro|pt euros|nl euro|sv euro|da euro|no euro|pl euro|cs eur|fi euroa"
    "|ro euro|hu euró|ru евро|uk євро|ja ユーロ|zh 欧元",
    "£": "en pounds|de pfund|fr livres|es libras|it sterline|pt libras|nl pond|sv pund|da pund|no pund|ru фунтов",
    "&": "en and|de und|fr et|es y|it e|pt e|nl en|sv och|da og|no og|pl i|cs a|fi ja|ro și|hu és|ru и|uk і",
}
_NUMBER = re.compile(r"([$€£])?(\d+(?:[.,:'’\u00a0\u202f]\d+)*)([a-zà-ÿ:ºª]+(?!\w))?([%$€£])?|[%$€£&]")

_UNIT = re.compile("[opj]*(?:n(?:[nm]|j+(?=n))*|l*c?(?:m|s+c?)*)[pjms]*")
_KINDS = dict.fromkeys("เแโใไເແໂໃໄ", "l") | dict.fromkeys("ะาำๅະາຳຽ", "m")  # vowels in front, vowels behind
_KINDS |= dict.fromkeys("\u17d2\u1039", "s") | dict.fromkeys(".,:'’-_/@&+", "j")  # stackers; joints within runs


def split_words(text: str) -> list[str]:
    """Words as they are aligned: between spaces; in a script without spaces its characters, each with its marks and
    the punctuation that belongs to it, and whole runs of digits and of other letters."""
    words: list[str] = []
    for word in text.split():
        if any(map(unspaced, word)):
            kinds = "".join(map(_kind, word))
            words += [word[found.start() : found.end()] for found in _UNIT.finditer(kinds) if found[0]]
        else:
            words.append(word)
    return words


def _kind(character: str) -> str:
    """What it does beside a script without spaces, where `_UNIT` is a word: what opens, a run of digits and letters of
    other scripts (n) or one character (c) with its marks, then the punctuation behind it."""
    category = unicodedata.category(character)
    if character in _KINDS or is_mark(character):
        return _KINDS.get(character, "m")
    if category[0] in "PSC":
        return "o" if category in ("Ps", "Pi") else "p"
    return "n" if character.isdecimal() or not unspaced(character) else "c"


def is_mark(character: str) -> bool:
    """Whether it belongs to the character before it: an accent, a vowel sign, a joiner."""
    return unicodedata.category(character)[0] == "M" or character in "\u200c\u200d"


def clusters(text: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """(first, last) of each character in text[start:end] with the marks that follow it."""
    first, end = start, len(text) if end is None else end
    for last in range(start + 1, end + 1):
        if last == end or not is_mark(text[last]):
            yield first, last
            first = last


def spoken(word: str, language: str) -> list[tuple[int, int, str | None]]:
    """The parts of a word, (start, end, how it is spoken), in order and without gaps; None: it is spoken as written.

    "$5," → [(0, 2, "five dollars"), (2, 3, None)]; where `language` has no words for a number or symbol, None.
    """
    parts: list[tuple[int, int, str | None]] = []
    place = 0
    for found in _NUMBER.finditer(word):
        start, end, text = _expression(found, language)
        if text:
            parts += [(place, start, None), (start, end, text)]
            place = end
    return [part for part in (*parts, (place, len(word), None)) if part[0] < part[1]]


def _expression(found: re.Match[str], language: str) -> tuple[int, int, str | None]:
    """Where an expression starts and ends, and how it is spoken: "$5", "3rd", "10:30", "7%", "&"."""
    before, digits, suffix, after = found.groups()
    if suffix:
        ordinal = digits.isdecimal() and suffix in _ORDINAL.get(language, "").split("|")
        return found.start(2), found.end(3 if ordinal else 2), _number(digits, language, ordinal)
    symbol = found[0] if digits is None else before or after
    unit = dict(name.split(" ", 1) for name in _UNITS[symbol].split("|")).get(language) if symbol else None
    if digits is None or unit is None:
        return *(found.span(2) if digits else found.span()), _number(digits, language) if digits else unit
    price = re.fullmatch(r"(\d+)[.,](\d\d)", digits) if symbol != "%" else None
    text = _number(price[1] if price else digits, language)
    rest = _number(price[2], language) if price and int(price[2]) else None
    return *found.span(), " ".join(part for part in (text, unit, rest) if part) if text else None


def _number(digits: str, language: str, ordinal: bool = False) -> str | None:
    """Digits and separators in words: one number where they make one, else one after the other ("10:30")."""
    plain = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in digits)
    group, point = (",", ".") if language in _POINT else (".", ",")
    usual = rf"(\d{{1,3}}(?:[{group}'’\u00a0\u202f]\d{{3}})+|\d+)(?:[{point}](\d+))?"
    if match := re.fullmatch(usual, plain) or re.fullmatch(r"(\d+)[.,](\d+)", plain):
        number = re.sub(r"\D", "", match[1]) + (f".{match[2]}" if match[2] else "")
        return _words(number, language, ordinal, year=plain.isdecimal())
    pieces = [_words(piece, language) for piece in re.split(r"\D", plain) if piece.strip("0") or ":" not in plain]
    return " ".join(piece for piece in pieces if piece) or None


def _words(number: str, language: str, ordinal: bool = False, year: bool = False) -> str | None:
    """ASCII digits, perhaps with a point, in words; None where the language has none."""
    from num2words import CONVERTER_CLASSES, num2words

    code = _CODES.get(language, language)
    if code not in CONVERTER_CLASSES:
        return None
    if len(number) > 15 or (len(number) > 1 and number[0] == "0" and number.isdecimal()):  # "007": digit by digit
        return " ".join(_words(digit, language) or "" for digit in number if digit.isdecimal())
    year = year and language in _PAIRED and len(number) == 4 and "1100" <= number <= "2099"
    for kind in ("ordinal",) * ordinal + ("year",) * year + ("cardinal",):
        try:
            return str(num2words(Decimal(number) if "." in number else int(number), lang=code, to=kind)).lower()
        except (NotImplementedError, ArithmeticError, ValueError, LookupError, TypeError, AttributeError):
            continue  # not every converter has every kind
    return None
