"""The page's microphone: words while they are spoken, then a job whose transcript takes their place.

A browser whose microphone plays the demo's conversation, and a server with the demo's models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from browser import chromium, watched_page
from page_desk import expect
from serving import demo_pipeline, running

from mlx_speech import load_audio, package_data
from mlx_speech.server.app import create_app
from mlx_speech.server.settings import Settings

SECONDS = 11  # of the conversation, and as many of silence behind it
RATE = 48_000
KEY = "secret"
FIRST = re.compile("about october", re.IGNORECASE)  # words of the conversation
PATIENCE = 30_000  # milliseconds


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with demo_pipeline(folder / "cache") as pipeline:
        app = create_app(pipeline, Settings(data_dir=folder / "data", keys=(KEY,), max_live=2))
        with running(app) as address:
            yield address


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The browser."""
    samples = load_audio(package_data.DEMO / "conversation.flac", sample_rate=RATE)[: SECONDS * RATE]
    path = tmp_path_factory.mktemp("sound") / "speech.wav"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=RATE, layout="mono")
        data = (np.pad(samples, (0, SECONDS * RATE)) * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(data, format="s16", layout="mono")
        frame.sample_rate = RATE
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with chromium(f"--use-file-for-fake-audio-capture={path}%noloop") as found:
        yield found


def entered(page: Any, origin: str) -> None:
    """The page, with its key."""
    page.goto(origin)
    page.fill("#key", KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#key-dialog")).to_be_hidden()


def test_words_appear_before_stop_and_a_job_takes_their_place(speaking: Any, origin: str, shots: Path) -> None:
    with watched_page(speaking, origin, expected=["401"], viewport={"width": 1100, "height": 800}) as page:
        entered(page, origin)
        page.select_option("#language", "en")
        page.locator("#record").press("Enter")
        text = page.locator("#live-text")
        expect(text).to_contain_text(FIRST, timeout=PATIENCE)
        assert page.locator("#record").inner_text() == "Stop and send"
        expect(page.locator("#live-text p:not(:empty)")).not_to_have_count(1, timeout=PATIENCE)
        expect(page.locator("#live-time")).to_have_text(re.compile("^0:[0-2][0-9]$"))
        expect(page.locator("#level span")).not_to_have_attribute("style", "transform: scaleX(0);")
        assert text.get_attribute("aria-live") == "polite" and page.locator("#live-note").inner_text() == ""
        for theme in ("light", "dark"):
            page.select_option("#theme", theme)
            page.screenshot(path=shots / f"live-{theme}.png")
        page.set_viewport_size({"width": 360, "height": 740})
        page.screenshot(path=shots / "live-phone.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.click("#record")
        expect(page.locator("#live-note")).to_contain_text("the transcript replaces these words", timeout=PATIENCE)
        page.screenshot(path=shots / "live-sent.png")
        expect(page.locator("#live")).to_be_hidden(timeout=PATIENCE)
        page.locator(".job a").click()
        expect(page.locator(".segment .text").first).to_contain_text(FIRST)
        expect(page.locator("#speakers li").first).to_be_visible()


def test_a_socket_that_is_refused_or_breaks_is_told(speaking: Any, origin: str) -> None:
    """It is recorded all the same."""
    with watched_page(speaking, origin, expected=["401", "WebSocket"]) as page:
        entered(page, origin)
        page.evaluate(
            """() => {
              const Real = WebSocket;
              window.WebSocket = class extends Real {
                constructor(address) { super(address, ["realtime", "openai-insecure-api-key.none"]); }
              };
            }"""
        )
        page.click("#record")
        expect(page.locator("#live-note")).to_have_text(
            "No words appear: the server takes no live session now, or hung up."
        )
        expect(page.locator("#record")).to_have_text("Stop and send")
        page.click("#record")
        expect(page.locator("#record")).to_have_text("Record")
        expect(page.locator("#live")).to_be_hidden()
