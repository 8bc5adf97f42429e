"""A recording → text, window after window, each of which sees what was written before (openai-whisper's long form)."""

from __future__ import annotations

from mlx_speech import backend as backend  # isort: skip  (before MLX)

from mlx_speech.engine import Job, told
from mlx_speech.loading import Models
from mlx_speech.recording import Recording
from mlx_speech.stages.whisper.longform import transcribe_steps


def recognise_in_order(recording: Recording, models: Models) -> Job[None]:
    """Note what Whisper hears. Raises what `models.whisper` raises."""
    whisper = models.whisper()
    options = recording.options
    steps = transcribe_steps(
        recording.audio,
        whisper.model,
        whisper.tokenizer,
        options.decoding,
        language=recording.language,
        word_timestamps=recording.timed_by_attention,
        **options.longform.keywords,
        hallucination_silence_threshold=options.words.hallucination_silence_threshold,
    )
    recording.segments = tuple((yield from told("transcribe", recording.duration, steps)))
