"""Chunks of a job that were recognised, as they are kept until it ends: whoever begins it again goes on behind them."""

from __future__ import annotations

import json

from mlx_speech.json_objects import to_plain
from mlx_speech.pipeline import Pipeline
from mlx_speech.request import Heard
from mlx_speech.transcript import Chunk, Region, Transcript
from mlx_speech.version import __version__


def maker_of(pipeline: Pipeline) -> str:
    """What recognises: chunks of another Whisper, or of another version, are not taken for one's own."""
    return f"{pipeline.models.whisper_source} {__version__}"


def to_json(heard: Heard) -> str:
    """A chunk as it is kept; `from_json` gives an equal one."""
    said = Transcript(heard.segments, silences=heard.silences)
    return json.dumps({"place": heard.place, "chunk": to_plain(heard.chunk), "said": said.to_dict()})


def from_json(text: str) -> Heard:
    """The chunk that `to_json` has described."""
    content = json.loads(text)
    chunk = content["chunk"]
    regions = tuple(Region(**region) for region in chunk["regions"])
    said = Transcript.from_dict(content["said"])
    return Heard(said.segments, content["place"], Chunk(chunk["start"], chunk["end"], regions), said.silences)
