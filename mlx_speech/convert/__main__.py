"""`python -m mlx_speech.convert`: the same as `mlx_speech convert`."""

from __future__ import annotations

import sys

from mlx_speech.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
