"""Words get their times: by which of two ways, and by forced alignment with the models that there are."""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

from collections.abc import Sequence

import numpy as np

from mlx_speech.engine import Job, told
from mlx_speech.loading import Models
from mlx_speech.recording import Recording, by_language, in_order
from mlx_speech.stages.align import align_steps
from mlx_speech.transcript import Segment

ALIGN_BATCH_SIZE = 8  # segments


def choose_word_times(recording: Recording, models: Models, low_memory: bool = False) -> None:
    """Note whether words get their times by forced alignment or from Whisper's attention.

    The language has to be known, if it is to be.
    """
    options = recording.options
    heard = bool(recording.chunks) or options.longform.sequential
    if options.word_method == "ctc" and not options.multilingual and recording.language is not None and heard:
        if low_memory:  # it is loaded when Whisper has gone, and may turn out not to be had
            recording.aligned_by_ctc = models.has_aligner(recording.language)
        else:
            recording.aligned_by_ctc = models.aligner(recording.language) is not None
    certain = recording.aligned_by_ctc and not low_memory
    # words tell where the silences are between which text is suspicious
    suspicious = options.words.hallucination_silence_threshold is not None
    recording.timed_by_attention = suspicious or (options.word_method is not None and not certain)


def align_words(
    recording: Recording, segments: Sequence[Segment], audio: np.ndarray, models: Models, audio_start: int = 0
) -> Job[tuple[Segment, ...]]:
    """Segments with their words by forced alignment, in order; those of a language without a model keep their times
    from the attention.

    segments : of the recording; audio : (samples,) in which they are; audio_start : the place of its first sample
    """
    aligned: list[Segment] = []
    for language, group in by_language(tuple(segments), recording.language).items():
        model = models.aligner(language)
        if model is not None:
            recording.models["align"] = models.names["align"]
            steps = align_steps(
                group,
                audio,
                model,
                language=language,
                batch_size=ALIGN_BATCH_SIZE,
                audio_start=audio_start,
                **recording.options.words.alignment,
            )
            group = yield from told("align", sum(segment.duration for segment in group), steps)
        aligned += group
    return in_order(aligned)
