"""`mlx_speech live`: sound that is still coming in → words on the screen, and in the end transcripts in files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from mlx_speech.cli import outputs
from mlx_speech.cli.parser import (
    DIARIZE_MODEL,
    SWITCH,
    add_command,
    add_option,
    add_options,
    add_places,
    add_speakers,
    add_verbose,
    flag_of,
)
from mlx_speech.cli.screen import Say, say_matches, timing
from mlx_speech.cli.setup import GPU_NAMES, INTERRUPTED, make_pipeline
from mlx_speech.cli.sound import check_embedding, keywords_if_readable
from mlx_speech.cli.transcribe import (
    DETECTOR_FLAGS,
    LAYOUT,
    add_detectors,
    add_recognition,
    add_whisper,
    add_words,
    keywords_of,
)
from mlx_speech.errors import OptionError, OutputError, in_range
from mlx_speech.fields import options_of
from mlx_speech.live.defaults import CHUNK_SIZE, CODINGS, JOURNAL_SUFFIX, MAX_PAUSE, MAX_STEP, MIN_STEP, STEP
from mlx_speech.options import DecodingOptions, DetectionOptions, Options, SpeakerOptions

if TYPE_CHECKING:
    from mlx_speech.cli.live_run import Session
    from mlx_speech.live.sources import Source
    from mlx_speech.transcript import Transcript

DESCRIPTION = (
    "Transcribe sound while it comes in: from a microphone, from standard input (-), or from a WAV file that is still "
    "being written (--follow). What is said shows at once and firms up; what is final does not change any more. "
    "Ctrl-C ends it and writes the files, a second one stops at once. With -o, what is final is also in "
    "FOLDER/NAME.live.jsonl until the files are written: nothing final is lost where the process is killed. The same "
    "command, given again, goes on with it, and --recover writes files of it. Without -o there is no such file, and "
    "nothing but the screen."
)
DEFAULT_NAME = "live"
# flags of one kind of source, by the destination of the flag that chooses it
OF_PIPE = ("rate", "format", "channels")
OF_FILE = ("idle",)
OF_MICROPHONE = ("input", "on_loss")
OF_SOURCE = (*OF_PIPE, *OF_FILE, *OF_MICROPHONE)
MICROPHONE = "--input"
SOURCES = {"-": "standard input (-)", "--follow": "a file (--follow)", MICROPHONE: "a microphone"}
SESSION_KEYWORDS = ("step", "partials", "finals", "max_pause")


class _Pipeline(Protocol):
    """What is used of a pipeline."""

    def session(self, **keywords: Any) -> Session: ...


# --- flags -----------------------------------------------------------------------------------------------------------


def add_parser(group: Any) -> None:
    """The command and its flags. Those of options are derived, as for `transcribe`."""
    renamed = {name: flag for flag, name in DETECTOR_FLAGS["silero"].items()}
    renamed |= {"sample_rate": "rate", "coding": "format"}
    parser = add_command(
        group, run, "live", "who says what, while it is said", DESCRIPTION, only_given=True, renamed=renamed
    )
    parser.usage = "mlx_speech live [-] [options]"
    parser.add_argument("source", nargs="?", default=None, metavar="-", help="standard input, instead of a microphone")
    parser.add_argument(
        "--model", metavar="NAME", help="tiny … large-v3, turbo, with -q4 or -q8, a repository or a folder"
    )
    options = options_of(Options)
    del options["audio_track"]
    add_options(parser, options.values())
    decoding = options_of(DecodingOptions)
    add_option(parser, decoding.pop("task"))
    add_options(parser, options_of(SpeakerOptions).values())
    add_speakers(parser)
    _add_sources(parser.add_argument_group("sources"))
    _add_session(parser.add_argument_group("live"))
    _add_outputs(parser.add_argument_group("output"))
    subtitles = [option for name, option in LAYOUT.items() if name != "speaker_embeddings"]
    add_options(parser.add_argument_group("subtitles"), subtitles)
    add_words(parser.add_argument_group("word times"))
    add_recognition(parser.add_argument_group("recognition"), decoding)
    add_detectors(parser.add_argument_group("speech detection"), {"silero": DETECTOR_FLAGS["silero"]})
    machine = parser.add_argument_group("models and machine")
    add_whisper(machine)
    machine.add_argument("--diarize-model", metavar="NAME", help=DIARIZE_MODEL)
    add_places(machine)
    add_verbose(machine)


def _add_sources(group: Any) -> None:
    group.add_argument("--input", metavar="NAME|INDEX", help="microphone (default: the system's)")
    group.add_argument("--list-devices", action="store_true", default=False, help="show the microphones, and end")
    loss = "a microphone that is gone: wait a minute for the default one, or stop; exit code 3 (default: wait)"
    group.add_argument("--on-loss", choices=("wait", "stop"), help=loss)
    group.add_argument("--rate", type=int, metavar="HZ", help="of raw samples at standard input (default 16000)")
    group.add_argument("--format", choices=CODINGS, help="of raw samples (default: s16le); WAV is recognised")
    group.add_argument("--channels", type=int, metavar="N", help="of raw samples, interleaved (default 1)")
    follow = "a WAV file that is still being written, of 16-bit or 32-bit floating-point samples"
    group.add_argument("--follow", default=None, metavar="FILE", help=follow)
    group.add_argument("--idle", type=float, metavar="SECONDS", help="without growth that end it (default 10)")


def _add_session(group: Any) -> None:
    group.add_argument("--step", type=float, metavar="SECONDS", help=f"between two partial texts (default {STEP:g})")
    group.add_argument("--no-partials", dest="partials", action="store_false", help="show what is final, and no more")
    pause = f"that ends a chunk, which makes it final (default {MAX_PAUSE:g})"
    group.add_argument("--max-pause", type=float, metavar="SECONDS", help=pause)
    size = options_of(DetectionOptions)["chunk_size"]
    add_option(group, size, help=f"longest chunk in seconds, at most the model's window (default {CHUNK_SIZE:g})")
    finals = "window: chunks as long as those of transcribe, and the same text as its; later finals (default: pause)"
    group.add_argument("--finals", choices=("pause", "window"), help=finals)


def _add_outputs(group: Any) -> None:
    folder = "where files are written, and the journal until then (default: nothing is written)"
    group.add_argument("-o", "--output-dir", default=None, metavar="FOLDER", help=folder)
    outputs.add_formats(group)
    name = f"of the files (default: that of the file that is followed, or {DEFAULT_NAME})"
    group.add_argument("--name", default=None, help=name)
    group.add_argument("--save-audio", default=None, metavar="FILE", help="the sound as WAV, 16 kHz mono, as it comes")
    lines = "events as lines of JSON on standard output, the transcript in the last one"
    group.add_argument("--json", action="store_true", default=False, help=lines)
    recover = f"write files of a journal that was left ({JOURNAL_SUFFIX}), and end; it stays"
    group.add_argument("--recover", default=None, metavar="FILE", help=recover)
    add_option(group, LAYOUT["speaker_embeddings"])
    group.add_argument("--quiet", action=SWITCH, default=False, help="no words on the screen")


# --- the command -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Files:
    """Where results go. results : by format"""

    folder: Path
    name: str
    results: Mapping[str, Path]

    @property
    def journal(self) -> Path:
        return self.folder / f"{self.name}{JOURNAL_SUFFIX}"


def run(
    source: str | None,
    list_devices: bool,
    follow: str | None,
    recover: str | None,
    output_dir: str | None,
    output_format: str,
    embed_audio: bool,
    name: str | None,
    save_audio: str | None,
    json: bool,
    quiet: bool,
    verbose: bool,
    say: Say,
    **given: Any,
) -> int:
    """Transcribe what comes in; 3 where the microphone was lost."""
    _check_source(source, list_devices, follow, recover, given)
    layout: Any = {option: given.pop(option) for option in LAYOUT if option in given}
    outputs.check_layout(layout)
    if list_devices:
        from mlx_speech.live import microphone

        print(microphone.table(microphone.list_devices()), end="")
        return 0
    if recover is not None:
        return _recover(Path(recover), output_dir or ".", output_format, name, layout)
    _check_machine(given)
    _check_saved(follow, save_audio)
    of_source = {flag: given.pop(flag) for flag in OF_SOURCE if flag in given}
    of_session = _session_keywords(given)
    described = {option: str(value) for option, value in (of_session | given).items() if option != "hf_token"}
    pipeline = cast(_Pipeline, make_pipeline(given, say))
    keywords: Any = keywords_of(given)
    options = Options.of(**keywords)
    files = None
    if output_dir is not None:
        files = _files_of(output_dir, output_format, options.wants_speakers, name, follow)
        check_embedding(embed_audio, list(files.results))
        if embed_audio and follow is None and save_audio is None:
            raise OptionError("--embed-audio needs --save-audio: there is no other recording")
    elif output_format != "all" or embed_audio or name is not None:
        raise OptionError("--output-format, --embed-audio and --name need --output-dir: say where files are written")
    from mlx_speech.cli.live_output import Output
    from mlx_speech.cli.live_run import Feeding
    from mlx_speech.cli.live_run import follow as follow_session
    from mlx_speech.live.sources import GrowingFile

    with ExitStack() as stack:
        opened = _open_source(source, follow, of_source)
        stack.callback(opened.close)
        output = stack.enter_context(
            Output(
                None if files is None else files.journal,
                lines=json,
                quiet=quiet,
                with_speakers=options.wants_speakers,
                say=say,
            )
        )
        session = stack.enter_context(pipeline.session(**of_session, **keywords))
        sound = None if save_audio is None else outputs.expanded(save_audio)
        output.begin(described, sound, comes_again=follow is not None)
        if isinstance(opened, GrowingFile):
            opened.skip(output.offset)
        drops = source is None and follow is None
        feeding = Feeding(opened, session, saved=output.saved, drops=drops, offset=output.offset)
        try:
            outcome = follow_session(
                session,
                feeding,
                take=output.take,
                tick=output.tick,
                say_interrupted=lambda: output.say("ending: Ctrl-C once more stops at once"),
            )
        except KeyboardInterrupt:
            output.say(f"stopped; {output.left}")
            return INTERRUPTED
        not_closed = None
        try:
            output.close_sound()  # before the page that may hold it; the transcript does not depend on it
        except OutputError as error:
            not_closed = error
        transcript = output.transcript
        if transcript is not None:
            if files is not None:
                _write(transcript, files, layout, save_audio or follow, embed_audio)
            output.finish(bool(layout.get("speaker_embeddings")))
            say_matches(transcript.diarization, output.say)
            if verbose:
                print(timing(transcript), file=sys.stderr)
        if outcome.error is not None:
            raise outcome.error
        if not_closed is not None:
            raise not_closed
    return 0


def _check_source(
    source: str | None, list_devices: bool, follow: str | None, recover: str | None, given: Mapping[str, Any]
) -> None:
    """Raises `OptionError` where it is not clear what is to be heard, or a flag is one of another source."""
    if source is not None and source != "-":
        advice = f"mlx_speech transcribe {source} reads it, and --follow {source} while it is being written"
        raise OptionError(f"{source}: only standard input (-) can be named here: {advice}")
    chosen = {
        "-": source is not None,
        "--follow": follow is not None,
        "--list-devices": list_devices,
        "--recover": recover is not None,
    }
    names = [flag for flag, is_chosen in chosen.items() if is_chosen]
    if len(names) > 1:
        raise OptionError(f"{' and '.join(names)} conflict: leave one of them out")
    kind = names[0] if names else MICROPHONE
    for flags, needed in ((OF_PIPE, "-"), (OF_FILE, "--follow"), (OF_MICROPHONE, MICROPHONE)):
        for flag in flags:
            if flag in given and kind != needed:
                raise OptionError(f"{flag_of(flag)} is of {SOURCES[needed]}: leave it out")


def _check_saved(follow: str | None, save_audio: str | None) -> None:
    """Raises `OptionError` where sound would be saved in the file that it comes from."""
    if follow is None or save_audio is None:
        return
    saved = outputs.expanded(save_audio)
    followed = outputs.expanded(follow)
    if saved.exists() and followed.exists() and saved.samefile(followed):
        raise OptionError(f"--save-audio {save_audio}: is the file that is followed: choose another one")


def _check_machine(given: Mapping[str, Any]) -> None:
    """Raises `OptionError` where the device that models run on was taken for the microphone."""
    device = given.get("device")
    if device is not None and device.split(":")[0] not in ("cpu", *GPU_NAMES):
        raise OptionError(f"--device {device}: models run on cpu or gpu: a microphone is named by --input")


def _session_keywords(given: dict[str, Any]) -> dict[str, Any]:
    """What is the session's own; it is taken out of `given`. Raises `OptionError`."""
    keywords = {name: given.pop(name) for name in SESSION_KEYWORDS if name in given}
    in_range(MIN_STEP, MAX_STEP, step=keywords.get("step"))
    if "step" in keywords and not keywords.get("partials", True):
        raise OptionError("--step and --no-partials conflict: leave one of them out")
    max_pause = keywords.get("max_pause")
    if max_pause is not None and not max_pause >= 0:  # NaN too
        raise OptionError(f"--max-pause {max_pause}: give a number of seconds from 0 on")
    if max_pause is not None and keywords.get("finals") == "window":
        raise OptionError("--max-pause and --finals window conflict: leave one of them out")
    return keywords


