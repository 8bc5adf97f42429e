"""Whisper's languages, and where text may be parted: scripts without spaces, characters with marks, ends of lines.

What text does at a place is told by the characters there and never by the language of a recording: a Japanese one may
hold English, and its translation is English altogether. Characters are Unicode's extended grapheme clusters (UAX #29),
found by the regex package; lines follow the customs of JIS X 4051 (kinsoku) and of Thai, Lao and Myanmar spelling.
"""

from __future__ import annotations

import difflib
import re

import regex

from mlx_speech.errors import OptionError, brief
from mlx_speech.package_data import table

_NAMES: dict[str, list[str]] = table("languages")  # code → names, in the order of Whisper's tokens
LANGUAGES = {code: names[0] for code, names in _NAMES.items()}
UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})  # languages written without spaces

_CLOSING_PUNCTUATION = "、。，．！？；：…‥・」』】》〉）］｝〕”’»›)]},.!?;:%％‰℃°"
_REPETITION_AND_LENGTH = "゛゜ゝゞ々ー〜～"
_SMALL_KANA = "ぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶ"
CLOSING = _CLOSING_PUNCTUATION + _REPETITION_AND_LENGTH + _SMALL_KANA  # begins no line
OPENING = "「『【《〈（［｛〔“‘«‹([{¿¡￥＄￡"  # ends no line

# --- characters ------------------------------------------------------------------------------------------------------

_UNSPACED_SCRIPTS = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
    r"\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Javanese}\p{Balinese}"
)
# wide punctuation, which brings its own space: 、。「」 …, the dot and the bar between kana, the full-width forms
_UNSPACED_PUNCTUATION = r"\u3001-\u303f\u30fb\u30fc\uff01-\uff9f"
_UNSPACED = regex.compile(f"[{_UNSPACED_SCRIPTS}{_UNSPACED_PUNCTUATION}]")
# A line may end behind these: all white space but what keeps words together, and the space of no width.
_SPACE = regex.compile(r"[ \t\u1680\u2000-\u2006\u2008-\u200a\u200b\u205f\u3000]")
_MARK = regex.compile(r"[\p{M}\u200c\u200d]")  # accents, vowel signs, joiners

# Signs that stack the next consonant, of Khmer, Myanmar, Tai Tham, Balinese, Javanese: older versions of Unicode part
# a cluster behind them.
_STACKERS = r"\u17d2\u1039\u1a60\u1b44\ua9c0"
# \X is a cluster; what follows a stacker belongs to it, and so do vowel signs that take up space, which \X parts in
# Myanmar.
_CLUSTER = regex.compile(rf"(?:\X(?<=[{_STACKERS}]))*\X\p{{M}}*")
TORN_WINDOW = 64  # characters to either side of a place that are looked at for a cluster that goes over it

# --- where nothing is parted -----------------------------------------------------------------------------------------

_NUMBER = r"[$€£¥￥＄￡₩]?\d+(?:[.,:/'’．，：／]\d+)*[%％‰℃°]?"
_WIDE_LETTERS = r"[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]+"  # full-width digits and Latin letters: "ＮＨＫ"
_UNPARTED = regex.compile(f"{_NUMBER}|{_WIDE_LETTERS}")

# In Thai and Lao a syllable surely begins with a vowel that is written before its consonant, or with a consonant that
# bears a vowel; one that bears none may be the end of the syllable before, or the first of two, as in "ประ" and "หมา".
_THAI = regex.compile(r"[\p{Thai}\p{Lao}]")
_LEADING_VOWEL = "[เแโใไເແໂໃໄ]"
_CONSONANT_WITH_VOWEL = r"[ก-ฮກ-ຮໜໝ][\p{M}ะาำະາຳຽ]"
_NOT_INSIDE_SYLLABLE = (
    rf"(?<!{_LEADING_VOWEL})"  # its consonant follows
    r"(?<![กขคตปผพ](?=[รลว]))"  # the first of two consonants that sound as one: "กร", "ปล"
    r"(?<!ห(?=[งญนมยรลว]))"  # a mute one that gives the next its tone: "หมา"
    r"(?<!อ(?=ย))"  # the same: "อยู่"
)
_THAI_SYLLABLE = regex.compile(f"{_NOT_INSIDE_SYLLABLE}(?:{_LEADING_VOWEL}|{_CONSONANT_WITH_VOWEL})")
_MYANMAR_END = regex.compile(r"\p{Myanmar}[\u1039\u103a]")  # a consonant without a vowel ends a syllable
_TIBETAN = regex.compile(r"\p{Tibetan}")
_TIBETAN_END = frozenset("\u0f0b\u0f0d\u0f0e\u0f11\u0f14")  # points behind syllables, strokes behind clauses


