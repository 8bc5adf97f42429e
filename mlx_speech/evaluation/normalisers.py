"""How texts are made comparable before words are counted: Whisper's way, and a plain one.

Whisper's is that of `whisper.normalizers` (Radford et al., 2022, appendix C), without its torch: the package
whisper-normalizer, in the last version that has OpenAI's rules and no others.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from mlx_speech.errors import MissingDependency, install
from mlx_speech.evaluation.options import NormaliserName
from mlx_speech.languages import clusters, unspaced

INSTALL = install("eval")
Normaliser = Callable[[str], str]  # a text → its words, with one space between two

_APOSTROPHES = re.compile(r"[’ʼ＇]")
_OUTER_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")


def normaliser(name: NormaliserName, language: str | None, characters: bool) -> Normaliser:
    """language : Whisper has a normaliser of its own for English ("en"), and one for all others
    characters : count characters, not words, as in scripts without spaces

    Raises `MissingDependency`.
    """
    if name == "whisper":
        return _whisper(language == "en", characters)
    return _plain_characters if characters else plain


@cache
def _whisper(english: bool, characters: bool) -> Normaliser:
    try:
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise MissingDependency(f"no scores behind Whisper's normaliser ({error}): {INSTALL}") from error
    if english and not characters:
        return _squeezed(EnglishTextNormalizer())
    return _squeezed(BasicTextNormalizer(split_letters=characters))


def _squeezed(normalise: Normaliser) -> Normaliser:
    """Without the space that the originals leave at the ends."""

    def squeezed(text: str) -> str:
        return normalise(text).strip()

    return squeezed


def plain(text: str) -> str:
    """Words in lower case (NFKC), without punctuation and symbols but for apostrophes within them."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = _APOSTROPHES.sub("'", text)
    letters: list[str] = []
    for letter in text:
        is_mark = unicodedata.category(letter)[0] in "PS" and letter != "'"
        letters.append(" " if is_mark else letter)
    return " ".join(_OUTER_APOSTROPHE.sub(" ", "".join(letters)).split())


def _plain_characters(text: str) -> str:
    """The characters of `plain`, each with its accents and vowel signs."""
    return " ".join(clusters(plain(text).replace(" ", "")))


def in_characters(text: str) -> bool:
    """Whether errors are to be counted in characters: most letters of the text are of scripts without spaces."""
    letters = [letter for letter in text if letter.isalpha()]
    return 2 * sum(unspaced(letter) for letter in letters) > len(letters)
