"""The command line: one file a command. Every flag is a keyword of a function; an error is one line and exit code 2.

The library's messages name keywords (`batch_size`); here, and nowhere else, they become flags (`screen.in_flags`).
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from typing import Any

from mlx_speech import blas
from mlx_speech.cli import align, compare, convert, demo, diarize, eval, live, serve, speakers, transcribe, vad, write
from mlx_speech.cli.parser import Parser, normal
from mlx_speech.cli.screen import flags_of, in_flags
from mlx_speech.cli.setup import INTERRUPTED, discard_unwritable, same_device, settings
from mlx_speech.errors import MLXSpeechError, Notice
from mlx_speech.version import __version__

COMMANDS = (transcribe, live, align, diarize, speakers, vad, write, eval, compare, serve, convert, demo)
DESCRIPTION = "Who said what, when. Speech models on MLX, equal to their originals."
BROKEN_PIPE = 141  # exit code, as shells have it: 128 and the number of the signal


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; imports nothing heavy."""
    parser = Parser(prog="mlx_speech", description=DESCRIPTION)
    parser.add_argument("-V", "--version", action="version", version=f"mlx_speech {__version__}")
    group = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(group)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    arguments : without the program's name; by default the process's own. Only then is the process told to keep the
        memory that it frees (`blas.keep_memory`), which holds to its end. Everything else that is set for the run
        (warnings, signals, environment, device) is as before afterwards. It runs in any thread.
    """
    if arguments is None:
        blas.keep_memory()
        arguments = sys.argv[1:]
    options = vars(build_parser().parse_args(normal(arguments)))
    run = options.pop("run")
    flags = flags_of(options.pop("parser"), options.pop("renamed"))

    def say(message: str) -> None:
        print(f"mlx_speech: {in_flags(message, flags)}", file=sys.stderr)

    def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if category is UserWarning:
            say(f"warning: {message}")
        elif category is Notice:
            say(str(message))

    with settings():
        warnings.showwarning = show_warning
        warnings.simplefilter("always", UserWarning)  # the second recording with a fault hears of it too
        try:
            blas.check_backend()
            with same_device():
                code = run(**options, say=say)
            sys.stdout.flush()  # here, where it is known what to do if that fails
            return code
        except MLXSpeechError as error:
            if options.get("verbose", False):
                traceback.print_exc()
            say(" ".join(str(error).split()))
            return error.exit_code
        except KeyboardInterrupt:
            say("interrupted; what is written is whole, and of the rest nothing is left behind")
            return INTERRUPTED
        except BrokenPipeError:  # the reader of our output has gone
            discard_unwritable()
            return BROKEN_PIPE
        except OSError as error:  # what is left, without a name: the disk behind standard output
            if error.filename is None:
                say(f"cannot write to standard output ({error.strerror}): make room there")
                discard_unwritable()
            else:
                say(f"{os.fspath(error.filename)}: {error.strerror}: is it there, and may you use it?")
            return 2
