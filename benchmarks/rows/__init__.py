"""The rows of the table, one module each; `rows(device, quick)` of a module gives what is to be measured."""

from __future__ import annotations

MODULES = ("vad", "whisper", "asr", "words", "diarization", "pipeline", "growth", "convert", "startup")
