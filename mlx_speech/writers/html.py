"""A transcript as a page of its own: to be read, heard and corrected in a browser, without a server.

It is the page of `mlx_speech serve` (`assets/page`) with everything in one file: style, script and transcript. Its
content security policy admits this script and style by their hashes, and no request to anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from mlx_speech.package_data import ASSETS
from mlx_speech.transcript import Transcript
from mlx_speech.writers.cues import Layout, LayoutKeywords
from mlx_speech.writers.whisperx_json import as_dict

if TYPE_CHECKING:
    from typing_extensions import Unpack

PAGE = ASSETS / "page"
STYLE_TAG = '<link rel="stylesheet" href="/page/page.css">'
SCRIPT_TAG = '<script type="module" src="/page/main.js"></script>'
# modules become one script: these lines are at the start of each, and names at their top level are all different
_IMPORT = re.compile(r'^import (\{[^}]*\} from )?"\./(?P<file>[a-z]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(async )?(function|class)|const|let)", re.MULTILINE)
# what could end the element that the JSON stands in, or begin another within it
_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def to_html(
    transcript: Transcript,
    *,
    uri: str = "",
    audio: str | None = None,
    peaks: Sequence[float] = (),
    **layout: Unpack[LayoutKeywords],
) -> str:
    """An HTML document that holds the transcript and all that shows it.

    uri : names the recording
    audio : the recording's address, relative to the document, or itself as a data URL; None: the reader may open it
    peaks : of its waveform, evenly spread over its duration, 0..1
    layout : fields of `cues.Layout`, of which `speaker_embeddings` is heeded. Raises `OptionError` for a wrong one
    """
    content = {
        "name": uri or "Transcript",
        "transcript": as_dict(transcript, speaker_embeddings=Layout(**layout).speaker_embeddings),
        "audio": audio,
        "peaks": [round(peak, 3) for peak in peaks],
    }
    # undecodable bytes of a file's name become "?"
    text = json.dumps(content, ensure_ascii=False).encode("utf-8", "replace").decode().translate(_ESCAPES)
    before, after = _document()
    return f'{before}<script type="application/json" id="data">{text}</script>{after}'


@cache
def _document() -> tuple[str, str]:
    """The document before and after the place of the transcript."""
    style = _read("page.css")
    script = _script()
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "media-src 'self' file: data: blob:; img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n    <style>{style}</style>'
    document = _read("index.html").replace(SCRIPT_TAG, "").replace(STYLE_TAG, head)
    before, closing, after = document.rpartition("</body>")
    return before, f'\n    <script type="module">{script}</script>\n  {closing}{after}'


def _script() -> str:
    """All modules as one, each behind those that it imports."""
    parts: dict[str, str] = {}

    def add(name: str) -> None:
        if name in parts:
            return
        text = _read(name)
        for statement in _IMPORT.finditer(text):
            add(statement["file"])
        parts[name] = _EXPORT.sub("", _IMPORT.sub("", text))

    add("main.js")
    return "\n".join(parts.values())


def _read(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """The source expression of an inline script or style: CSP level 3, `hash-source`."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
