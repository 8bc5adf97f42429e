"""The page in a real browser, beside a server that has jobs and no models: what a person can do with it.

Every test ends with the same check: no breach of the content security policy, nothing raised, no request elsewhere.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from browser import watched_page
from page_desk import expect, meeting, opened, texts, tone, word
from page_server import Fake
from starlette.testclient import TestClient

from mlx_speech.languages import LANGUAGES
from mlx_speech.server import page as page_routes
from mlx_speech.transcript import Transcript, Turn
from mlx_speech.writers import read_json, to_json, to_rttm, to_txt

MODULES = sorted(path.name for path in page_routes.PAGE.glob("*.js"))


def saved(page: Any, server: Fake) -> Transcript:
    """The transcript after it is saved, as the server reads it."""
    before = len(server.puts)
    page.keyboard.press("Control+s")
    expect(page.locator("#said")).to_have_text("Saved")
    assert len(server.puts) == before + 1
    return read_json(json.dumps(server.puts[-1]))


# --- what the server gives out ---------------------------------------------------------------------------------------


def test_files_of_the_page_and_no_others() -> None:
    from starlette.applications import Starlette

    client = TestClient(Starlette(routes=page_routes.routes()))
    index = client.get("/")
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    policy = index.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    named = re.findall(r'(?:href|src)="(/page/[^"]+)"', index.text)
    assert named == ["/page/page.css", "/page/main.js"]
    for path in (*named, *(f"/page/{name}" for name in MODULES)):
        answer = client.get(path)
        assert answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff"
        again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304 and not again.content
    for name in ("none.js", "..%2fpackage_data.py", "%2e%2e/package_data.py", "index.html%00.js"):
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 404, name
    assert client.get("/page/none.js").json()["error"]["code"] == "not_found"


def test_languages_are_whisper_s() -> None:
    text = (page_routes.PAGE / "languages.js").read_text(encoding="utf-8")
    codes = re.search(r"CODES = `([^`]*)`", text)
    assert codes is not None and codes[1].split() == list(LANGUAGES)


def test_a_file_holds_one_idea() -> None:
    for path in page_routes.PAGE.glob("*.js"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 400 and max(map(len, lines)) <= 120, path.name
        assert lines[0].startswith("/**"), path.name
    code = "".join(path.read_text(encoding="utf-8") for path in page_routes.PAGE.glob("*.js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", code)


# --- recordings ------------------------------------------------------------------------------------------------------


def test_a_recording_is_sent_and_followed_until_it_is_done(page: Any, server: Fake, shots: Path) -> None:
    page.goto(server.origin)
    expect(page.locator("#no-jobs")).to_be_visible()
    page.screenshot(path=shots / "empty.png")
    page.select_option("#language", "de")
    page.uncheck("#speakers-wanted")
    page.set_input_files("#files", {"name": "a <b>&.wav", "mimeType": "audio/wav", "buffer": tone(1.0)})
    row = page.locator(".job")
    expect(row.locator("h3")).to_have_text("a <b>&.wav")
    expect(row.locator(".state")).to_have_text("Waiting")
    (upload,) = server.uploads
    assert upload["language"] == "de" and upload["diarize"] == "false" and upload["head"] == b"RIFF"
    (job,) = server.jobs.values()
    job.body.update(status="running", stage="transcribe", progress=0.25)
    expect(row.locator(".state")).to_have_text("Writing down · 25 %")
    job.events.append(("segment", {"start": 0, "end": 1, "text": "Guten Morgen"}))
    expect(row.locator(".heard")).to_have_text("Guten Morgen")
    job.events.append(("progress", {"stage": "align", "progress": 0.9}))
    job.body.update(stage="align", progress=0.9)
    expect(row.locator(".state")).to_have_text("Timing words · 90 %")
    job.body.update(status="succeeded", audio_seconds=61.0)
    job.document = to_json(meeting())
    job.events.append(("done", {}))
    expect(row.locator(".state")).to_contain_text("1:01")
    row.get_by_role("link").click()
    expect(page.locator(".segment")).to_have_count(5)


def test_files_are_dropped(page: Any, server: Fake) -> None:
    page.goto(server.origin)
    data = page.evaluate_handle(
        """() => {
          const data = new DataTransfer();
          data.items.add(new File(["one"], "one.mp3"));
          data.items.add(new File(["two"], "two.mp3"));
          return data;
        }"""
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": data})
    expect(page.locator(".job .state")).to_have_text(["Waiting", "Waiting"])
    assert [upload["filename"] for upload in server.uploads] == ["one.mp3", "two.mp3"]


def test_the_microphone_is_recorded_also_where_no_words_come(browser: Any, server: Fake) -> None:
    with watched_page(browser, server.origin, expected=["503"]) as page:
        page.goto(server.origin)
        page.click("#record")
        expect(page.locator("#record")).to_have_text("Stop and send")
        expect(page.locator("#live-note")).to_have_text(
            "No words appear: 8 live sessions are open, and no more may be: try again later"
        )
        expect(page.locator("#live-time")).to_have_text("0:01")
        page.locator("#record").press("Enter")
        expect(page.locator(".job .state")).to_have_text("Waiting")
        expect(page.locator("#live")).to_be_hidden()
        (upload,) = server.uploads
        assert upload["filename"].startswith("Recording 2") and upload["head"] == b"\x1aE\xdf\xa3"  # webm
        expect(page.locator("#record")).to_have_text("Record")


HELD_STREAM = """() => {
  const { mediaDevices } = navigator;
  const open = mediaDevices.getUserMedia.bind(mediaDevices);
  mediaDevices.getUserMedia = async (asked) => (window.held = await open(asked));
}"""


def test_a_microphone_that_goes_away_ends_the_recording(browser: Any, server: Fake) -> None:
    with watched_page(browser, server.origin, expected=["503"]) as page:
        page.goto(server.origin)
        page.evaluate(HELD_STREAM)
        page.click("#record")
        expect(page.locator("#live-time")).to_have_text("0:01")
        page.evaluate("() => window.held.getTracks().forEach((track) => track.stop())")
        expect(page.locator(".job .state")).to_have_text("Waiting")
        expect(page.locator("#record")).to_have_text("Record")
        expect(page.locator("#record")).to_be_enabled()
        (upload,) = server.uploads
        assert upload["size"] > 1000


def test_a_recording_that_is_not_sent_can_be_saved_and_sent_again(browser: Any, server: Fake, shots: Path) -> None:
    with watched_page(browser, server.origin, expected=["503", "ERR_FAILED"]) as page:
        page.goto(server.origin)
        page.route(
            "**/v1/audio/jobs", lambda route: route.abort() if route.request.method == "POST" else route.continue_()
        )
        page.click("#record")
        expect(page.locator("#live-time")).to_have_text("0:01")
        page.click("#record")
        expect(page.locator(".job .state")).to_contain_text("Not sent")
        page.screenshot(path=shots / "not_sent.png")
        with page.expect_download() as saved_file:
            page.get_by_role("button", name=re.compile("Save the sound")).click()
        assert Path(saved_file.value.path()).read_bytes().startswith(b"\x1aE\xdf\xa3")  # webm
        warned: list[str] = []
        page.once("dialog", lambda dialog: (warned.append(dialog.type), dialog.dismiss()))
        page.evaluate("() => location.reload()")
        page.wait_for_timeout(200)
        assert warned == ["beforeunload"]  # it is nowhere else
        page.unroute("**/v1/audio/jobs")
        page.get_by_role("button", name=re.compile("^Send Recording .* again$")).click()
        expect(page.locator(".job .state")).to_have_text("Waiting")
        assert len(server.uploads) == 1


def test_without_a_microphone_nothing_is_recorded(page: Any, server: Fake) -> None:
    page.goto(server.origin)
    page.evaluate(
        """() => {
          navigator.mediaDevices.getUserMedia = async () => { throw new Error("Permission denied"); };
        }"""
    )
    page.click("#record")
    expect(page.locator("#jobs-error")).to_have_text("There is no microphone to hear: Permission denied")
    expect(page.locator("#record")).to_have_text("Record")
    expect(page.locator("#live")).to_be_hidden()


def test_errors_are_shown(browser: Any, server: Fake, shots: Path) -> None:
    server.add("notes.txt", status="failed", error={"message": "notes.txt: is no recording", "code": "invalid_audio"})
    with watched_page(browser, server.origin, expected=["404"]) as page:
        page.goto(server.origin)
        expect(page.locator(".job .state")).to_have_text("Failed: notes.txt: is no recording")
        page.screenshot(path=shots / "failed.png")
        page.goto(f"{server.origin}/#/job_{'b' * 26}")
        expect(page.locator("#opening")).to_have_text("there is no such job")
        page.click(".brand")
        page.get_by_role("button", name="Delete notes.txt").click()
        page.click("#question-yes")
        expect(page.locator(".job")).to_have_count(0)
        assert not server.jobs


def test_a_key_is_asked_for_once(browser: Any, server: Fake) -> None:
    server.key = "secret"
    with watched_page(browser, server.origin, expected=["401"]) as page:
        page.goto(server.origin)
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-wrong")).to_be_visible()
        page.fill("#key", "secret")
        page.keyboard.press("Enter")
        expect(page.locator("#key-dialog")).to_be_hidden()
        job = server.add("meeting.wav", document=to_json(meeting()), sound=tone(14.0))
        page.goto(f"{server.origin}/#/{job.body['id']}")
        expect(page.locator(".segment")).to_have_count(5)
        expect(page.locator("#audio")).to_have_attribute("src", re.compile("^blob:"))
        page.reload()
        expect(page.locator(".segment")).to_have_count(5)
        assert page.evaluate("[localStorage.length, sessionStorage.mlx_speech_key]") == [0, "secret"]


# --- a transcript ----------------------------------------------------------------------------------------------------


def test_a_word_is_heard_and_marked_while_it_is_spoken(page: Any, server: Fake) -> None:
    opened(page, server)
    expect(page.locator(".segment")).to_have_count(5)
    word(page, "coffee").click()
    expect(page.locator("#play")).to_have_attribute("aria-label", "Pause")
    assert page.evaluate("document.getElementById('audio').currentTime") >= 3.9
    expect(page.locator(".word.spoken")).not_to_have_text("coffee")  # it goes on by itself
    page.keyboard.press(" ")
    expect(page.locator("#play")).to_have_attribute("aria-label", "Play")
    before = page.evaluate("document.getElementById('audio').currentTime")
    page.keyboard.press("ArrowLeft")
    after = page.evaluate("document.getElementById('audio').currentTime")
    assert abs(before - after - 3.0) < 0.2
    page.get_by_role("button", name="Play from 0:08").click()
    expect(page.locator(".segment").nth(3).locator(".word.spoken")).to_have_count(1)
    page.keyboard.press(" ")
    box = page.locator("#lanes").bounding_box()
    page.mouse.click(box["x"] + box["width"] - 2, box["y"] + 5)
    expect(page.locator("#time")).to_have_text("0:13 / 0:14")
    assert float(page.locator("#lanes").get_attribute("aria-valuenow")) == 13


def test_speakers_are_renamed_and_merged(page: Any, server: Fake) -> None:
    opened(page, server)
    page.get_by_role("button", name=re.compile("^SPEAKER_00, ")).click()
    page.fill("#speaker-name", "  Ada   Lovelace ")
    page.keyboard.press("Enter")
    expect(page.locator("#speakers li").first).to_contain_text("Ada Lovelace")
    expected = meeting().rename({"SPEAKER_00": "Ada Lovelace"})
    assert saved(page, server) == read_json(to_json(expected))
    page.get_by_role("button", name=re.compile("^SPEAKER_01: ")).first.click()
    page.select_option("#speaker-other", "Ada Lovelace")
    page.click("#speaker-dialog .primary")
    expect(page.locator("#speakers li")).to_have_count(1)
    merged = saved(page, server)
    assert merged.speakers == ("Ada Lovelace",)
    assert merged.diarization is not None and len(merged.diarization.turns) == 5
    page.keyboard.press("Control+z")
    expect(page.locator("#speakers li")).to_have_count(2)


def test_words_and_sentences_go_to_another_speaker(page: Any, server: Fake) -> None:
    opened(page, server)
    word(page, "Is").click()
    word(page, "ready?").click(modifiers=["Shift"])
    page.keyboard.press(" ")
    page.keyboard.press("1")
    expect(page.locator(".segment")).to_have_count(6)
    assert texts(page)[1:3] == ["Good morning.", "Is the coffee ready?"]
    result = saved(page, server)
    assert [segment.speaker for segment in result.segments[1:3]] == ["SPEAKER_01", "SPEAKER_00"]
    assert [one.start for one in result.words] == [one.start for one in meeting().words]
    assert result.diarization is not None
    assert Turn(3.0, 4.9, "SPEAKER_00") in result.diarization.turns
    assert Turn(2.0, 3.0, "SPEAKER_01") in result.diarization.turns
    word(page, "fine.").click()
    page.click("#chosen-sentence")
    page.select_option("#owner", label="Somebody new")
    expect(page.locator("#speakers li")).to_have_count(3)
    assert saved(page, server).segments[-1].speaker == "Speaker 3"


def test_text_is_corrected_and_times_stay(page: Any, server: Fake) -> None:
    opened(page, server)
    word(page, "budgett").click()
    page.keyboard.press("e")
    page.keyboard.type("budget")
    page.keyboard.press("Enter")
    assert texts(page)[3] == "We begin with the budget for the year."
    page.get_by_role("button", name="Edit the sentence at 0:05").click()
    page.keyboard.type("It really is still on a table, I think.")
    page.keyboard.press("Enter")
    result = saved(page, server)
    before = {one.text: one for one in meeting().words}
    fixed = result.segments[3].words[4]
    assert fixed == replace(before["budgett"], text="budget", score=1.0)
    words = result.segments[2].words
    assert [one.text for one in words] == "It really is still on a table, I think.".split()
    kept = {one.text: (one.start, one.end) for one in words}
    for text in ("It", "is", "on"):
        original = next(one for one in meeting().segments[2].words if one.text == text)
        assert kept[text] == (original.start, original.end)
    assert all(first.end <= second.start + 1e-9 for first, second in pairwise(words))
    assert not words[1].aligned and words[2].aligned
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert texts(page) == [segment.text for segment in meeting().segments]
    expect(page.locator("#undo")).to_be_disabled()
    page.keyboard.press("Control+Shift+z")
    page.keyboard.press("Control+y")
    assert texts(page)[2] == "It really is still on a table, I think."
    page.locator(".segment .text").nth(4).dblclick()
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    page.keyboard.press("Enter")
    expect(page.locator(".segment")).to_have_count(4)
    page.locator(".segment .text").nth(1).dblclick()
    page.keyboard.type("never mind")
    page.keyboard.press("Escape")
    assert texts(page)[1] == meeting().segments[1].text


def test_all_of_it_by_the_keyboard(page: Any, server: Fake) -> None:
    opened(page, server)
    expect(page.locator(".segment")).to_have_count(5)
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    assert page.locator("#keys-list dt").count() >= 15
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    expect(page.locator(".word.chosen")).to_have_text("coffee")
    expect(page.locator("#said")).to_contain_text("20 % sure")
    page.keyboard.press("n")
    expect(page.locator(".word.chosen")).to_have_text("budgett")
    page.keyboard.press("n")
    expect(page.locator("#said")).to_contain_text("No word")
    page.keyboard.press("Shift+N")
    expect(page.locator(".word.chosen")).to_have_text("coffee")
    page.keyboard.press("Shift+ArrowRight")
    expect(page.locator(".word.chosen")).to_have_text("ready?")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".segment.chosen .text")).to_have_text("It is on the table.")
    page.keyboard.press("2")
    expect(page.locator("#owner")).to_have_value("SPEAKER_01")
    page.keyboard.press("/")
    page.keyboard.type("GOOD MÓRNING")
    expect(page.locator("#search-count")).to_have_text("2")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.locator("#search-count")).to_have_text("2 of 2")
    assert page.locator(".word.chosen").all_text_contents() == ["Good", "morning."]
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.locator("#chosen")).to_be_hidden()
    assert [page.evaluate("document.activeElement.tagName")] == ["BODY"]
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"theme", "help", "search", "next-unsure", "save", "play", "lanes", "time", "speed"} <= reached


def test_everything_that_is_pressed_has_a_name(page: Any, server: Fake) -> None:
    opened(page, server)
    word(page, "coffee").click()
    page.keyboard.press(" ")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, a[href], summary, [role=slider]")]
          .filter((one) => !(one.textContent.trim() || one.ariaLabel || one.labels?.length || one.title))
          .map((one) => one.outerHTML)"""
    )
    assert not nameless
    assert page.locator("html").get_attribute("lang") == "en" and page.locator("main").count() == 1
    assert page.locator("#said").get_attribute("aria-live") == "polite"


