"""Results as a corpus: a row a recording, in jsonl or parquet, readable by DuckDB, pandas and Hugging Face's datasets.

Shards are written whole, of results that are on the disk. A row has the same columns in both formats, and nothing is
null, since a reader that infers types from the first rows would take a column without values for one of none: text that
nobody knows is empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from mlx_speech.archive.results import Result
from mlx_speech.errors import MissingDependency, install
from mlx_speech.transcript import Transcript, Word

CorpusFormat = Literal["jsonl", "parquet"]
CORPUS_FORMATS: tuple[CorpusFormat, ...] = get_args(CorpusFormat)
ROWS_AT_ONCE = 64  # that are held in memory while a shard of parquet is written


def chosen(formats: Iterable[str]) -> tuple[CorpusFormat, ...]:
    """The formats of a corpus among all that were asked for."""
    asked = frozenset(formats)
    return tuple(kind for kind in CORPUS_FORMATS if asked.issuperset((kind,)))


def check_packages(formats: Iterable[str]) -> None:
    """Raises `MissingDependency` where a package is not installed: before hours of work."""
    if "parquet" in formats:
        _pyarrow()


def shard_name(number: int, kind: str) -> str:
    """The name of a shard's file."""
    return f"corpus-{number:05d}.{kind}"


def row_of(result: Result) -> dict[str, Any]:
    """A recording as a row, in the types of JSON."""
    entry = result.entry
    transcript = result.transcript
    turns = transcript.diarization.turns if transcript.diarization is not None else ()
    return {
        "name": _readable(result.name),
        "source": _readable(entry.source),
        "offset": entry.offset or 0.0,
        "duration": transcript.duration,
        "text": " ".join(segment.text for segment in transcript.segments),
        "language": transcript.language or "",
        "language_probability": transcript.language_probability,
        "score": _mean_score(transcript.words),
        "segments": _segments(transcript),
        "words": _words(transcript),
        "speakers": list(transcript.speakers),
        "turns": [{"start": turn.start, "end": turn.end, "speaker": turn.speaker} for turn in turns],
        "models": [{"stage": stage, "model": model} for stage, model in transcript.models.items()],
        "reference": _readable(entry.reference),
        "fields": json.dumps(entry.fields),
    }


def write_shard(path: Path, kind: CorpusFormat, results: Iterable[Result]) -> None:
    """Write rows into a file. Raises `OSError`, `MissingDependency`."""
    rows = (row_of(result) for result in results)
    if kind == "jsonl":
        with path.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return
    arrow, parquet = _pyarrow()
    schema = _schema(arrow)
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in _batches(rows):
            writer.write_table(arrow.Table.from_pylist(batch, schema))


def _readable(text: str) -> str:
    """Text that can be written: half a character, as in a file's name or a text that was cut off, becomes a question
    mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _segments(transcript: Transcript) -> list[dict[str, Any]]:
    """What Whisper says of itself stands with each."""
    segments: list[dict[str, Any]] = []
    for segment in transcript.segments:
        row = {
            "start": segment.start,
            "end": segment.end,
            "text": segment.text,
            "speaker": segment.speaker or "",
            "language": segment.language or "",
            "temperature": segment.temperature,
            "avg_logprob": segment.avg_logprob,
            "compression_ratio": segment.compression_ratio,
            "no_speech_prob": segment.no_speech_prob,
        }
        segments.append(row)
    return segments


def _words(transcript: Transcript) -> list[dict[str, Any]]:
    words: list[dict[str, Any]] = []
    for word in transcript.words:
        row = {
            "start": word.start,
            "end": word.end,
            "text": word.text,
            "score": word.score,
            "speaker": word.speaker or "",
            "aligned": word.aligned,
        }
        words.append(row)
    return words


def _mean_score(words: tuple[Word, ...]) -> float:
    """Of the words that were found in the sound; 0 without any."""
    scores = [word.score for word in words if word.aligned]
    return sum(scores) / len(scores) if scores else 0.0


def _schema(arrow: Any) -> Any:
    """Types of the columns of `row_of`."""
    text, number = arrow.string(), arrow.float64()
    span = [("start", number), ("end", number)]
    segment = [*span, ("text", text), ("speaker", text), ("language", text), ("temperature", number)]
    segment += [("avg_logprob", number), ("compression_ratio", number), ("no_speech_prob", number)]
    word = [*span, ("text", text), ("score", number), ("speaker", text), ("aligned", arrow.bool_())]
    return arrow.schema(
        [
            ("name", text),
            ("source", text),
            ("offset", number),
            ("duration", number),
            ("text", text),
            ("language", text),
            ("language_probability", number),
            ("score", number),
            ("segments", arrow.list_(arrow.struct(segment))),
            ("words", arrow.list_(arrow.struct(word))),
            ("speakers", arrow.list_(text)),
            ("turns", arrow.list_(arrow.struct([*span, ("speaker", text)]))),
            ("models", arrow.list_(arrow.struct([("stage", text), ("model", text)]))),
            ("reference", text),
            ("fields", text),
        ]
    )


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependency(f"no parquet ({error}): {install('ray')}") from error
    return pyarrow, pyarrow.parquet
