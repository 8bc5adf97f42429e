"""The command line: arguments only. Every flag is a keyword of a function; an error is one line and exit code 2."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from mlx_speech.blas import check_backend, hint
from mlx_speech.errors import MLXSpeechError, SourceError
from mlx_speech.version import __version__


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = build_parser()
    options = vars(parser.parse_args(arguments))
    run, verbose = options.pop("run"), options.pop("verbose")
    signal.signal(signal.SIGTERM, _interrupt)  # so that a half-written folder is cleared away
    warnings.showwarning = _show_warning
    try:
        check_backend()
        return run(**options)
    except MLXSpeechError as error:
        if verbose:
            traceback.print_exc()
        print(f"mlx_speech: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("mlx_speech: interrupted; nothing is left behind", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        return 141


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if category is UserWarning:
        print(f"mlx_speech: warning: {message}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """All commands and flags; imports nothing heavy."""
    parser = argparse.ArgumentParser(prog="mlx_speech", description="Speech models on MLX, equal to their originals.")
    parser.add_argument("-V", "--version", action="version", version=f"mlx_speech {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_convert(commands)
    _add_vad(commands)
    return parser


def _add_convert(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="original weights into a folder of MLX safetensors",
        description="Convert Whisper, wav2vec2 (CTC), Silero VAD, pyannote's segmentation, speaker embedding and PLDA, "
        "or a whole pyannote pipeline, to MLX. Nothing of the originals' frameworks is needed.",
    )
    add = parser.add_argument
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
    parser.set_defaults(run=_convert)


def _convert(**options: Any) -> int:
    from mlx_speech.convert import convert

    if options["verify"]:  # the only part of a conversion that computes much
        _hint()
    report = convert(**options, progress=sys.stderr.isatty())
    for line in report.lines:
        print(line)
    for part, table in report.tables.items():
        print(f"{part}\n{table}" if part else table)
    print(report)
    return 0


def _hint() -> None:
    found = hint()
    if found:
        print(f"mlx_speech: {found}", file=sys.stderr)


def _add_vad(commands: Any) -> None:
    parser = commands.add_parser(
        "vad",
        help="when somebody speaks in a recording",
        description="Print the regions of speech in recordings, by Silero VAD; options and results as in its package.",
    )
    add = parser.add_argument
    add("audio", nargs="+", help="any audio or video file; - is standard input")
    add("--model", help="converted Silero VAD, or its original (default: the one that comes with the package)")
    add("--format", default="text", choices=["text", "json", "rttm"], help="default: text")
    add("--sampling-rate", type=int, default=16000, choices=[8000, 16000], help="that the model works at")
    add("--threshold", type=float, default=0.5, help="speech from this probability on (default 0.5)")
    add("--neg-threshold", type=float, help="silence below this one (default: threshold - 0.15, at least 0.01)")
    add("--min-speech-duration-ms", type=float, default=250, help="shorter speech is dropped (default 250)")
    add("--max-speech-duration-s", type=float, default=float("inf"), help="longer speech is cut (default: never)")
    add("--min-silence-duration-ms", type=float, default=100, help="silence that ends speech (default 100)")
    add("--speech-pad-ms", type=float, default=30, help="added on both sides (default 30)")
    add("--min-silence-at-max-speech", type=float, default=98, help="silence in ms that long speech may be cut at")
    add(
        "--legacy-cut",
        dest="use_max_poss_sil_at_max_speech",
        action="store_false",
        help="cut long speech at the last silence, not at the longest (use_max_poss_sil_at_max_speech=False)",
    )
    add("--time-resolution", type=int, default=3, help="decimals of the times, in seconds (default 3; upstream's is 1)")
    add("--max-duration", type=float, metavar="SECONDS", default=86400.0, help="longest recording read (default 24 h)")
    add("-v", "--verbose", action="store_true", help="tracebacks of errors")
    parser.set_defaults(run=_vad)


def _vad(
    audio: list[str], model: str | None, format: str, max_duration: float, time_resolution: int, **options: Any
) -> int:
    from mlx_speech import writers
    from mlx_speech.audio import load_audio
    from mlx_speech.checkpoint import load
    from mlx_speech.models import silero_vad
    from mlx_speech.stages.vad import detect_speech

    network: Any = load(model or "silero_vad")
    if not isinstance(network, silero_vad.Model):
        raise SourceError(f"{model}: not a Silero VAD: leave --model out, or name one")
    rate = options.pop("sampling_rate")
    found = {}
    for source in audio:
        samples = load_audio(source, sample_rate=rate, max_duration=max_duration)
        regions = detect_speech(samples, network, sample_rate=rate, time_resolution=time_resolution, **options)
        found[source] = regions
        if format == "rttm":
            print(writers.regions_to_rttm(regions, Path(source).stem if source != "-" else "stdin"), end="")
        elif format == "text":
            print(f"# {source}\n" if len(audio) > 1 else "", end="")
            print(writers.regions_to_text(regions, time_resolution), end="", flush=True)
    if format == "json":  # of several files one object, by file
        lists = {source: writers.regions_to_json(regions, time_resolution) for source, regions in found.items()}
        entries = [f"{json.dumps(source, ensure_ascii=False)}: {text.strip()}" for source, text in lists.items()]
        print("{\n" + ",\n".join(entries) + "\n}" if len(audio) > 1 else lists[audio[0]].strip())
    return 0