def test_exports_are_those_of_the_package(page: Any, server: Fake) -> None:
    opened(page, server)
    word(page, "budgett").click()
    page.keyboard.press("e")
    page.keyboard.type("budget")
    page.keyboard.press("Enter")
    found = {}
    for ending in ("json", "txt", "rttm", "srt", "vtt"):
        page.click("#export summary")
        with page.expect_download() as download:
            page.locator("#exports button", has_text=f"(.{ending})").click()
        assert download.value.suggested_filename == f"meeting.{ending}"
        found[ending] = Path(download.value.path()).read_text(encoding="utf-8")
    result = read_json(found["json"])
    assert found["txt"] == to_txt(result) and "budget for" in found["txt"]
    assert found["rttm"] == to_rttm(result, uri="meeting")
    assert json.loads(to_json(result)) == json.loads(found["json"])
    assert "[SPEAKER_01]: That is fine." in found["srt"]
    assert found["vtt"].startswith("WEBVTT\n\n")


def test_two_windows_do_not_overwrite_each_other(browser: Any, server: Fake) -> None:
    with watched_page(browser, server.origin, expected=["412"]) as page:
        job = opened(page, server)
        word(page, "budgett").click()
        page.keyboard.press("e")
        page.keyboard.type("budget")
        page.keyboard.press("Enter")
        job.revision += 1  # another window has saved
        page.keyboard.press("Control+s")
        expect(page.locator("#question")).to_be_visible()
        page.click("#question-no")
        assert not server.puts
        expect(page.locator("#save")).to_be_enabled()
        page.keyboard.press("Control+s")
        page.click("#question-yes")
        expect(page.locator("#said")).to_have_text("Saved")
        assert len(server.puts) == 1
        expect(page.locator("#save")).to_be_disabled()