def to_language_code(text: str) -> str:
    """Whisper's code of a language: "English", "en" and "EN" give "en". Raises `OptionError` naming similar ones."""
    codes = {name: code for code, names in _NAMES.items() for name in (code, *names)}
    name = text.strip().lower()
    if name in codes:
        return codes[name]
    language = re.split("[-_]", name)[0]  # "zh-CN", "pt_BR": a language with a region
    similar = difflib.get_close_matches(name, codes, 3)
    if language in codes:
        similar = [codes[language]]
    advice = "give its name or its code (en, de, zh …)"
    if similar:
        advice = f"did you mean {' or '.join(similar)}?"
    raise OptionError(f"language {brief(text)}: not one of Whisper's; {advice}")


def unspaced(character: str) -> bool:
    """Whether a character is of a script without spaces between words (Chinese, Japanese, Thai, Khmer, Tibetan …)."""
    return _UNSPACED.match(character) is not None


def is_space(character: str) -> bool:
    """Whether a line may end behind a character because it is a space; not so of those that keep words together."""
    return _SPACE.match(character) is not None


def clusters(text: str) -> list[str]:
    """The characters of `text` as they are read: each with its accents, vowel signs and joiners."""
    return _CLUSTER.findall(text)


def joint(before: str, after: str) -> str:
    """What belongs between two texts, one behind the other, where nothing else tells: a space or nothing.

    Nothing stands beside a script without spaces, before closing punctuation and marks, and behind an opening bracket.
    """
    if not before or not after or before[-1].isspace() or after[0].isspace():
        return ""
    if unspaced(before[-1]) or unspaced(after[0]) or "\ufffd" in (before[-1], after[0]):
        return ""
    if before[-1] in OPENING or after[0] in CLOSING + "'" or _MARK.match(after):
        return ""
    return " "


def is_torn(before: str, after: str) -> bool:
    """Whether two texts that touch are parts of one word of a script with spaces ("$43" and ",000"), or of one
    character."""
    if not before or not after or before[-1].isspace() or after[0].isspace():
        return False
    if not unspaced(before[-1]) and not unspaced(after[0]):
        return True
    place = min(len(before), TORN_WINDOW)
    around = before[-place:] + after[:TORN_WINDOW]
    return place not in _cluster_starts(around)


def breaks(text: str) -> list[int]:
    """The places in `text`, between its ends, where a new line may begin: behind spaces, and around characters of
    scripts without spaces, but where custom forbids it."""
    unparted = _unparted(text)
    places: list[int] = []
    for place in _cluster_starts(text):
        if place not in unparted and _may_break(text, place):
            places.append(place)
    return places


def _may_break(text: str, place: int) -> bool:
    """Whether a line may begin at the start of a cluster."""
    before = text[place - 1]
    after = text[place]
    if is_space(after):
        return False
    if is_space(before):
        return True
    if not unspaced(before) and not unspaced(after):
        return False
    if after in CLOSING or before in OPENING:
        return False
    if _THAI.match(before) and _THAI.match(after):
        return _THAI_SYLLABLE.match(text, place) is not None
    if _TIBETAN.match(before) and _TIBETAN.match(after):
        return before in _TIBETAN_END and after not in _TIBETAN_END
    return _MYANMAR_END.match(text, place) is None


def _cluster_starts(text: str) -> list[int]:
    """Where clusters begin, but for the first one."""
    return [match.start() for match in _CLUSTER.finditer(text)][1:]


def _unparted(text: str) -> set[int]:
    """The places inside numbers and runs of wide letters."""
    places: set[int] = set()
    for match in _UNPARTED.finditer(text):
        places.update(range(match.start() + 1, match.end()))
    return places
