"""How text is spoken: numbers and symbols in words, for models whose labels are letters only.

The words for numbers come from the num2words package, for the languages it knows.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

# Whisper's codes of languages that are written without spaces between words
UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})

# where num2words has another code; Chinese reads the characters that Japanese writes
_CODES = {"zh": "ja", "yue": "ja", "nn": "no", "kk": "kz"}
# languages that write 1,234.5; the others write 1.234,5
_POINT = frozenset("en ja zh yue ko th he hi ur bn ta te kn ml mr gu pa ne si my km lo sw cy mt tl ms".split())
_PAIRED = ("en", "de", "nl", "da", "no")  # languages that read 1999 as nineteen ninety-nine
_ORDINALS = {"en": ("st", "nd", "rd", "th"), "fr": ("er", "re", "ère", "e", "ème"), "nl": ("e", "de", "ste")}
_ORDINALS |= {"sv": (":a", ":e"), "es": ("º", "ª"), "it": ("º", "ª"), "pt": ("º", "ª"), "ca": ("è", "a")}

_UNITS = {
    "%": "en percent|de prozent|fr pour cent|es por ciento|it per cento|pt por cento|nl procent|sv procent|da procent"
    "|no prosent|pl procent|cs procent|fi prosenttia|ro la sută|hu százalék|ru процентов|uk відсотків|ja パーセント",
    "$": "en dollars|de dollar|fr dollars|es dólares|it dollari|pt dólares|nl dollar|sv dollar|da dollar|no dollar"
    "|pl dolarów|cs dolarů|fi dollaria|ro dolari|hu dollár|ru долларов|uk доларів|ja ドル|zh 美元",
    "€": "en euros|de euro|fr euros|es euros|it euro|pt euros|nl euro|sv euro|da euro|no euro|pl euro|cs eur|fi euroa"
    "|ro euro|hu euró|ru евро|uk євро|ja ユーロ|zh 欧元",
    "£": "en pounds|de pfund|fr livres|es libras|it sterline|pt libras|nl pond|sv pund|da pund|no pund|pl funtów"
    "|cs liber|fi puntaa|ro lire|hu font|ru фунтов|uk фунтів|ja ポンド|zh 英镑",
    "&": "en and|de und|fr et|es y|it e|pt e|nl en|sv och|da og|no og|pl i|cs a|fi ja|ro și|hu és|ru и|uk і",
    "+": "en plus|de plus|fr plus|es más|it più|pt mais|nl plus|sv plus|da plus|no pluss|pl plus|cs plus|fi plus"
    "|ro plus|hu plusz|ru плюс|uk плюс|ja プラス|zh 加",
}

_NUMBER = re.compile(r"([$€£])?(\d+(?:[.,:'’\u00a0\u202f]\d+)*)([a-zà-ÿ:ºª]+(?!\w))?([%$€£])?|[%$€£&+]")


def spoken(word: str, language: str) -> list[tuple[int, int, str | None]]:
    """The parts of a word, (start, end, how it is spoken), in order and without gaps; None: it is spoken as written.

    "$5," → [(0, 2, "five dollars"), (2, 3, None)]; where `language` has no words for a number or symbol, None.
    """
    parts: list[tuple[int, int, str | None]] = []
    place = 0
    for found in _NUMBER.finditer(word):
        start, end, text = _expression(found, language)
        if text:
            if start > place:
                parts.append((place, start, None))
            parts.append((start, end, text))
            place = end
    if place < len(word):
        parts.append((place, len(word), None))
    return parts


def _expression(found: re.Match[str], language: str) -> tuple[int, int, str | None]:
    """Where an expression starts and ends, and how it is spoken: "$5", "3rd", "10:30", "7%", "&"."""
    before, digits, suffix, after = found.groups()
    if digits is None:
        return found.start(), found.end(), _unit(found[0], language)
    start, end, ordinal = found.start(), found.end(2), False
    if suffix in _ORDINALS.get(language, ()) and digits.isdigit():
        end, ordinal = found.end(3), True
    text = _number(digits, language, ordinal)
    symbol = before or (after if not suffix else None)
    unit = _unit(symbol, language) if symbol else None
    if unit and (price := re.fullmatch(r"(\d+)[.,](\d\d)", digits)) and symbol != "%":
        text = " ".join(filter(None, (_number(price[1], language), unit, price[2] != "00" and _number(price[2], language))))
    elif text and unit:
        text = f"{text} {unit}"
    if text and unit:
        return start, end if before else found.end(4), text
    return (found.start(2) if before else start), end, text


def _unit(symbol: str, language: str) -> str | None:
    names = dict(entry.split(" ", 1) for entry in _UNITS[symbol].split("|"))
    return names.get(language)


def _number(digits: str, language: str, ordinal: bool = False) -> str | None:
    """Digits with separators in words: one number where they make one, else one after the other ("10:30")."""
    plain = "".join(str(unicodedata.decimal(c)) if c.isdigit() else c for c in digits)
    group, point = (",", ".") if language in _POINT else (".", ",")
    match = re.fullmatch(rf"(\d{{1,3}}(?:[{group}'’\u00a0\u202f]\d{{3}})+|\d+)(?:[{point}](\d+))?", plain)
    if match is None and (loose := re.fullmatch(r"(\d+)[.,](\d+)", plain)):
        match = loose
    if match:
        whole = re.sub(r"\D", "", match[1])
        return _words(whole + (f".{match[2]}" if match[2] else ""), language, ordinal, year=plain.isdigit())
    pieces = [_words(piece, language) for piece in re.split(r"\D", plain) if piece.strip("0") or ":" not in plain]
    return " ".join(piece for piece in pieces if piece) or None


def _words(number: str, language: str, ordinal: bool = False, year: bool = False) -> str | None:
    """A number written with ASCII digits and a point, in words; None where the language has none."""
    from num2words import CONVERTER_CLASSES, num2words

    code = _CODES.get(language, language)
    if code not in CONVERTER_CLASSES:
        return None
    if len(number) > 15 or (number[0] == "0" and number.isdigit() and len(number) > 1):  # digits one by one
        each = [_words(digit, language) for digit in number if digit.isdigit()]
        return " ".join(digit for digit in each if digit)
    paired = year and language in _PAIRED and len(number) == 4 and "1100" <= number <= "2099"
    kinds = ["ordinal"] if ordinal else ["year"] if paired else []
    for kind in (*kinds, "cardinal"):
        try:
            text = num2words(int(number) if number.isdigit() else Decimal(number), lang=code, to=kind)
        except (NotImplementedError, ArithmeticError, ValueError, LookupError, TypeError, AttributeError):
            continue  # not every converter has every kind
        return str(text).lower()
    return None
