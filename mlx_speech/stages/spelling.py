"""How text is divided into words and characters, and how numbers and symbols are spoken.

The words for numbers come from the num2words package, in the languages that it knows.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from decimal import Decimal

from mlx_speech.languages import unspaced
from mlx_speech.package_data import table

_NUMBERS = table("numbers")
# code → num2words' own, or that of a language whose numbers sound alike; Japanese numerals are written in Chinese
_CONVERTERS: dict[str, str] = _NUMBERS["converters"]
_DECIMAL_POINT = frozenset(_NUMBERS["decimal_point"])  # languages that write 1,234.5; the others 1.234,5
_YEARS_IN_PAIRS = frozenset(_NUMBERS["years_in_pairs"])  # those that read 1999 as nineteen ninety-nine
_ORDINAL_ENDINGS: dict[str, list[str]] = _NUMBERS["ordinal_endings"]  # "3rd", "1er", "2º"
_SYMBOLS: dict[str, dict[str, str]] = _NUMBERS["symbols"]  # symbol → code → how it is spoken
_ENDLESS = {"am"}  # whose converter never comes back from some numbers, as 1234567 (num2words 0.5.14)
MAX_DIGITS = 15  # of a number that is spoken as one; a longer one is read digit by digit

# "5", "$5", "5%", "1,234.5", "10:30", "3rd", or a symbol alone
_EXPRESSION = re.compile(
    r"""
    (?P<before>[$€£])?
    (?P<digits>\d+ (?:[.,:'’\u00a0\u202f]\d+)*)
    (?P<ending>[a-zà-ÿ:ºª]+(?!\w))?
    (?P<after>[%$€£])?
    | [%$€£&]
    """,
    re.VERBOSE,
)
_PRICE = re.compile(r"(\d+)[.,](\d\d)")  # a currency's units and their hundredths
_DECIMAL = re.compile(r"(\d+)[.,](\d+)")  # in the custom of another language

# What a character does beside a script without spaces, one letter each, and a word made of such letters.
_OPENING = "o"
_PUNCTUATION = "p"
_JOINT = "j"  # punctuation that may stand within a run
_RUN = "n"  # digits, and letters of other scripts
_LEADING_VOWEL = "l"  # is written before the consonant that it follows
_CHARACTER = "c"
_MARK = "m"
_STACKER = "s"  # puts the consonant behind it under the one before it
_KINDS_OF_WORD = re.compile(
    r"""
    [opj]*
    (?: n (?: [nm] | j+(?=n) )*       # a run, with joints between its characters: "3.5%", "A&B"
      | l* c? (?: m | s+ c? )*        # or one character with its vowels, its marks and what is stacked on it
    )
    [pjms]*
    """,
    re.VERBOSE,
)
_LEADING_VOWELS = "เแโใไເແໂໃໄ"
_FOLLOWING_VOWELS = "ะาำๅະາຳຽ"  # letters by Unicode's categories, though they belong to the consonant before them
_STACKERS = "\u17d2\u1039"
_JOINTS = ".,:'’-_/@&+"
_JOINERS = "\u200c\u200d"


def split_words(text: str) -> list[str]:
    """Words as they are aligned: between spaces; in a script without spaces its characters, each with its marks and
    the punctuation that belongs to it, and whole runs of digits and of other letters."""
    words: list[str] = []
    for word in text.split():
        if not any(unspaced(character) for character in word):
            words.append(word)
            continue
        kinds = "".join(_kind(character) for character in word)
        for match in _KINDS_OF_WORD.finditer(kinds):
            if match[0]:
                words.append(word[match.start() : match.end()])
    return words


def _kind(character: str) -> str:
    """What it does beside a script without spaces."""
    if character in _LEADING_VOWELS:
        return _LEADING_VOWEL
    if character in _FOLLOWING_VOWELS:
        return _MARK
    if character in _STACKERS:
        return _STACKER
    if character in _JOINTS:
        return _JOINT
    if is_mark(character):
        return _MARK
    category = unicodedata.category(character)
    if category in ("Ps", "Pi"):
        return _OPENING
    if category[0] in "PSC":
        return _PUNCTUATION
    if character.isdecimal() or not unspaced(character):
        return _RUN
    return _CHARACTER


def is_mark(character: str) -> bool:
    """Whether it belongs to the character before it: an accent, a vowel sign, a joiner."""
    return unicodedata.category(character)[0] == "M" or character in _JOINERS


def clusters(text: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """(first, last) of each character in text[start:end] with the marks that follow it."""
    if end is None:
        end = len(text)
    first = start
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
    for match in _EXPRESSION.finditer(word):
        start, end, text = _expression(match, language)
        if text:
            parts.append((place, start, None))
            parts.append((start, end, text))
            place = end
    parts.append((place, len(word), None))
    return [(start, end, text) for start, end, text in parts if start < end]


def _expression(match: re.Match[str], language: str) -> tuple[int, int, str | None]:
    """Where an expression starts and ends, and how it is spoken: "$5", "3rd", "10:30", "7%", "&"."""
    digits = match["digits"]
    if digits is None:
        return match.start(), match.end(), _SYMBOLS[match[0]].get(language)
    ending = match["ending"]
    if ending:
        if digits.isdecimal() and ending in _ORDINAL_ENDINGS.get(language, ()):
            return match.start("digits"), match.end("ending"), _number(digits, language, ordinal=True)
        return match.start("digits"), match.end("digits"), _number(digits, language)
    symbol = match["before"] or match["after"]
    unit = None
    if symbol:
        unit = _SYMBOLS[symbol].get(language)
    if unit is None:
        return match.start("digits"), match.end("digits"), _number(digits, language)
    price = _PRICE.fullmatch(digits)
    if price and symbol != "%":
        return match.start(), match.end(), _price(price[1], unit, price[2], language)
    text = _number(digits, language)
    return match.start(), match.end(), f"{text} {unit}" if text else None


def _price(units: str, name: str, hundredths: str, language: str) -> str | None:
    """ "five dollars fifty"; hundredths that are none are not spoken."""
    parts = [_number(units, language), name]
    if int(hundredths):
        parts.append(_number(hundredths, language))
    if parts[0] is None:
        return None
    return " ".join(part for part in parts if part)


def _number(digits: str, language: str, ordinal: bool = False) -> str | None:
    """Digits and separators in words: one number where they make one, else one after the other ("10:30")."""
    plain = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in digits)
    match = _usual_number(language).fullmatch(plain) or _DECIMAL.fullmatch(plain)
    if match:
        number = re.sub(r"\D", "", match[1])
        if match[2]:
            number += f".{match[2]}"
        return _words(number, language, ordinal, year=plain.isdecimal())
    pieces: list[str] = []
    for piece in re.split(r"\D", plain):
        if not piece.strip("0") and ":" in plain:  # 10:00 is ten
            continue
        text = _words(piece, language)
        if text:
            pieces.append(text)
    return " ".join(pieces) or None


def _usual_number(language: str) -> re.Pattern[str]:
    """A number as the language writes it: thousands apart or not, then perhaps decimals."""
    group, point = (",", ".") if language in _DECIMAL_POINT else (".", ",")
    thousands = rf"\d{{1,3}}(?:[{group}'’\u00a0\u202f]\d{{3}})+"
    return re.compile(rf"({thousands}|\d+)(?:[{point}](\d+))?")


def _words(number: str, language: str, ordinal: bool = False, year: bool = False) -> str | None:
    """ASCII digits, perhaps with a point, in words; None where the language has none.

    year : whether it may be one
    """
    from num2words import CONVERTER_CLASSES, num2words

    code = _CONVERTERS.get(language, language)
    if code not in CONVERTER_CLASSES or code in _ENDLESS:
        return None
    has_leading_zero = len(number) > 1 and number[0] == "0" and number.isdecimal()  # "007"
    if len(number) > MAX_DIGITS or has_leading_zero:
        return " ".join(_words(digit, language) or "" for digit in number if digit.isdecimal())
    kinds: list[str] = []
    if ordinal:
        kinds.append("ordinal")
    if year and language in _YEARS_IN_PAIRS and len(number) == 4 and "1100" <= number <= "2099":
        kinds.append("year")
    kinds.append("cardinal")
    value = Decimal(number) if "." in number else int(number)
    for kind in kinds:
        try:
            return str(num2words(value, lang=code, to=kind)).lower()
        except (NotImplementedError, ArithmeticError, ValueError, LookupError, TypeError, AttributeError):
            continue  # not every converter has every kind
    return None
