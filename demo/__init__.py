"""Makes the small models that the package's demo runs on, from synthesized speech: `python -m demo` (see README.md).

Not part of the installed package. What is generated on the way lies under `WORK`; what ships, under `ASSETS`.
"""

import os
from pathlib import Path

RATE = 16_000  # samples per second, of everything
ROOT = Path(__file__).parents[1]
WORK = Path(os.environ.get("MLX_SPEECH_DEMO", ROOT / ".demo"))
ASSETS = ROOT / "mlx_speech" / "assets" / "demo"
