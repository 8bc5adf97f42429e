"""The command line: arguments only. Every flag is a keyword of a function; an error is one line and exit code 2.

The library's messages name keywords (`batch_size`); here, and nowhere else, they become flags (`in_flags`).
"""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from mlx_speech import blas
from mlx_speech.cli import commands
from mlx_speech.errors import MLXSpeechError
from mlx_speech.version import __version__


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    arguments : without the program's name; by default the process's own. Only then is the process told to keep the
        memory that it frees (`blas.keep_memory`), which holds to its end. Everything else that is set for the run
        (warnings, signals, environment, device) is as before afterwards. It runs in any thread.
    """
    if arguments is None:
        blas.keep_memory()
    parser = build_parser()
    options = vars(parser.parse_args(normal(sys.argv[1:] if arguments is None else arguments)))
    run, verbose = options.pop("run"), options.get("verbose", False)
    flags = _flags(parser, run.__name__)

    def say(message: str) -> None:
        print(f"mlx_speech: {in_flags(message, flags)}", file=sys.stderr)

    def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if category is UserWarning:
            say(f"warning: {message}")

    with _settings():
        warnings.showwarning = show_warning
        warnings.simplefilter("always", UserWarning)  # the second recording with a fault hears of it too
        try:
            blas.check_backend()
            with _same_device():
                return run(**options, say=say)
        except MLXSpeechError as error:
            if verbose:
                traceback.print_exc()
            say(" ".join(str(error).split()))
            return error.exit_code
        except KeyboardInterrupt:
            say("interrupted; what is written is whole, and of the rest nothing is left behind")
            return 130
        except BrokenPipeError:  # the reader of our output has gone
            sys.stderr.close()
            return 141
        except OSError as error:  # what is left, without a name: the disk behind standard output
            if error.filename is None:
                say(f"cannot write to standard output ({error.strerror}): make room there")
            else:
                say(f"{os.fspath(error.filename)}: {error.strerror}: is it there, and may you use it?")
            return 2


@contextmanager
def _settings() -> Iterator[None]:
    """The process as a command needs it, and afterwards as it was."""
    environment = {name: os.environ.get(name) for name in commands.VARIABLES}
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    handling = [(stream, stream.errors) for stream in streams]
    terminated: Any = None
    if threading.current_thread() is threading.main_thread():  # no other may handle signals
        # so that a half-written folder is cleared away
        terminated = signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in streams:
        stream.reconfigure(errors="replace")  # a terminal that cannot show every letter
    try:
        with warnings.catch_warnings():
            yield
    finally:
        if terminated is not None:
            signal.signal(signal.SIGTERM, terminated)
        for stream, errors in handling:
            if not stream.closed:
                stream.reconfigure(errors=errors)
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _same_device() -> Iterator[None]:
    """MLX's default device is afterwards as it was."""
    import mlx.core as mx

    device = mx.default_device()
    try:
        yield
    finally:
        mx.set_default_device(device)


def in_flags(message: str, flags: Mapping[str, str]) -> str:
    """A message of the library, which names keywords, as the command line says it.

    flags : keyword → flag, and "keyword=False" → the flag that says so

    A name of several words is a keyword wherever it stands by itself. One that is a word like any other ("model") is
    so only before "=", where the message begins with it, and where it conflicts. Paths and quotes are left alone.
    """
    names = "|".join(map(re.escape, flags))
    several = "|".join(re.escape(name) for name in flags if "_" in name and "=" not in name)
    before = r"(?<![\w./\\'\"-])"
    after = r"(?![\w/\\'\"=-]|\.\w)"
    file = rf"(?!\A(?:{several}):)"  # a message that begins with a name and a colon is about a file

    def flag(found: re.Match[str]) -> str:
        return flags[found["name"]]

    message = re.sub(rf"{before}(?P<name>{names})=True\b", flag, message)
    message = re.sub(rf"{before}(?P<name>\w+=False)\b", lambda found: flags.get(found["name"], found["name"]), message)
    message = re.sub(rf"{before}(?P<name>{names})(?==)", flag, message)
    message = re.sub(rf"{before}{file}(?P<name>{several}){after}", flag, message)
    message = re.sub(rf"^(?P<name>{names})(?= (is|and|needs|conflicts) )", flag, message)
    message = re.sub(rf"(?<= needs )(?P<name>{names})(?=:)", flag, message)
    return re.sub(rf"(?<= and )(?P<name>{names})(?= conflict)", flag, message)


