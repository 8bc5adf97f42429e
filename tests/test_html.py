"""A transcript as one page: what is in it, that nothing in it can do harm, and that it works when it is opened."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import av
import numpy as np
import pytest
from browser import watched_page
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech import cli, load_audio
from mlx_speech.cli import sound
from mlx_speech.errors import OptionError
from mlx_speech.package_data import DEMO
from mlx_speech.transcript import Diarization, Segment, Transcript, Turn, Word
from mlx_speech.writers import html, read_json, to_html, to_json

PAUSES = DEMO / "pauses.flac"
WORDS = (Word(0.5, 0.9, "Good", 0.9, "A"), Word(1.0, 1.75, "morning.", 0.3, "A"))
TALK = Transcript(
    (Segment(0.5, 1.75, "Good morning.", WORDS, "A"), Segment(3.0, 3.5, "Yes.", (), "B")),
    language="en",
    duration=4.0,
    diarization=Diarization((Turn(0.5, 1.75, "A"), Turn(3.0, 3.5, "B"))),
)
HOSTILE = ["</script><script>window.owned = 1</script>", "<!--<script>", "\u2028\u2029", "\0", "&lt;", "]]>", "\ud800"]


def data_in(text: str) -> dict[str, Any]:
    """What the page is given, read as a browser does: up to the first thing that ends the element."""
    content = re.search(r'<script type="application/json" id="data">(.*?)</script', text, re.DOTALL)
    assert content is not None
    return json.loads(content[1])


@pytest.fixture
def transcript_file(tmp_path: Path) -> Path:
    path = tmp_path / "a talk #1.json"
    path.write_text(to_json(TALK), encoding="utf-8")
    return path


# --- what is in it ---------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(HOSTILE) | st.text(max_size=20), min_size=1, max_size=5).map("".join))
def test_whatever_was_said_is_data(text: str) -> None:
    transcript = Transcript((Segment(0, 1, text, (Word(0, 1, text),), text),), "en", duration=1.0)
    page = to_html(transcript, uri=text, audio=text)
    plain = to_html(Transcript(), uri="x")
    assert page.count("<") == plain.count("<") and page.count(">") == plain.count(">")
    found = data_in(page)
    readable = text.encode("utf-8", "replace").decode()
    segment = found["transcript"]["segments"][0]
    assert (found["name"], found["audio"]) == (readable or "Transcript", readable)
    assert (segment["text"], segment["speaker"], segment["words"][0]["word"]) == (readable,) * 3
    page.encode()


def test_it_holds_what_the_json_holds() -> None:
    found = data_in(to_html(TALK, uri="talk", audio="talk.wav", peaks=[0.0, 0.12345, 1.0]))
    assert found["transcript"] == json.loads(to_json(TALK))
    assert found["peaks"] == [0.0, 0.123, 1.0] and found["audio"] == "talk.wav"
    voices = Transcript(diarization=Diarization(embeddings={"A": (0.5, 1.0)}))
    assert "speaker_embeddings" not in data_in(to_html(voices))["transcript"]
    assert data_in(to_html(voices, speaker_embeddings=True))["transcript"]["speaker_embeddings"] == {"A": [0.5, 1.0]}
    with pytest.raises(OptionError):
        to_html(TALK, max_cue_duration=0)


def test_it_needs_nothing_else() -> None:
    """The policy names the script and the style by their hashes, and no address is asked for."""
    text = to_html(TALK)
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        (content,) = re.findall(rf'<{tag}(?: type="module")?>(.*?)</{tag}>', text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert "unsafe" not in policy and policy.startswith("default-src 'none'")
    assert not re.search(r'(?:src|href)="(?!#|data:)[^"]', text)


def test_modules_keep_what_makes_one_script_of_them() -> None:
    """Imports stand at the start of a line and name files beside it; names at the top level are all different."""
    names: list[str] = []
    for path in sorted(html.PAGE.glob("*.js")):
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"\bimport\b[^(]*?from", text) == re.findall(r"^import \{[^}]*\} from", text, re.MULTILINE)
        assert " as " not in "".join(re.findall(r"^import .*", text, re.MULTILINE)), path.name
        assert "export default" not in text and "import(" not in re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        assert "</script" not in text and "<!--" not in text
        if path.name == "worklet.js":  # a script of its own, for the microphone, which only a server's page has
            continue
        declared = re.findall(r"^(?:export )?(?:async )?(?:function\*?|class|const|let) \*?(\w+)", text, re.MULTILINE)
        names += declared
    assert len(names) > 100 and sorted(names) == sorted(set(names))
    script = html._script()
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)
    for name in names:
        assert re.search(rf"(function\*?|class|const|let) {name}\b", script), name


def test_peaks() -> None:
    samples = np.concatenate([np.zeros(4000), np.full(4000, -0.25), np.full(8000, 0.5)]).astype(np.float32)
    peaks = np.array(sound.peaks_of(samples))
    assert peaks.size == sound.PEAKS and set(peaks) == {0.0, 0.5, 1.0}
    assert (np.diff(peaks) >= 0).all() and abs((peaks == 1.0).mean() - 0.5) < 0.01
    assert sound.peaks_of(np.zeros(0, np.float32)) == [] and set(sound.peaks_of(np.zeros(10, np.float32))) == {0.0}


def test_sound_inside_is_small_and_sounds_the_same(tmp_path: Path) -> None:
    samples = load_audio(PAUSES, sample_rate=sound.EMBEDDED_RATE)
    url = sound.data_url(samples)
    kind, _, content = url.partition(";base64,")
    assert kind == "data:audio/mpeg"
    path = tmp_path / "sound.mp3"
    path.write_bytes(base64.b64decode(content))
    assert path.stat().st_size < 1.1 * samples.size / sound.EMBEDDED_RATE * sound.EMBEDDED_BITS / 8 + 2000
    again = load_audio(path, sample_rate=sound.EMBEDDED_RATE)
    length = min(samples.size, again.size)
    assert abs(samples.size - again.size) < 0.1 * sound.EMBEDDED_RATE
    assert np.corrcoef(samples[:length], again[:length])[0, 1] > 0.95  # in step, within a fraction of a wave


def test_sound_without_an_encoder_of_mp3(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, mode: str) -> None:
        raise av.codec.codec.UnknownCodecError(name)

    monkeypatch.setattr(av, "Codec", missing)
    assert sound.data_url(np.zeros(100, np.float32)).startswith("data:audio/wav;base64,UklGR")


# --- the command line ------------------------------------------------------------------------------------------------


def test_write_puts_the_place_of_the_recording(transcript_file: Path, tmp_path: Path) -> None:
    recording = tmp_path / "söund 100%?.flac"
    shutil.copy(PAUSES, recording)
    out = tmp_path / "out"
    assert cli.main(["write", str(transcript_file), "-f", "html", "-o", str(out), "--audio", str(recording)]) == 0
    found = data_in((out / "a talk #1.html").read_text(encoding="utf-8"))
    assert unquote(found["audio"]) == f"../{recording.name}" and "?" not in found["audio"] and "%25" in found["audio"]
    assert len(found["peaks"]) == sound.PEAKS and found["name"] == "a talk #1"


@pytest.mark.parametrize(
    "flags, said",
    [
        (["-f", "html", "--embed-audio"], "--embed-audio needs --audio"),
        (["-f", "srt", "--audio", "x.wav"], "--audio needs --output-format html"),
        (["-f", "srt", "--embed-audio"], "--embed-audio needs --output-format html"),
        (["other.json", "-f", "html", "--audio", "x.wav"], "--audio is of one transcript, and there are 2"),
        (["-f", "html", "--audio", "none.wav"], "none.wav: there is no such file"),
    ],
)
def test_sound_without_a_page(flags: list[str], said: str, transcript_file: Path, capsys: Any) -> None:
    assert cli.main(["write", str(transcript_file), *flags, "-o", str(transcript_file.parent / "out")]) != 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_all_formats_leave_the_page_out(transcript_file: Path, tmp_path: Path) -> None:
    assert cli.main(["write", str(transcript_file), "-f", "all", "-o", str(tmp_path / "out")]) == 0
    assert not list((tmp_path / "out").glob("*.html"))


def test_a_transcription_as_a_page(tmp_path: Path) -> None:
    models = ["--model", DEMO / "whisper", "--align-model", DEMO / "wav2vec2", "--language", "en"]
    flags = ["-f", "html,json", "-o", tmp_path, "--embed-audio", "--quiet"]
    assert cli.main(["transcribe", *map(str, [PAUSES, *models, *flags])]) == 0
    found = data_in((tmp_path / "pauses.html").read_text(encoding="utf-8"))
    assert found["transcript"] == json.loads((tmp_path / "pauses.json").read_text(encoding="utf-8"))
    assert found["audio"].startswith("data:audio/") and found["transcript"]["segments"]


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embed", [False, True], ids=["beside", "inside"])
def test_it_works_as_a_file(browser: Any, transcript_file: Path, tmp_path: Path, embed: bool) -> None:
    expect = pytest.importorskip("playwright.sync_api").expect
    recording = tmp_path / "sound.flac"
    shutil.copy(PAUSES, recording)
    flags = ["--audio", str(recording), *(["--embed-audio"] if embed else [])]
    assert cli.main(["write", str(transcript_file), "-f", "html", "-o", str(tmp_path), *flags]) == 0
    if embed:
        recording.unlink()
    path = tmp_path / "a talk #1.html"
    with watched_page(browser, "file:") as page:
        page.goto(path.as_uri())
        expect(page).to_have_title("a talk #1")
        expect(page.locator(".segment .text")).to_have_text(["Good morning.", "Yes."])
        expect(page.locator("#speakers li")).to_have_count(2)
        page.locator(".word", has_text="morning").click()
        expect(page.locator("#play")).to_have_attribute("aria-label", "Pause")
        for _ in range(100):  # until it is heard, at most ten seconds
            if page.evaluate("document.getElementById('audio').currentTime") > 1.0:
                break
            page.wait_for_timeout(100)
        assert page.evaluate("document.getElementById('audio').currentTime") > 1.0
        page.keyboard.press(" ")
        page.keyboard.press("e")
        page.keyboard.type("evening.")
        page.keyboard.press("Enter")
        with page.expect_download() as download:
            page.keyboard.press("Control+s")
        result = read_json(Path(download.value.path()).read_text(encoding="utf-8"))
        assert result.segments[0].text == "Good evening."
        assert [(word.start, word.end) for word in result.words] == [(word.start, word.end) for word in WORDS]
        expect(page.locator("#said")).to_have_text("Saved")
        expect(page.locator("#save")).to_be_disabled()
        page.reload()  # the file itself is as it was
        expect(page.locator(".segment .text")).to_have_text(["Good morning.", "Yes."])
        page.click("#draft-restore")
        expect(page.locator(".segment .text")).to_have_text(["Good evening.", "Yes."])


def test_a_page_without_sound_takes_one(browser: Any, tmp_path: Path) -> None:
    expect = pytest.importorskip("playwright.sync_api").expect
    path = tmp_path / "talk.html"
    path.write_text(to_html(TALK, uri="talk", audio="gone.wav"), encoding="utf-8")
    with watched_page(browser, "file:", expected=["ERR_FILE_NOT_FOUND"]) as page:
        page.goto(path.as_uri())
        expect(page.locator("#no-sound")).to_be_visible()
        expect(page.locator("#play")).to_be_disabled()
        page.set_input_files("#sound-file", str(PAUSES))
        expect(page.locator("#no-sound")).to_be_hidden()
        page.click("#play")
        expect(page.locator("#play")).to_have_attribute("aria-label", "Pause")


def test_a_recording_that_cannot_be_read_again_leaves_the_page_without_sound(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the page has no sound"):
        assert sound.keywords_if_readable(str(tmp_path / "gone.wav"), tmp_path) == {}
