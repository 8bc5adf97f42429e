"""A real browser for tests of pages: Debian's or Google's Chromium, driven by playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from conftest import absent

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # for root, as tests run in containers
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",  # the microphone is a beep, and nobody is asked
    "--use-fake-device-for-media-stream",
)
# notes every breach of the content security policy, and every time the page did not answer for more than 50 ms
WATCH = """
window.breaches = [];
window.longTasks = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.breaches.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`);
});
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.longTasks.push([entry.startTime, entry.duration]);
}).observe({ type: "longtask", buffered: true });
"""
ALLOWED = ("blob:", "data:", "file:", "chrome-error:")


@contextmanager
def chromium(*flags: str) -> Iterator[object]:
    """A browser without a window; skips where there is none, but fails in CI. flags : beside those of all tests"""
    found = [path for path in map(shutil.which, NAMES) if path]
    if not found:
        absent(f"there is no browser: install one of {', '.join(NAMES)}")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=[*FLAGS, *flags])
        yield browser
        browser.close()


@dataclass
class Watched:
    """What a page must not do: breach its policy, raise, or ask for what is not its origin's.

    expected : parts of messages of the console that a test provokes
    """

    origin: str
    messages: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def request(self, url: str) -> None:
        if not url.startswith((self.origin, *ALLOWED)):
            self.foreign.append(url)

    def message(self, text: str) -> None:
        if not any(part in text for part in self.expected):
            self.messages.append(text)


@contextmanager
def watched_page(browser, origin: str, expected: list[str] | None = None, **options) -> Iterator:
    """A page in a context of its own that is checked at the end. origin : the start of all addresses it may ask for"""
    context = browser.new_context(**options)
    context.set_default_timeout(10_000)
    context.add_init_script(WATCH)
    page = context.new_page()
    watch = Watched(origin, expected=expected or [])
    page.on("request", lambda request: watch.request(request.url))
    page.on("pageerror", lambda error: watch.message(f"raised: {error}"))
    page.on("console", lambda said: watch.message(said.text) if said.type == "error" else None)
    try:
        yield page
        breaches = page.evaluate("window.breaches")
        assert not breaches and not watch.messages and not watch.foreign, (breaches, watch.messages, watch.foreign)
    finally:
        context.close()
