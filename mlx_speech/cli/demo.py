"""`mlx_speech demo`: a conversation through the small models that come with the package, and how well it went."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_speech import writers
from mlx_speech.cli import outputs
from mlx_speech.cli.parser import add_command
from mlx_speech.cli.screen import Bars, Say, say_hint, timing
from mlx_speech.errors import MLXSpeechError, OutputError

MODELS = "These models know synthetic voices and some 300 English words: for a first look and tests, not for work."
DESCRIPTION = (
    "Transcribe a conversation with the small models that come with the package, and say how well it went. " + MODELS
)
FORMATS = ("srt", "json", "rttm")


def add_parser(group: Any) -> None:
    """The command and its flags."""
    parser = add_command(group, run, "demo", "a first look, without downloads", DESCRIPTION)
    parser.add_argument(
        "audio", nargs="?", help="another recording; FILE.json beside FILE says what was spoken, if it is known"
    )
    outputs.add_output_dir(parser, "srt, json and rttm")
    parser.add_argument("--q-bits", type=int, choices=[4, 8], help="quantize Whisper to so many bits")
    parser.add_argument("-v", "--verbose", action="store_true", help="tracebacks of errors")


def run(audio: str | None, output_dir: str, q_bits: int | None, verbose: bool, say: Say) -> int:
    """Transcribe a recording, by default the one that comes with the package, with its small models, and score it."""
    from mlx_speech.evaluation import references, scores
    from mlx_speech.package_data import DEMO
    from mlx_speech.pipeline import Pipeline

    say_hint(say)
    source = Path(audio or DEMO / "conversation.flac")
    folder = outputs.expanded(output_dir)
    stem = outputs.stems_of([str(source)], folder, FORMATS, say)[str(source)]
    files = {kind: folder / f"{stem}.{kind}" for kind in FORMATS}
    beside = source.with_suffix(".json")
    truth = references.read_truth(beside)
    if truth is not None and beside.resolve() == (folder / beside.name).resolve():
        raise OutputError(f"{beside}: says what was spoken, and would be overwritten: choose another --output-dir")
    outputs.make_writable(folder)
    outputs.check_paths({str(source): files.values()})
    print(MODELS, flush=True)
    start = time.perf_counter()
    pipeline = Pipeline.demo(q_bits=q_bits)
    models = pipeline.models  # converted when they are used for the first time
    models.whisper()
    models.aligner("en")
    models.diarization()
    seconds = {"models": time.perf_counter() - start}
    with closing(Bars(None)) as report:
        result = pipeline(source, diarize=True, on_progress=report)
    print(writers.to_screen(result), end="")
    outputs.write_all(result, files, source.stem, {})
    print(outputs.listed(folder / stem, FORMATS))
    if truth is not None:
        try:
            print(scores.score([(result, truth)]))
        except MLXSpeechError as error:
            say(str(error))
    print(timing(replace(result, seconds={**seconds, **result.seconds})))
    return 0