def _open_source(source: str | None, follow: str | None, of_source: Mapping[str, Any]) -> Source:
    """Raises as the source does."""
    from mlx_speech.live import microphone, sources

    if source is not None:
        return sources.pipe(
            sys.stdin.buffer,
            sample_rate=of_source.get("rate", sources.SAMPLE_RATE),
            channels=of_source.get("channels", 1),
            coding=of_source.get("format", CODINGS[0]),
        )
    if follow is not None:
        return sources.growing_file(outputs.expanded(follow), of_source.get("idle", sources.IDLE))
    name = of_source.get("input")
    if name is not None and name.isdecimal():
        name = int(name)
    return microphone.microphone(name, on_loss=of_source.get("on_loss", "wait"))


def _files_of(folder_name: str, formats: str, diarized: bool, name: str | None, follow: str | None) -> _Files:
    """Raises `OptionError`, and `OutputError` where they cannot be written or are those of another session."""
    stem = name
    if stem is None:
        stem = DEFAULT_NAME if follow is None else Path(follow).stem
    if not stem or Path(stem).name != stem:
        raise OptionError(f"--name {stem}: give a name of files without folders")
    kinds = outputs.formats_of(formats, diarized=diarized)
    folder = outputs.expanded(folder_name)
    files = _Files(folder, stem, {kind: folder / f"{stem}.{kind}" for kind in kinds})
    outputs.make_writable(folder)
    outputs.check_paths({follow or "-": files.results.values()})
    if follow is None and not _says_something(files.journal):  # sound that does not come again
        for path in files.results.values():
            if path.exists():
                raise OutputError(f"{path}: is there already, of another session: choose another --name")
    return files


