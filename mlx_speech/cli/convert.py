"""`mlx_speech convert`: original weights → a folder of MLX safetensors. Flags are keywords of `convert.convert`."""

from __future__ import annotations

import sys
from typing import Any

from mlx_speech.cli.parser import add_command
from mlx_speech.cli.screen import Say, say_hint

DESCRIPTION = (
    "Convert Whisper, wav2vec2 (CTC), Silero VAD, pyannote's segmentation, speaker embedding and PLDA, "
    "or a whole pyannote pipeline, to MLX. Nothing of the originals' frameworks is needed."
)


def add_parser(group: Any) -> None:
    """The command and its flags."""
    parser = add_command(group, run, "convert", "original weights into a folder of MLX safetensors", DESCRIPTION)
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


def run(verbose: bool, say: Say, **options: Any) -> int:
    """Convert a model and print what was done."""
    from mlx_speech.convert import convert

    if options["verify"]:  # the only part of a conversion that computes much
        say_hint(say)
    report = convert(**options, progress=sys.stderr.isatty())
    for line in report.lines:
        print(line)
    for part, table in report.tables.items():
        print(f"{part}\n{table}" if part else table)
    print(report)
    return 0
