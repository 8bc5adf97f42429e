"""`mlx_speech vad`: recordings → the regions of speech, on the screen. Options are those of the silero-vad package."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlx_speech import writers
from mlx_speech.cli.parser import LONGEST_RECORDING, add_audio, add_command, add_option, add_options
from mlx_speech.cli.screen import Say, failure
from mlx_speech.errors import AudioError, SourceError
from mlx_speech.fields import options_of
from mlx_speech.options import Options
from mlx_speech.stages.vad_options import SileroOptions

if TYPE_CHECKING:
    from mlx_speech.transcript import Region

DESCRIPTION = "Print the regions of speech in recordings, by Silero VAD; options and results as in its package."
DAY = 86_400.0  # seconds
LEGACY_CUT = "cut long speech at the last silence, not at the longest (use_max_poss_sil_at_max_speech=False)"


def add_parser(group: Any) -> None:
    """The command and its flags."""
    parser = add_command(group, run, "vad", "when somebody speaks in a recording", DESCRIPTION)
    add = parser.add_argument
    add_audio(parser)
    add("--model", help="converted Silero VAD, or its original (default: the one that comes with the package)")
    add("--format", default="text", choices=["text", "json", "rttm"], help="default: text")
    add("--sampling-rate", type=int, default=16000, choices=[8000, 16000], help="that the model works at")
    add_option(parser, options_of(Options)["audio_track"])
    add_options(parser, options_of(SileroOptions).values())
    add("--max-speech-duration-s", type=float, default=math.inf, help="longer speech is cut (default: never)")
    add("--legacy-cut", dest="use_max_poss_sil_at_max_speech", action="store_false", help=LEGACY_CUT)
    add("--time-resolution", type=int, default=3, help="decimals of the times, in seconds (default 3; upstream's is 1)")
    add("--max-duration", type=float, metavar="SECONDS", default=DAY, help=LONGEST_RECORDING)
    add("-v", "--verbose", action="store_true", help="tracebacks of errors")


def run(
    audio: list[str],
    model: str | None,
    format: str,
    sampling_rate: int,
    time_resolution: int,
    max_duration: float,
    verbose: bool,
    say: Say,
    audio_track: int | str | None = None,
    **options: Any,
) -> int:
    """Print the regions of speech in recordings; 1 where one of them failed."""
    from mlx_speech.audio import louder, open_audio
    from mlx_speech.loading import load
    from mlx_speech.models import silero_vad
    from mlx_speech.stages.vad import detect_speech

    network: Any = load(model or "silero_vad")
    if not isinstance(network, silero_vad.Model):
        raise SourceError(f"{model}: not a Silero VAD: leave --model out, or name one")
    options.update(sample_rate=sampling_rate, time_resolution=time_resolution)
    detect_speech([], network, **options)  # checks them before a recording is read
    audio = list(dict.fromkeys(audio))
    stems = dict(zip(audio, writers.unique_stems(audio), strict=True))
    found: dict[str, list[Region]] = {}
    failed: list[str] = []
    for source in audio:
        try:
            samples = open_audio(source, sample_rate=sampling_rate, max_duration=max_duration, audio_track=audio_track)
        except AudioError as error:
            failed.append(failure(source, error, verbose))
            continue
        regions = detect_speech(louder(samples, source), network, **options)
        found[source] = regions
        if format == "rttm":
            print(writers.regions_to_rttm(regions, stems[source]), end="", flush=True)
        elif format == "text":
            heading = f"# {source}\n" if len(audio) > 1 else ""
            print(heading + writers.regions_to_text(regions, time_resolution), end="", flush=True)
    if format == "json":
        print(_json(audio, found, time_resolution), end="")
    for message in failed:
        say(message)
    return 1 if failed else 0


def _json(audio: Sequence[str], found: dict[str, list[Region]], decimals: int) -> str:
    """The regions of one recording as a list; of several as one object, by file. Nothing for one that failed."""
    lists = {source: writers.regions_to_json(regions, decimals).strip() for source, regions in found.items()}
    if len(audio) > 1:
        entries = [f"{json.dumps(source, ensure_ascii=False)}: {text}" for source, text in lists.items()]
        return "{\n" + ",\n".join(entries) + "\n}\n"
    return "".join(f"{text}\n" for text in lists.values())
