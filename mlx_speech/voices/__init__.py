"""Known voices: a database of names and voiceprints, and the names of a recording's speakers from it.

    from mlx_speech.voices import SpeakerStore

    store = SpeakerStore()  # the user's own, or a path
    store.add("Ann", voiceprint)  # of `stages.voiceprints`
    pipe = mlx_speech.Pipeline(speakers=store)

A voiceprint is biometric data. It leaves the file when its name is removed (`SpeakerStore.remove`).
"""

from __future__ import annotations

from mlx_speech.voices.enrolments import Enrolment
from mlx_speech.voices.learning import learn
from mlx_speech.voices.matching import Voices, match
from mlx_speech.voices.naming import name_speakers
from mlx_speech.voices.store import SpeakerStore

__all__ = ["Enrolment", "SpeakerStore", "Voices", "learn", "match", "name_speakers"]
