"""`python -m mlx_speech`."""

from __future__ import annotations

import sys

from mlx_speech.cli import main

if __name__ == "__main__":
    sys.exit(main())
