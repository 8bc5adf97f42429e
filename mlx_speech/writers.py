"""Results as text in the usual formats. Pure functions: they take results and give a string, and touch no file."""

from __future__ import annotations

import json
from collections.abc import Iterable

from mlx_speech.transcript import Region


def regions_to_text(regions: Iterable[Region], decimals: int = 3) -> str:
    """One line a region: its start and its end in seconds, with a tab between them."""
    return "".join(f"{region.start:.{decimals}f}\t{region.end:.{decimals}f}\n" for region in regions)


def regions_to_json(regions: Iterable[Region], decimals: int = 3) -> str:
    """A JSON list of `{"start": seconds, "end": seconds}`, one region a line."""
    rounded = [{"start": round(region.start, decimals), "end": round(region.end, decimals)} for region in regions]
    lines = [json.dumps(region) for region in rounded]
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