def test_changes_that_were_not_saved_come_back(page: Any, server: Fake) -> None:
    opened(page, server)
    word(page, "budgett").click()
    page.keyboard.press("e")
    page.keyboard.type("budget")
    page.keyboard.press("Enter")
    page.wait_for_timeout(1100)  # drafts are kept a moment after the last change
    warned: list[str] = []
    page.once("dialog", lambda dialog: (warned.append(dialog.type), dialog.accept()))
    page.reload()
    assert warned == ["beforeunload"]
    expect(page.locator("#draft")).to_be_visible()
    assert texts(page)[3].endswith("budgett for the year.")
    page.click("#draft-restore")
    assert texts(page)[3].endswith("budget for the year.")
    saved(page, server)
    page.reload()
    expect(page.locator(".segment")).to_have_count(5)
    expect(page.locator("#draft")).to_be_hidden()
    assert texts(page)[3].endswith("budget for the year.")


def test_a_draft_stays_that_was_only_looked_at(page: Any, server: Fake) -> None:
    job = opened(page, server)
    word(page, "budgett").click()
    page.keyboard.press("e")
    page.keyboard.type("budget")
    page.keyboard.press("Enter")
    page.wait_for_timeout(1100)  # drafts are kept a moment after the last change
    page.once("dialog", lambda dialog: dialog.accept())
    page.reload()
    expect(page.locator("#draft")).to_be_visible()
    page.click(".brand")
    expect(page.locator(".job")).to_have_count(1)
    page.goto(f"{server.origin}/#/{job.body['id']}")
    expect(page.locator("#draft")).to_be_visible()
    page.click("#draft-restore")
    assert texts(page)[3].endswith("budget for the year.")


def test_what_is_changed_while_it_is_saved_is_kept(page: Any, server: Fake) -> None:
    opened(page, server)
    waiting: list[Any] = []
    page.route(
        "**/result*", lambda route: waiting.append(route) if route.request.method == "PUT" else route.continue_()
    )
    for place, text in (("budgett", "budget"), ("table.", "chair.")):
        word(page, place).click()
        page.keyboard.press("e")
        page.keyboard.type(text)
        page.keyboard.press("Enter")
        if not waiting:
            page.click("#save")
            page.wait_for_timeout(200)
    waiting[0].continue_()
    expect(page.locator("#said")).to_have_text("Saved")
    expect(page.locator("#save")).to_be_enabled()
    assert server.puts[0]["segments"][3]["text"].endswith("budget for the year.")
    page.wait_for_timeout(200)
    page.once("dialog", lambda dialog: dialog.accept())
    page.reload()
    expect(page.locator("#draft")).to_be_visible()
    page.click("#draft-restore")
    assert texts(page)[2].endswith("on the chair.")
