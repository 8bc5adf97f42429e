"""What a live session takes where nothing else is asked for. Importing it imports neither NumPy nor MLX."""

from __future__ import annotations

MAX_PAUSE = 0.6  # seconds between regions of speech; a longer pause ends a chunk
CHUNK_SIZE = 15.0  # seconds of the longest chunk
STEP = 0.5  # seconds between two partials
MIN_STEP = 0.1
MAX_STEP = 30.0
CODINGS = ("s16le", "f32le")  # of raw samples; the first is the default
JOURNAL_SUFFIX = ".live.jsonl"