def _flags(parser: argparse.ArgumentParser, command: str) -> dict[str, str]:
    """The flags of a command, by the keywords that messages name."""
    flags: dict[str, str] = {}
    if command == "transcribe":  # a detector's options have other names there
        for method in commands.DETECTION.values():
            flags |= {name: f"--{flag.replace('_', '-')}" for flag, name in method.items()}
    commands_of: Any = next(action for action in parser._actions if action.choices)
    for action in commands_of.choices[command]._actions:
        for text in action.option_strings:
            if text.startswith("--no-"):
                flags[f"{action.dest}=False"] = text
            elif text.startswith("--"):
                flags.setdefault(action.dest, text)
    return flags


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # one line, as all errors here
        self.exit(2, f"mlx_speech: {message}: see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """All commands and flags; imports nothing heavy."""
    text = "Who said what, when. Speech models on MLX, equal to their originals."
    parser = _Parser(prog="mlx_speech", description=text)
    parser.add_argument("-V", "--version", action="version", version=f"mlx_speech {__version__}")
    group = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_transcribe, _add_diarize, _add_vad, _add_convert, _add_demo):
        add(group)
    return parser


# --- transcribe, diarize ---------------------------------------------------------------------------------------------


def _number(kind: type) -> Any:
    def read(text: str) -> Any:
        return None if text == "None" else kind(text)  # as WhisperX's command line has it

    read.__name__ = kind.__name__  # argparse says it in messages
    return read


def _track(text: str) -> int | str:
    if text == "all":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'{text!r} is no sound track: give a number from 1, or "all"') from error


_TRACK_HELP = "which sound track of several, from 1, or all of them (default: the one that a player takes)"

# Flags whose name is a keyword (`options.Options`, `writers.Layout`), with the type of what follows.
_INT, _FLOAT = _number(int), _number(float)
_VALUES = {
    "recognition": (
        ("--temperature", _FLOAT, "of sampling (default 0; more where decoding fails)"),
        ("--temperature-increment-on-fallback", _FLOAT, "how much more (default 0.2; None: no second try)"),
        ("--best-of", _INT, "samples at a temperature above 0 (default 5)"),
        ("--beam-size", _INT, "beams at temperature 0 (default: greedy)"),
        ("--patience", _FLOAT, "of beam search (default 1)"),
        ("--length-penalty", _FLOAT, "alpha of Google's length penalty (default: plain mean)"),
        ("--compression-ratio-threshold", _FLOAT, "text that compresses better has failed (default 2.4)"),
        ("--logprob-threshold", _FLOAT, "a lower mean log-probability has failed (default -1)"),
        ("--no-speech-threshold", _FLOAT, "what failed and has this probability of silence is dropped (default 0.6)"),
        ("--max-initial-timestamp", _FLOAT, "latest first timestamp in seconds (default 1)"),
        ("--sample-len", _INT, "most tokens a chunk (default 224)"),
        ("--seed", int, "of sampling (default 0)"),
        ("--initial-prompt", str, "text that is taken to come before"),
        ("--prefix", str, "text that every chunk begins with"),
        ("--hotwords", str, "names and terms to expect"),
        ("--suppress-tokens", str, "comma-separated token ids; -1: most symbols (default)"),
        ("--hallucination-silence-threshold", _FLOAT, "leave out made-up text between longer silences, in seconds"),
        ("--clip-timestamps", str, "with --sequential: start,end,start,end … in seconds"),
    ),
    "speech detection": (
        ("--chunk-size", float, "longest chunk in seconds (default: the model's window, 30 in OpenAI's)"),
        ("--vad-onset", float, "speech from this probability on (default 0.5)"),
        ("--vad-offset", _FLOAT, "silence below this one (default: silero, onset - 0.15; pyannote, 0.363)"),
        ("--min-speech-duration-ms", float, "silero: shorter speech is dropped (default 250)"),
        ("--min-silence-duration-ms", float, "silero: silence that ends speech (default 100)"),
        ("--speech-pad-ms", float, "silero: added on both sides (default 30)"),
        ("--min-silence-at-max-speech", float, "silero: silence that long speech may be cut at (default 98)"),
        ("--min-duration-on", float, "pyannote: shorter speech is dropped, in seconds (default 0)"),
        ("--min-duration-off", float, "pyannote: shorter silence is filled, in seconds (default 0)"),
    ),
    "subtitles": (
        ("--max-line-width", _INT, "characters a line (default 42)"),
        ("--max-line-count", _INT, "lines a cue (default 2; needs --max-line-width)"),
        ("--max-cue-duration", float, "seconds a cue (default 7)"),
    ),
}
_NUMBERS = (("num", "exactly"), ("min", "at least"), ("max", "at most"))
_SPEAKERS = [(f"--{name}-speakers", _INT, f"{text} so many") for name, text in _NUMBERS]
# Flags that may be followed by True or False, as WhisperX's are.
_SWITCHES = {
    *("--highlight-words", "--condition-on-previous-text", "--model-cache-only", "--fp16", "--print-progress"),
    *("--verbose", "--suppress-numerals", "--return-char-alignments", "--speaker-embeddings", "--no-align"),
}


def normal(arguments: list[str]) -> list[str]:
    """Command lines in WhisperX's spelling: `--batch_size 8`, `--highlight_words True`, `--fp16 False`."""
    words: list[str] = []
    end = arguments.index("--") if "--" in arguments else len(arguments)  # what follows are names of files
    for word in arguments[:end]:
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-") if word.startswith("--") else flag
        words += [flag, value] if flag in _SWITCHES and equals else [f"{flag}{equals}{value}"]
    result: list[str] = []
    for word in words:
        if result and result[-1] in _SWITCHES and word in ("True", "False"):
            result[-1:] = [result[-1]] if word == "True" else [f"--no-{result[-1][2:]}"]
        else:
            result.append(word)
    return [word for word in result if word != "--no-no-align"] + arguments[end:]


def _add_transcribe(group: Any) -> None:
    text = "Transcribe recordings: speech detection, Whisper, word times, and with --diarize speakers. "
    text += "WhisperX's flags are understood too."
    parser = _command(group, commands.transcribe, "who said what, when, in recordings", text, only_given=True)
    parser.usage = "mlx_speech transcribe AUDIO [AUDIO ...] [options]"
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("audio", nargs="+", help="any audio or video file; - is standard input")
    add("--model", metavar="NAME", help="tiny … large-v3, turbo, with -q4 or -q8, a repository or a folder")
    add("--language", help="code or name (default: detected)")
    add("--multilingual", action="store_true", help="detect the language of every chunk")
    add("--audio-track", type=_track, metavar="N|all", help=_TRACK_HELP)
    add("--task", choices=["transcribe", "translate"], help="translate: into English")
    add("--diarize", action="store_true", help="find the speakers")
    _add_values(parser, _SPEAKERS)
    add = parser.add_argument_group("output").add_argument
    add("-o", "--output-dir", default=".", help="where files are written (default: here)")
    usual = "all, which leaves out ctm and aud, and rttm without --diarize"
    add("-f", "--output-format", default="all", help=f"list of {','.join(commands.FORMATS)} (default: {usual})")
    add("--skip-existing", action="store_true", default=False, help="pass over what is written already")
    add("--segment-resolution", choices=["sentence", "chunk"], help="default: sentence")
    add("--speaker-embeddings", action=switch, help="a vector per speaker, in the json")
    add("--return-char-alignments", action=switch, help="characters with times, in the json")
    add("--quiet", action="store_true", default=False, help="no transcript and no bars on the screen")
    subtitles = _add_values(parser.add_argument_group("subtitles"), _VALUES["subtitles"])
    subtitles.add_argument("--highlight-words", action=switch, help="underline each word as it is spoken")
    add = parser.add_argument_group("word times").add_argument
    text, kinds = "forced alignment (default), Whisper's own, or none", ["ctc", "attention", "none"]
    add("--word-timestamps", choices=[*kinds, "True", "False"], metavar=f"{{{','.join(kinds)}}}", help=text)
    add("--no-align", dest="word_timestamps", action="store_const", const="none", help="no word times")
    add("--align-model", metavar="NAME", help="wav2vec2 (default: the one of the language)")
    add("--interpolate-method", choices=["nearest", "linear", "ignore"], help="words without a time")
    recognition = _add_values(parser.add_argument_group("recognition"), _VALUES["recognition"])
    recognition.add_argument("--sequential", action="store_true", help="window after window, as openai/whisper")
    add, text = recognition.add_argument, "with --sequential: the text so far is the prompt (default there)"
    add("--condition-on-previous-text", action=switch, help=text)
    add("--carry-initial-prompt", action=switch, help="with --sequential: put the initial prompt before every window")
    add("--suppress-numerals", action=switch, help="spell numbers out")
    add("--without-timestamps", action=switch, help="one segment a chunk")
    detection = _add_values(parser.add_argument_group("speech detection"), _VALUES["speech detection"])
    detection.add_argument("--vad-method", choices=["silero", "pyannote"], help="default: silero")
    detection.add_argument("--vad-model", metavar="NAME", help="default: the method's own")
    detection.add_argument("--no-vad", dest="vad", action="store_false", help="cut every --chunk-size seconds")
    machine = parser.add_argument_group("models and machine")
    add, kinds = machine.add_argument, ["default", "float16", "float32", "int8", "int4"]
    add("--batch-size", help="chunks at once (default: auto)")
    add("--dtype", choices=["float16", "bfloat16", "float32"], help="of Whisper")
    add("--q-bits", type=int, help="quantize Whisper to so many bits")
    add("--compute-type", choices=kinds, help="WhisperX's word for the two")
    add("--fp16", action=switch, help=argparse.SUPPRESS)
    add("--low-memory", action="store_true", help="one model at a time")
    add("--memory-limit", type=float, metavar="GB", help="that MLX should stay within")
    _add_machine(machine)
    for name in (*commands.MEANINGLESS, "prepend_punctuations", "append_punctuations"):
        parser.add_argument(f"--{name.replace('_', '-')}", help=argparse.SUPPRESS)


def _add_diarize(group: Any) -> None:
    text = "Find the turns of each speaker, as pyannote.audio 4 does, and print them as RTTM."
    parser = _command(group, commands.diarize, "who speaks when in recordings, as RTTM", text, only_given=True)
    parser.add_argument("audio", nargs="+", help="any audio or video file; - is standard input")
    parser.add_argument("--exclusive", action="store_true", default=False, help="never two speakers at once")
    parser.add_argument("--audio-track", type=_track, metavar="N|all", help=_TRACK_HELP)
    _add_values(parser, _SPEAKERS)
    _add_machine(parser)


def _command(group: Any, run: Any, help: str, description: str, only_given: bool = False) -> Any:
    """A subcommand that calls `run`, by default with every flag, else with those that the user gave."""
    default = argparse.SUPPRESS if only_given else None
    parser = group.add_parser(run.__name__, help=help, description=description, argument_default=default)
    parser.set_defaults(run=run)
    return parser


def _add_values(group: Any, flags: Any) -> Any:
    for flag, kind, text in flags:
        group.add_argument(flag, type=kind, metavar=getattr(kind, "__name__", "text").upper(), help=text)
    return group


def _add_machine(group: Any) -> None:
    add, switch = group.add_argument, argparse.BooleanOptionalAction
    add("--diarize-model", metavar="NAME", help="default: pyannote/speaker-diarization-community-1")
    add("--device", default=None, help="cpu or gpu (cuda, mps) (default: MLX's)")
    add("--model-dir", default=None, metavar="FOLDER", help="where models are kept")
    add("--model-cache-only", action=switch, default=False, help="download nothing")
    add("--hf-token", default=None, help="of the model hub (or HF_TOKEN, or hf auth login)")
    add("--max-duration", type=float, metavar="SECONDS", help="longest recording read (default 24 h)")
    add("--print-progress", action=switch, default=None, help="bars also where nobody watches")
    add("-v", "--verbose", action=switch, default=False, help="seconds per stage, tracebacks of errors")


# --- convert, vad, demo ----------------------------------------------------------------------------------------------


def _add_convert(group: Any) -> None:
    text = "Convert Whisper, wav2vec2 (CTC), Silero VAD, pyannote's segmentation, speaker embedding and PLDA, "
    text += "or a whole pyannote pipeline, to MLX. Nothing of the originals' frameworks is needed."
    add = _command(group, commands.convert, "original weights into a folder of MLX safetensors", text).add_argument
    add("--model", "--hf-path", required=True, help="hub repository, local folder, or a single file")
    add("--mlx-path", help="folder to write (default: mlx_models/NAME, with -4bit and the like when quantized)")
    add("--revision", help="branch, tag or commit of the hub repository")
    add("--language", help="MMS: the adapter to put in (deu, eng …); torchaudio files: whose labels (en, de …)")
    add("-q", "--quantize", action="store_true", help="quantize (4 bits unless said otherwise)")
    add("--q-bits", type=int, help="bits per weight: 2, 3, 4, 5, 6 or 8")
    add("--q-group-size", type=int, help="weights that share a scale: 32, 64 or 128")
    add("--q-mode", default="affine", choices=["affine", "mxfp4", "nvfp4", "mxfp8"], help="kind of quantization")
    add("--quant-predicate", choices=["mixed_3_6", "mixed_4_6", "mixed_4_8"], help="mixed-bit recipe")
    add("--dtype", choices=["float16", "bfloat16", "float32"], help="of what is not quantized (default: the source's)")
    add("-d", "--dequantize", action="store_true", help="turn a quantized model into a plain one")
    add("--upload-repo", metavar="OWNER/NAME", help="upload the finished folder to this repository")
    add("--dry-run", action="store_true", help="only show where every tensor would go")
    add("--verify", action="store_true", help="run the original too and print the parity table (needs the test extra)")
    add("--overwrite", action="store_true", help="replace a converted model that is there already")
    add("-v", "--verbose", action="store_true", help="tracebacks of errors")


def _add_vad(group: Any) -> None:
    text = "Print the regions of speech in recordings, by Silero VAD; options and results as in its package."
    add = _command(group, commands.vad, "when somebody speaks in a recording", text).add_argument
    add("audio", nargs="+", help="any audio or video file; - is standard input")
    add("--model", help="converted Silero VAD, or its original (default: the one that comes with the package)")
    add("--format", default="text", choices=["text", "json", "rttm"], help="default: text")
    add("--sampling-rate", type=int, default=16000, choices=[8000, 16000], help="that the model works at")
    add("--audio-track", type=_track, metavar="N|all", help=_TRACK_HELP)
    add("--threshold", type=float, default=0.5, help="speech from this probability on (default 0.5)")
    add("--neg-threshold", type=float, help="silence below this one (default: threshold - 0.15, at least 0.01)")
    add("--min-speech-duration-ms", type=float, default=250, help="shorter speech is dropped (default 250)")
    add("--max-speech-duration-s", type=float, default=float("inf"), help="longer speech is cut (default: never)")
    add("--min-silence-duration-ms", type=float, default=100, help="silence that ends speech (default 100)")
    add("--speech-pad-ms", type=float, default=30, help="added on both sides (default 30)")
    add("--min-silence-at-max-speech", type=float, default=98, help="silence in ms that long speech may be cut at")
    text = "cut long speech at the last silence, not at the longest (use_max_poss_sil_at_max_speech=False)"
    add("--legacy-cut", dest="use_max_poss_sil_at_max_speech", action="store_false", help=text)
    add("--time-resolution", type=int, default=3, help="decimals of the times, in seconds (default 3; upstream's is 1)")
    add("--max-duration", type=float, metavar="SECONDS", default=86400.0, help="longest recording read (default 24 h)")
    add("-v", "--verbose", action="store_true", help="tracebacks of errors")


def _add_demo(group: Any) -> None:
    text = "Transcribe a conversation with the small models that come with the package, and say how well it went. "
    add = _command(group, commands.demo, "a first look, without downloads", text + commands.DEMO_MODELS).add_argument
    add("audio", nargs="?", help="another recording; FILE.json beside FILE says what was spoken, if it is known")
    add("-o", "--output-dir", default=".", help="where srt, json and rttm are written (default: here)")
    add("--q-bits", type=int, choices=[4, 8], help="quantize Whisper to so many bits")
    add("-v", "--verbose", action="store_true", help="tracebacks of errors")