def _says_something(journal: Path) -> bool:
    """Whether a session was left there that this one goes on with. Raises `SourceError`."""
    from mlx_speech.live.journal import read_journal

    return journal.exists() and read_journal(journal).says_something


def _write(
    transcript: Transcript, files: _Files, layout: Mapping[str, Any], sound: str | None, embed_audio: bool
) -> None:
    """sound : where it can be heard once more. Raises `OutputError`."""
    page: dict[str, Any] = {}
    if "html" in files.results and sound is not None:
        page = keywords_if_readable(sound, files.folder, embed=embed_audio)
    outputs.write_all(transcript, files.results, files.name, layout, page)
    print(outputs.listed(files.folder / files.name, list(files.results)), file=sys.stderr)


def _recover(path: Path, folder_name: str, formats: str, name: str | None, layout: Mapping[str, Any]) -> int:
    """Write files of a journal. Raises `SourceError`, `OptionError` and `OutputError`."""
    from mlx_speech.live.journal import read_journal

    transcript = read_journal(path).transcript
    kinds = outputs.formats_of(
        formats, diarized=transcript.diarization is not None, advice=f"{path} has none: leave rttm out"
    )
    folder = outputs.expanded(folder_name)
    stem = name or path.name.removesuffix(JOURNAL_SUFFIX)
    outputs.make_writable(folder)
    results = {kind: folder / f"{stem}.{kind}" for kind in kinds}
    outputs.check_paths({str(path): results.values()}, "the journal")
    outputs.write_all(transcript, results, stem, layout)
    print(outputs.listed(folder / stem, kinds))
    return 0
