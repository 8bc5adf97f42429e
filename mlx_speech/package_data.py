"""What comes with the package: a converted model, small originals, recordings, tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"
SPEAKERS = "pyannet_campplus"  # the diarization that needs no account
BUNDLED = {name: ASSETS / name for name in ("silero_vad", SPEAKERS)}  # converted models
DEMO = ASSETS / "demo"  # small originals, and recordings


def table(name: str) -> dict[str, Any]:
    """A table by its name, that of a file in assets/tables: "abbreviations", "align", "credits" …"""
    return json.loads((ASSETS / "tables" / f"{name}.json").read_text(encoding="utf-8"))
