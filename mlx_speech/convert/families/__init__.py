"""What each family of models makes of its sources: one file each.

A family's file has what `Converter` says; `models.FAMILIES` names it. CONTRIBUTING.md has the steps of a port.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

from mlx_speech import models
from mlx_speech.convert.read import Source
from mlx_speech.convert.recipe import Recipe

if TYPE_CHECKING:
    from mlx_speech.convert.families import campplus, plda, pyannet, silero_vad, wav2vec2, wespeaker, whisper


class Converter(Protocol):
    """What the file of a family has; a module is one."""

    @property
    def PIPELINE_TAG(self) -> str | None:
        """The hub's word for what the model does, for the card; None where it has none."""
        ...

    @property
    def TAGS(self) -> Sequence[str]:
        """Further words for the card."""
        ...

    @property
    def COMPANIONS(self) -> Sequence[str]:
        """Names, or patterns of names, of files that belong to a converted model beside its weights."""
        ...

    @property
    def TAKES_LANGUAGE(self) -> bool:
        """Whether some of its sources have languages to choose from."""
        ...

    def recognise(self, source: Source) -> bool:
        """Whether these weights are the family's, told by configuration and tensor names, never by paths."""
        ...

    def recipe(self, source: Source, language: str | None = None) -> Recipe:
        """What to make of them. Nothing is computed yet; folds are lazy tensors.

        language : of `convert`; None for a family that takes none
        Raises `ConfigError` or `WeightsMismatch` for what was not ported, or cannot be.
        """
        ...


def converter(family: str) -> Converter:
    """The file that knows the sources of `family`, one of `models.FAMILIES`."""
    return cast(Converter, importlib.import_module(models.FAMILIES[family].converter))


if TYPE_CHECKING:  # the registry names modules, which no type checker can follow: here it looks at those of the package
    _CONVERTERS: tuple[Converter, ...] = (campplus, plda, pyannet, silero_vad, wav2vec2, wespeaker, whisper)
