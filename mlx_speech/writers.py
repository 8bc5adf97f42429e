"""Results as text in the usual formats. Pure functions: they take results and give a string, and touch no file."""

from __future__ import annotations

import json
from collections.abc import Iterable

from mlx_speech.transcript import Region


def regions_to_text(regions: Iterable[Region]) -> str:
    """One line a region: its start and its end in seconds, to the millisecond, with a tab between them."""
    return "".join(f"{region.start:.3f}\t{region.end:.3f}\n" for region in regions)


def regions_to_json(regions: Iterable[Region]) -> str:
    """A JSON list of `{"start": seconds, "end": seconds}`, to the millisecond, one region a line."""
    lines = [json.dumps({"start": round(region.start, 3), "end": round(region.end, 3)}) for region in regions]
    return "[\n  " + ",\n  ".join(lines) + "\n]\n" if lines else "[]\n"


def regions_to_rttm(regions: Iterable[Region], uri: str) -> str:
    """RTTM, one SPEAKER line a region with the speaker "speech"; times in seconds, to the millisecond.

    uri : names the recording. RTTM separates its fields by white space, so white space in it becomes "_".

    The format: NIST, "2009 Rich Transcription evaluation plan", appendix A.
    """
    field = "_".join(uri.split()) or "_"
    return "".join(
        f"SPEAKER {field} 1 {region.start:.3f} {region.duration:.3f} <NA> <NA> speech <NA> <NA>\n" for region in regions
    )
