"""`mlx_speech diarize`: recordings → the turns of each speaker, as RTTM on the screen."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from mlx_speech import writers
from mlx_speech.cli.parser import add_audio, add_command, add_models, add_option, add_options, add_speakers
from mlx_speech.cli.screen import Bars, Say, failure, say_matches
from mlx_speech.cli.setup import make_pipeline
from mlx_speech.errors import AudioError, OutOfMemory
from mlx_speech.fields import options_of
from mlx_speech.options import Options, SpeakerOptions

DESCRIPTION = "Find the turns of each speaker, as pyannote.audio 4 does, and print them as RTTM."


def add_parser(group: Any) -> None:
    """The command and its flags."""
    parser = add_command(group, run, "diarize", "who speaks when in recordings, as RTTM", DESCRIPTION, only_given=True)
    add_audio(parser)
    parser.add_argument("--exclusive", action="store_true", default=False, help="never two speakers at once")
    add_option(parser, options_of(Options)["audio_track"])
    numbers = [option for name, option in options_of(SpeakerOptions).items() if name != "diarize"]
    add_options(parser, numbers)
    add_speakers(parser)
    add_models(parser)


def run(audio: list[str], exclusive: bool, verbose: bool, say: Say, **given: Any) -> int:
    """Print the turns of recordings as RTTM; 1 where one of them failed."""
    bars = Bars(given.pop("print_progress"))
    pipeline = make_pipeline(given, say)
    audio = list(dict.fromkeys(audio))
    stems = dict(zip(audio, writers.unique_stems(audio), strict=True))
    failed: list[str] = []
    with closing(bars) as report:
        for source in stems:
            try:
                diarization = pipeline.diarize(source, on_progress=report, **given)
            except (AudioError, OutOfMemory) as error:
                failed.append(failure(source, error, verbose))
                continue
            report.close(source)
            turns = diarization.exclusive if exclusive else diarization.turns
            print(writers.regions_to_rttm(turns, stems[source]), end="", flush=True)
            say_matches(diarization, say)
    for message in failed:
        say(message)
    return 1 if failed else 0
