"""A transcript in which somebody has put in names → enrolments of those voices."""

from __future__ import annotations

import numpy as np

from mlx_speech.errors import OptionError, brief, shorten
from mlx_speech.stages.voiceprints import LEAST_SPEECH, is_vector
from mlx_speech.transcript import Transcript
from mlx_speech.voices.enrolments import Enrolment, is_unnamed, today


def learn(transcript: Transcript) -> list[Enrolment]:
    """Enrolments of all speakers who have a name (any label but SPEAKER_00 and the like).

    transcript : with the speakers' vectors and the identity of the model that made them, as `Pipeline` gives it, and as
        its JSON has it that was written with `speaker_embeddings`

    Whoever speaks for less than a second is left out. Raises `OptionError` where nobody has a name, where the vectors
    are missing, or where a name stands in the text and not with a vector.
    """
    diarization = transcript.diarization
    if diarization is None or not diarization.embeddings:
        raise OptionError("the transcript has no vectors of speakers: transcribe again with speaker_embeddings=True")
    if diarization.embedding_model is None:
        raise OptionError("the transcript does not say which model made its vectors: transcribe again")
    named = [label for label in transcript.speakers if not is_unnamed(label)]
    if not named:
        raise OptionError("all speakers are still called SPEAKER_00 and the like: put names in their place first")
    lacking = [label for label in named if label not in diarization.embeddings]
    if lacking:
        labels = shorten(sorted(label for label in diarization.embeddings if is_unnamed(label)))
        advice = f"put the name in place of the label ({labels}) everywhere, also in 'speaker_embeddings'"
        raise OptionError(f"{brief(lacking[0])} speaks, and has no vector: {advice}")
    seconds = diarization.seconds
    enrolments: list[Enrolment] = []
    for label in named:
        vector = diarization.embeddings[label]
        if seconds[label] >= LEAST_SPEECH and is_vector(vector):
            model = diarization.embedding_model
            enrolments.append(Enrolment(label, np.array(vector), seconds[label], model, today()))
    if not enrolments:
        raise OptionError("nobody with a name speaks for a second: nothing can be learnt from this transcript")
    return enrolments
