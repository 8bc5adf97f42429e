"""`mlx_speech transcribe`: recordings → transcripts, in files. WhisperX's command line is understood, too."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

from mlx_speech import writers
from mlx_speech.cli import archive, outputs
from mlx_speech.cli.parser import (
    SWITCH,
    add_audio,
    add_command,
    add_models,
    add_option,
    add_options,
    add_speakers,
    default_of,
    flag_of,
    help_of,
    number_or_none,
)
from mlx_speech.cli.screen import Bars, Say, failure, say_matches, timing
from mlx_speech.cli.setup import COMPUTE_FLAGS, make_pipeline
from mlx_speech.cli.sound import check_embedding, keywords_if_readable
from mlx_speech.errors import MLXSpeechError, OptionError, in_range
from mlx_speech.fields import Option, options_of
from mlx_speech.options import (
    DETECTORS,
    PUNCTUATIONS,
    WHISPERX_THRESHOLDS,
    DecodingOptions,
    DetectionOptions,
    LongformOptions,
    Options,
    SpeakerOptions,
    VadMethod,
    WordOptions,
)
from mlx_speech.writers.cues import Layout

DESCRIPTION = (
    "Transcribe recordings: speech detection, Whisper, word times, and with --diarize speakers. "
    "WhisperX's flags are understood too."
)
MEANINGLESS = {  # WhisperX's flags that nothing here answers to
    "device_index": "MLX has one GPU",
    "threads": "set OPENBLAS_NUM_THREADS",
    "log_level": "use -v or --quiet",
}
INCREMENT = 0.2  # of the temperature after a failure, as openai-whisper's command line has it
LAYOUT = options_of(Layout)
# openai-whisper's and the command line's own spellings of word_timestamps
WORD_TIMESTAMPS = (*options_of(WordOptions)["word_timestamps"].choices, "none")
NEEDING_WORDS = ("return_char_alignments", "highlight_words", "max_line_width", "max_line_count")


def _detector_flags(method: VadMethod) -> dict[str, str]:
    """The names of flags for the options of a detector, WhisperX's where it has one → the detector's own."""
    flags: dict[str, str] = {}
    for name in options_of(DETECTORS[method]):
        whisperx_names = [theirs for theirs, ours in WHISPERX_THRESHOLDS.items() if ours[method] == name]
        flag = whisperx_names[0] if whisperx_names else name
        flags[flag] = name
    return flags


DETECTOR_FLAGS: dict[VadMethod, dict[str, str]] = {method: _detector_flags(method) for method in DETECTORS}
# keywords that messages name → the flags for them
RENAMED = {name: flag for flags in DETECTOR_FLAGS.values() for flag, name in flags.items()}


# --- flags -----------------------------------------------------------------------------------------------------------


def add_parser(group: Any) -> None:
    """The command and its flags. Flags of options are derived; those that are written out are only here."""
    parser = add_command(
        group, run, "transcribe", "who said what, when, in recordings", DESCRIPTION, only_given=True, renamed=RENAMED
    )
    parser.usage = "mlx_speech transcribe AUDIO [AUDIO ...] [options]"
    decoding = options_of(DecodingOptions)
    add_audio(parser)
    parser.add_argument(
        "--model", metavar="NAME", help="tiny … large-v3, turbo, with -q4 or -q8, a repository or a folder"
    )
    add_options(parser, options_of(Options).values())
    add_option(parser, decoding.pop("task"))
    add_options(parser, options_of(SpeakerOptions).values())
    add_speakers(parser)
    _add_outputs(parser.add_argument_group("output"))
    subtitles = [option for name, option in LAYOUT.items() if name != "speaker_embeddings"]
    add_options(parser.add_argument_group("subtitles"), subtitles)
    add_words(parser.add_argument_group("word times"))
    recognition = parser.add_argument_group("recognition")
    add_recognition(recognition, decoding)
    add_options(recognition, options_of(LongformOptions).values())
    detection = parser.add_argument_group("speech detection")
    add_options(detection, options_of(DetectionOptions).values())
    add_detectors(detection, DETECTOR_FLAGS)
    machine = parser.add_argument_group("models and machine")
    add_whisper(machine)
    machine.add_argument("--low-memory", action=SWITCH, help="one model at a time")
    add_models(machine)
    archive.add_machines(parser.add_argument_group("many machines"))
    for name in (*MEANINGLESS, *PUNCTUATIONS):
        parser.add_argument(flag_of(name), help=argparse.SUPPRESS)


def _add_outputs(group: Any) -> None:
    outputs.add_outputs(group)
    group.add_argument("--skip-existing", action="store_true", default=False, help="pass over what is written already")
    add_option(group, LAYOUT["speaker_embeddings"])
    group.add_argument("--quiet", action="store_true", default=False, help="no transcript and no bars on the screen")


def add_words(group: Any) -> None:
    """Flags of times of words."""
    options = options_of(WordOptions)
    group.add_argument(
        "--word-timestamps",
        choices=[*WORD_TIMESTAMPS, "True", "False"],
        metavar=f"{{{','.join(WORD_TIMESTAMPS)}}}",
        help=help_of(options.pop("word_timestamps")),
    )
    group.add_argument("--no-align", dest="word_timestamps", action="store_const", const="none", help="no word times")
    group.add_argument("--align-model", metavar="NAME", help="wav2vec2 (default: the one of the language)")
    add_options(group, options.values())


def add_recognition(group: Any, decoding: dict[str, Option]) -> None:
    """Flags of what Whisper does. decoding : its options, without those whose flags are there already"""
    del decoding["temperature"]  # a flag takes one number, and another one says how the others follow
    del decoding["suppress_blank"]  # nobody wants a text that begins with a space
    number = number_or_none(float)
    group.add_argument(
        "--temperature", type=number, metavar="FLOAT", help="of sampling (default 0; more where decoding fails)"
    )
    group.add_argument(
        "--temperature-increment-on-fallback",
        type=number,
        metavar="FLOAT",
        help=f"how much more (default {INCREMENT}; None: no second try)",
    )
    add_options(group, decoding.values())


def add_detectors(group: Any, detector_flags: Mapping[VadMethod, Mapping[str, str]]) -> None:
    """Flags of detectors' own options, and for their model. detector_flags : as `DETECTOR_FLAGS`, of some or all"""
    group.add_argument("--vad-model", metavar="NAME", help="default: the method's own")
    flags: dict[str, dict[VadMethod, Option]] = {}
    for method, names in detector_flags.items():
        for flag, name in names.items():
            flags.setdefault(flag, {})[method] = options_of(DETECTORS[method])[name]
    for flag, by_method in flags.items():
        first = next(iter(by_method.values()))
        add_option(group, first, flag=flag_of(flag), help=_help_by_method(by_method))


