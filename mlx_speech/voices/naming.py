"""A diarization, and a database of known voices → the diarization with names."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from typing import TypeAlias

from mlx_speech.errors import CorruptFile, MLXSpeechError, OptionError, brief, shorten
from mlx_speech.models.diarization_pipeline import Model
from mlx_speech.transcript import Diarization
from mlx_speech.voices.matching import match
from mlx_speech.voices.store import SpeakerStore

# a database or its path; True is the user's own, None and False are none
Speakers: TypeAlias = "SpeakerStore | str | os.PathLike[str] | bool | None"


class Namer:
    """Gives speakers their names. Without a database it does nothing.

    Raises `SourceNotFound` where there is none at the place that `speakers` says, as `SpeakerStore`, and `OptionError`
    for what is no `Speakers`.
    """

    def __init__(self, speakers: Speakers) -> None:
        self._store: SpeakerStore | None = None
        self._checked: set[str] = set()  # embedding models, of which the user has been told
        if speakers is None or speakers is False:
            return
        if isinstance(speakers, SpeakerStore):
            self._store = speakers
        elif speakers is True:
            self._store = SpeakerStore()
        elif isinstance(speakers, (str, os.PathLike)):
            self._store = SpeakerStore(speakers)
        else:
            raise OptionError(f"speakers is {brief(speakers)}: give a SpeakerStore, its path, or True")
        self._store.check_exists()

    def check(self, model: Model) -> None:
        """Warn, once, of people whom this model's embedding has never heard, so that it cannot recognise them."""
        if self._store is not None:
            self._warn_of_other_models(self._store, model.embedding.identity)

    def name(self, diarization: Diarization) -> Diarization:
        """The diarization with names, as of `name_speakers`.

        Warns where the database has become unusable meanwhile: a transcript is not given up for want of names.
        """
        if self._store is None or not diarization.turns:
            return diarization
        if diarization.embedding_model is None:
            warnings.warn("the sound tracks tell who speaks, and not by their voices: nobody gets a name", stacklevel=2)
            return diarization
        try:
            self._warn_of_other_models(self._store, diarization.embedding_model)
            return name_speakers(diarization, self._store)
        except MLXSpeechError as error:
            warnings.warn(f"nobody gets a name: {error}", stacklevel=2)
            return diarization

    def _warn_of_other_models(self, store: SpeakerStore, model: str) -> None:
        if model in self._checked:
            return
        self._checked.add(model)
        names = store.of_other_models(model)
        if names:
            reason = "enrolled with another embedding model, whose vectors cannot be compared"
            advice = "mlx_speech speakers add enrols them again, and enrol-again does where their sound is kept"
            warnings.warn(f"{store.path}: {shorten(names)}: {reason}: {advice}", stacklevel=3)


def name_speakers(diarization: Diarization, store: SpeakerStore) -> Diarization:
    """The diarization with the names of known voices; its `matches` have the scores, and say who is in doubt.

    Others keep their labels, and so does everybody where nobody knows which embedding model made the vectors.
    Raises `SourceNotFound` and `CorruptFile` as `SpeakerStore.voices`.
    """
    if diarization.embedding_model is None:
        return diarization
    voices = store.voices(diarization.embedding_model)
    for label, vector in diarization.embeddings.items():
        if voices.names and len(vector) != voices.vectors.shape[1]:
            sizes = f"{len(vector)} numbers, and known voices {voices.vectors.shape[1]}"
            raise CorruptFile(f"{store.path}: the vector of {label} has {sizes}: enrol into a new file")
    matches = match(diarization.embeddings, voices)
    names = {label: found.name for label, found in matches.items() if not found.doubtful}
    return replace(diarization, matches=matches).rename(names)
