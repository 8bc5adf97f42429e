"""`mlx_speech align`: a transcript and its recording → the transcript with times of words, by forced alignment."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Any

from mlx_speech import writers
from mlx_speech.cli import outputs
from mlx_speech.cli.parser import add_command, add_models, add_option, add_options, add_speakers
from mlx_speech.cli.screen import Bars, Say, say_matches, timing
from mlx_speech.cli.setup import make_pipeline
from mlx_speech.cli.sound import check_embedding, keywords_if_readable
from mlx_speech.fields import options_of
from mlx_speech.options import Options, SpeakerOptions, WordOptions
from mlx_speech.writers.cues import Layout

DESCRIPTION = (
    "Find the times of a transcript's words by forced alignment with the wav2vec2 of its language, with --diarize the "
    "speakers, too, and write it again. It is read from a JSON file that mlx_speech or WhisperX wrote."
)
LAYOUT = options_of(Layout)


def add_parser(group: Any) -> None:
    """The command and its flags."""
    parser = add_command(group, run, "align", "times of a transcript's words", DESCRIPTION, only_given=True)
    parser.add_argument("transcript", metavar="FILE.json", help="of mlx_speech or WhisperX")
    parser.add_argument("audio", help="its recording: any audio or video file; - is standard input")
    parser.add_argument("--align-model", metavar="NAME", help="wav2vec2 (default: the one of the language)")
    add_option(parser, options_of(Options)["language"], help="of what was said (default: the transcript's)")
    words = options_of(WordOptions)
    add_options(parser, [words["interpolate_method"], words["return_char_alignments"]])
    add_options(parser, options_of(SpeakerOptions).values())
    add_speakers(parser)
    outputs.add_outputs(parser)
    add_options(parser.add_argument_group("subtitles"), LAYOUT.values())
    add_models(parser.add_argument_group("models and machine"))


def run(
    transcript: str,
    audio: str,
    output_dir: str,
    output_format: str,
    embed_audio: bool,
    verbose: bool,
    say: Say,
    **given: Any,
) -> int:
    """Align a transcript and write it in the formats asked for."""
    layout: dict[str, Any] = {name: given.pop(name) for name in LAYOUT if name in given}
    outputs.check_layout(layout)
    bars = Bars(given.pop("print_progress"))
    original = outputs.read_transcript(transcript)
    speakers = SpeakerOptions(**{name: given[name] for name in options_of(SpeakerOptions) if name in given})
    diarized = speakers.wanted or original.diarization is not None
    formats = outputs.formats_of(output_format, diarized=diarized, advice="add --diarize, or leave rttm out")
    check_embedding(embed_audio, formats)
    pipeline = make_pipeline(given, say)
    folder = outputs.expanded(output_dir)
    stem = outputs.stems_of([transcript], folder, formats, say)[transcript]
    files = {kind: folder / f"{stem}.{kind}" for kind in formats}
    outputs.make_writable(folder)
    outputs.check_paths({transcript: files.values()}, "the transcript")
    outputs.check_paths({audio: files.values()})
    with closing(bars) as report:
        result = pipeline.align(original, audio, on_progress=report, **given)
    page = keywords_if_readable(audio, folder, embed=embed_audio) if "html" in formats else {}
    outputs.write_all(result, files, stem, layout, page)
    print(writers.to_screen(result), end="", flush=True)
    print(outputs.listed(folder / stem, formats), file=sys.stderr)
    if speakers.wanted:
        say_matches(result.diarization, say)
    if verbose:
        print(timing(result), file=sys.stderr)
    return 0