def _help_by_method(by_method: Mapping[VadMethod, Option]) -> str:
    """Help for a flag that sets an option of one or several detectors."""
    (method, first), *others = by_method.items()
    if not others:
        return f"{method}: {help_of(first)}"
    defaults = {method: default_of(option).removeprefix("default").strip(" :") for method, option in by_method.items()}
    if len(set(defaults.values())) == 1:
        return help_of(first)
    listed = "; ".join(f"{method}, {text}" for method, text in defaults.items())
    return f"{first.about.help} (default: {listed})"


def add_whisper(group: Any) -> None:
    """Flags of what `Pipeline` itself takes."""
    group.add_argument("--batch-size", help="chunks at once (default: auto)")
    group.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], help="of Whisper")
    group.add_argument("--q-bits", type=int, help="quantize Whisper to so many bits")
    group.add_argument("--compute-type", choices=COMPUTE_FLAGS, help="WhisperX's word for the two")
    group.add_argument("--fp16", action=SWITCH, help=argparse.SUPPRESS)
    group.add_argument("--memory-limit", type=float, metavar="GB", help="that MLX should stay within")


# --- the command -----------------------------------------------------------------------------------------------------


def run(
    audio: list[str],
    output_dir: str,
    output_format: str,
    embed_audio: bool,
    skip_existing: bool,
    quiet: bool,
    verbose: bool,
    say: Say,
    **given: Any,
) -> int:
    """Transcribe recordings and write each in the formats asked for; 1 where one of them failed."""
    for name, instead in MEANINGLESS.items():
        if given.pop(name, None) is not None:
            say(f"{flag_of(name)} has no meaning here: {instead}")
    named = [name for name, value in given.items() if value]
    layout: Any = {name: given.pop(name) for name in LAYOUT if name in given}
    outputs.check_layout(layout)
    machines = archive.machines_of(given)
    bars = Bars(given.pop("print_progress"), quiet)
    pipeline = make_pipeline(given, say) if machines is None else machines.prepared(given, say)
    keywords: Any = keywords_of(given)
    _check_no_align(keywords, layout)
    options = Options.of(**keywords)
    if layout.get("highlight_words") and options.word_method is None:
        raise OptionError("--highlight-words and --task translate conflict: add --word-timestamps attention")
    for flag, needed in _unheeded(named, options):
        say(f"{flag_of(flag)} has no meaning without {needed}")
    corpora = () if machines is None else archive.CORPORA
    formats = outputs.formats_of(output_format, diarized=options.wants_speakers, more=corpora)
    check_embedding(embed_audio, formats)
    audio = list(dict.fromkeys(audio))
    folder = outputs.expanded(output_dir)
    if isinstance(pipeline, archive.Machines):
        if skip_existing:
            say("--skip-existing has no meaning with --ray: what is done is never done again")
        return pipeline.transcribe(audio, folder, formats, layout, keywords, bars.shown, quiet, say)
    stems = outputs.stems_of(audio, folder, formats, say)
    files = {source: {kind: folder / f"{stem}.{kind}" for kind in formats} for source, stem in stems.items()}
    left = list(files)
    if skip_existing:
        left = [source for source in left if not all(path.is_file() for path in files[source].values())]
    results = pipeline.transcribe(left, on_progress=bars, **keywords)  # they are checked, nothing runs yet
    outputs.make_writable(folder)
    outputs.check_paths({source: files[source].values() for source in left})
    if not left:
        say(f"nothing to do: what was asked for is in {folder} already")
        return 0
    failed: list[str] = []
    try:
        with closing(bars) as report:
            for source, result in results:
                report.close(source)
                if isinstance(result, Exception):
                    failed.append(failure(source, result, verbose))
                    continue
                try:
                    page: dict[str, Any] = {}
                    if "html" in formats:
                        track = given.get("audio_track")
                        page = keywords_if_readable(source, folder, embed=embed_audio, audio_track=track)
                    outputs.write_all(result, files[source], stems[source], layout, page)
                except MLXSpeechError as error:
                    failed.append(failure(source, error, verbose))
                    continue
                if not quiet:
                    heading = f"# {source}\n" if len(audio) > 1 else ""
                    print(heading + writers.to_screen(result), end="", flush=True)
                    print(outputs.listed(folder / stems[source], formats), file=sys.stderr)
                say_matches(result.diarization, say)
                if verbose:
                    print(timing(result), file=sys.stderr)
                    for region in result.silences:
                        say(f"{region.start:.1f} to {region.end:.1f} s: speech to the detector, silence to Whisper")
    finally:
        for message in failed:
            say(message)
    return 1 if failed else 0


def keywords_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the user gave, as keywords of `Options.of`. Raises `OptionError`."""
    detector_flags = {flag for flags in DETECTOR_FLAGS.values() for flag in flags}
    keywords = {name: value for name, value in given.items() if name not in detector_flags}
    if keywords.get("word_timestamps") in ("False", "True"):  # as openai-whisper's command line has it
        keywords["word_timestamps"] = keywords["word_timestamps"] == "True"
    first = keywords.pop("temperature", 0.0) or 0.0
    increment = keywords.pop("temperature_increment_on_fallback", INCREMENT)
    keywords["temperature"] = _temperatures(first, increment)
    keywords["vad_options"] = _vad_options(given, sorted(detector_flags & given.keys()))
    return keywords


def _temperatures(first: float, increment: float | None) -> tuple[float, ...]:
    """The temperatures that are tried: from the first to 1, as openai-whisper's command line makes them."""
    in_range(0, 100, temperature=first)
    if increment is None:
        return (round(first, 6),)
    if not increment >= 0.01:  # NaN too
        raise OptionError(f"--temperature-increment-on-fallback {increment}: give a number from 0.01 on, or None")
    count = max(1, int((1.0 - first + 1e-6) / increment) + 1)
    return tuple(round(first + k * increment, 6) for k in range(count))


def _vad_options(given: Mapping[str, Any], flags: Iterable[str]) -> dict[str, Any]:
    """The values of flags of a detector, by its own names. Raises `OptionError` for one that nothing answers to."""
    method = given.get("vad_method", "silero")
    names = DETECTOR_FLAGS[method]
    options: dict[str, Any] = {}
    for flag in flags:
        if given.get("sequential"):
            raise OptionError(f"--sequential and {flag_of(flag)} conflict: leave one of them out")
        if not given.get("vad", True):
            raise OptionError(f"--no-vad and {flag_of(flag)} conflict: leave one of them out")
        if flag not in names:
            raise OptionError(f"{flag_of(flag)} conflicts with --vad-method {method}: leave one of them out")
        if given[flag] is not None:
            options[names[flag]] = given[flag]
    return options


def _check_no_align(keywords: Mapping[str, Any], layout: Mapping[str, Any]) -> None:
    """Raises `OptionError` for flags that need words with times where none are wanted."""
    if keywords.get("word_timestamps") not in ("none", False):
        return
    for name in NEEDING_WORDS:
        if keywords.get(name) or layout.get(name):
            raise OptionError(f"{flag_of(name)} and --no-align conflict: leave one of them out")


def _unheeded(named: Iterable[str], options: Options) -> Iterator[tuple[str, str]]:
    """Flags that the user gave and nothing answers to, each with what it would need."""
    has_detection = options.detection.vad and not options.longform.sequential
    for name in ("speaker_embeddings", "speakers"):
        if name in named and not options.wants_speakers:
            yield name, "--diarize"
    if "segment_resolution" in named and options.word_method is None:
        yield "segment_resolution", "times of words"
    for name in ("align_model", "interpolate_method"):
        if name in named and options.word_method != "ctc":
            yield name, "--word-timestamps ctc"
    for name in ("vad_method", "vad_model"):
        if name in named and not has_detection:
            yield name, "speech detection"
