"""Transcribe an archive: many recordings, on many machines, in a run that may end at any moment and goes on later."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_speech.archive.corpus import CORPUS_FORMATS, CorpusFormat, check_packages, chosen
from mlx_speech.archive.failures import MAX_ATTEMPTS, MAX_DEATHS, TRANSIENT
from mlx_speech.archive.fleet import Fleet, Given, Lost, Process
from mlx_speech.archive.items import Entry, Failed, Heard, Item
from mlx_speech.archive.journal import Done, History, Journal, read_journal
from mlx_speech.archive.lengths import Lengths
from mlx_speech.archive.line import Line
from mlx_speech.archive.manifest import Source, read_manifest
from mlx_speech.archive.naming import key_of, names_of
from mlx_speech.archive.progress import Progress, Tally
from mlx_speech.archive.results import Folder, Result, formatted
from mlx_speech.archive.shards import Shards
from mlx_speech.archive.storage import Storage
from mlx_speech.archive.worker import Setup
from mlx_speech.errors import Notice, OptionError, SourceNotFound, brief, shorten
from mlx_speech.options import Options
from mlx_speech.writers import FORMATS
from mlx_speech.writers.cues import Layout

WAIT_SECONDS = 0.2  # for news, before progress is told again
PIECES_AND_TRACKS = "audio_track and pieces of files conflict: leave out audio_track, or the offsets of the manifest"


@dataclass(frozen=True)
class Plan:
    """How an archive is done; what has a default seldom needs another.

    address : of Ray's cluster; "auto" is the one of this machine, or where there is none, this machine alone
    processes : on each machine without an accelerator; with one, each accelerator has a process
    cores : of each process; by default the machine's cores are shared out
    task_seconds, task_files : of sound and of files that a process gets at once, at most
    retry_wait : seconds before a file that could not be read is tried again; twice so many the next time
    retry_failed : try again what earlier runs have given up
    again : transcribe what is done, too
    shard_files : recordings in a shard of the corpus
    """

    address: str = "auto"
    processes: int = 1
    cores: int | None = None
    task_seconds: float = 600.0
    task_files: int = 64
    retry_wait: float = 5.0
    retry_failed: bool = False
    again: bool = False
    shard_files: int = 1000

    def __post_init__(self) -> None:
        for name in ("processes", "cores", "task_files", "shard_files"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise OptionError(f"{name} is {brief(value)}: give a whole number from 1")
        for name in ("task_seconds", "retry_wait"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not value >= 0:
                raise OptionError(f"{name} is {brief(value)}: give seconds")


@dataclass(frozen=True)
class Report:
    """What a run has come to.

    files : of the archive; before : of them, those that were done already
    failed : what has no result, and why, by name
    hours : of sound that this run has heard; seconds : that it took
    """

    files: int
    before: int
    failed: Mapping[str, Failed]
    hours: float
    seconds: float


def transcribe(
    manifest: Source | Iterable[Source],
    out: str | os.PathLike[str],
    *,
    formats: Sequence[str] = ("jsonl",),
    pipeline: str = "mlx_speech.pipeline:Pipeline",
    keywords: Mapping[str, Any] | None = None,
    layout: Mapping[str, Any] | None = None,
    storage: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    plan: Plan | None = None,
    **options: Any,
) -> Report:
    """Transcribe all recordings of a manifest on the machines of a Ray cluster.

    manifest : as of `read_manifest`; every machine has to reach the files by the same path or address
    out : the folder of results (`archive.results` has what is in it). The same call again goes on where one ended
    formats : of `writers.FORMATS`, but html; and "jsonl" and "parquet", a corpus of all
    pipeline : the import path of what transcribes; it is called with `keywords`, such as `model="small"`
    layout : fields of `writers.Layout`
    storage : keywords of fsspec for addresses, such as `endpoint_url`; they are not kept
    environment : variables that the processes are to have, such as HF_TOKEN; they are not kept
    on_progress : is called several times a second
    options : `TranscribeOptions`; a manifest's languages count where none is given here

    What goes wrong with a recording is in the report, and the others go on. Raises `OptionError`, also where earlier
    results were made with other options; `SourceError` and `CorruptFile` for the manifest; `OutputError`;
    `ClusterError`; `MissingDependency`.
    """
    plan = plan or Plan()
    setup = Setup(
        pipeline=pipeline,
        keywords=dict(keywords or {}),
        options=options,
        formats=tuple(dict.fromkeys(kind for kind in formats if kind not in CORPUS_FORMATS)),
        layout=dict(layout or {}),
        storage=dict(storage or {}),
        environment=dict(environment or {}),
        cores=plan.cores,
    )
    corpus = chosen(formats)
    settings = _checked(setup, corpus)
    reader = Storage(storage)
    entries = read_manifest(manifest, reader)
    _check_pieces(entries, options)
    if any(name in options for name in ("language", "languages", "multilingual")):
        entries = [replace(entry, language=None) for entry in entries]
    folder = Folder(Path(out).expanduser())
    folder.make()
    with Journal(folder.journal) as journal:
        folder.clear()
        _check_settings(journal.history, settings, plan, folder)
        if not plan.again:
            _lay_out(journal.history, settings["layout"], folder)
        journal.begin(settings, again=plan.again)
        items = _items(entries, journal.history, reader)
        shards = Shards(folder, journal, corpus, plan.shard_files)
        run = _Run(items, folder, journal, shards, setup, plan)
        return run.through(on_progress or (lambda progress: None))


def results(out: str | os.PathLike[str]) -> Iterator[Result]:
    """The results of an archive, one after the other, also while it is still under way.

    out : its folder
    Raises `SourceNotFound` where there is none, `CorruptFile`.
    """
    folder = Folder(Path(out).expanduser())
    try:
        history = read_journal(folder.journal)
    except FileNotFoundError as error:
        raise SourceNotFound(f"{folder.out}: is no archive's folder: is the path right?") from error
    for done in history.done.values():
        if folder.size(done.name) == done.size:
            yield folder.read(done.name)


class _Run:
    """A run through the items that have no result. items : all of the archive"""

    def __init__(
        self, items: Sequence[Item], folder: Folder, journal: Journal, shards: Shards, setup: Setup, plan: Plan
    ) -> None:
        self._folder = folder
        self._journal = journal
        self._shards = shards
        self._setup = setup
        self._plan = plan
        self._lengths = Lengths()
        self._files = len(items)
        self._items = {item.name: item for item in items}
        self._failed: dict[str, Failed] = {}
        self._attempts: dict[str, int] = {}
        left = self._left(items)
        suspects = self._suspects(left)
        self._guesses = {item.name: self._lengths.of(item) for item in left}
        guessed = list(self._guesses.values())
        at_most = {"task_seconds": plan.task_seconds, "task_files": plan.task_files}
        self._line = Line(left, guessed, suspects=suspects, **at_most)
        self._tally = Tally(len(items), sum(guessed))
        self._before = len(items) - len(left) - len(self._failed)
        for item in items:
            if item.name in self._failed:
                self._tally.there(0.0, failed=True)
            elif item.name not in self._guesses:
                self._tally.there(journal.history.done[key_of(item.entry)].seconds)

    def through(self, on_progress: Callable[[Progress], object]) -> Report:
        """Transcribe what is left; returns when all is done or has failed."""
        start = time.monotonic()
        if self._line:
            fleet = Fleet(self._setup, self._plan.address, processes=self._plan.processes)
            try:
                self._through(fleet, on_progress)
            finally:
                fleet.close()
        self._shards.finish()
        listed = ((self._items[name], failed) for name, failed in self._failed.items())
        self._folder.write_failures(listed)
        seconds = time.monotonic() - start
        return Report(self._files, self._before, self._failed, self._tally.heard / 3600, seconds)

    def _through(self, fleet: Fleet, on_progress: Callable[[Progress], object]) -> None:
        started: float | None = None
        while self._line or fleet.busy:
            fleet.look()
            if started is None and fleet.ready:
                started = time.monotonic()
            self._fill(fleet)
            for event in fleet.events(WAIT_SECONDS):
                match event:
                    case Given():
                        self._given(event)
                    case Lost():
                        self._lost(event)
            fleet.check()
            self._shards.advance()
            self._journal.sync()
            elapsed = 0.0 if started is None else time.monotonic() - started
            on_progress(self._tally.progress(elapsed, fleet.ready))

    def _fill(self, fleet: Fleet) -> None:
        """Give every process as much as it can take, those first that have nothing."""
        able = [process for process in fleet.processes if process.has_room]
        for process in sorted(able, key=lambda process: len(process.under_way)):
            self._fill_one(fleet, process)

    def _fill_one(self, fleet: Fleet, process: Process) -> None:
        while process.has_room:
            task = self._line.take(time.monotonic(), len(fleet.processes), idle=process.idle)
            if task is None:
                return
            fleet.give(process, task)

    # --- what became of a recording ----------------------------------------------------------------------------------

    def _given(self, given: Given) -> None:
        item = given.item
        match given.outcome:
            case Heard() as heard:
                size = self._folder.write(item.name, heard.texts)
                self._journal.done(item, heard, size)
                self._shards.add(item.name)
                self._lengths.learn(item, heard.seconds)
                self._tally.done(self._guesses[item.name], heard.seconds)
                for text in heard.warnings:
                    warnings.warn(text, stacklevel=5)
            case Failed() as failed:
                attempts = self._attempts.get(item.name, 0) + 1
                self._attempts[item.name] = attempts
                if failed.kind in TRANSIENT and attempts < MAX_ATTEMPTS:
                    self._again(item, failed, attempts)
                else:
                    self._fail(item, failed)

    def _again(self, item: Item, failed: Failed, attempts: int) -> None:
        """Try a recording once more: by itself where memory was short, and later where it could not be read."""
        if failed.kind == "memory":
            self._line.give_back([item], suspects=True)
        else:
            wait = self._plan.retry_wait * 2 ** (attempts - 1)
            self._line.give_back([item], when=time.monotonic() + wait)

    def _lost(self, lost: Lost) -> None:
        """Recordings whose process has ended."""
        if not lost.guilty:
            suspects = self._suspects(lost.items)
            self._line.give_back(suspects, suspects=True)
            self._line.give_back(item for item in lost.items if item not in suspects)
            return
        for item in lost.items:
            self._journal.death(item)
            deaths = self._journal.history.deaths[key_of(item.entry)]
            if deaths < MAX_DEATHS:
                self._line.give_back([item], suspects=True)
                continue
            reason = f"{deaths} processes ended while it was under way: it is set aside"
            self._fail(item, Failed(item.name, "died", reason))

    def _suspects(self, items: Iterable[Item]) -> list[Item]:
        """Those that were under way when a process ended, also in an earlier run, and have no result since."""
        deaths = self._journal.history.deaths
        return [item for item in items if deaths.get(key_of(item.entry))]

    def _fail(self, item: Item, failed: Failed) -> None:
        self._failed[item.name] = failed
        self._journal.failed(item, failed)
        self._tally.failure(self._guesses[item.name])

    # --- what is left ------------------------------------------------------------------------------------------------

    def _left(self, items: Sequence[Item]) -> list[Item]:
        """Items without a result; of those that have one, formats that are missing are written."""
        history = self._journal.history
        left: list[Item] = []
        changed: list[str] = []
        for item in items:
            key = key_of(item.entry)
            done = history.done.get(key)
            if done is not None and self._folder.size(done.name) == done.size:
                if "" in (done.stamp, item.stamp) or done.stamp == item.stamp:  # unknown is not changed
                    self._complete(item, done)
                    self._lengths.learn(item, done.seconds)
                    continue
                changed.append(item.entry.source)
            elif self._is_given_up(key, item):
                continue
            left.append(item)
        if changed:
            said = f"transcribed again, since they have changed: {shorten(changed, 3)}"
            warnings.warn(said, Notice, stacklevel=4)
            self._shards.forget({item.name for item in left})
        return left

    def _is_given_up(self, key: str, item: Item) -> bool:
        """Whether earlier runs have found that it cannot be transcribed; then it is listed again."""
        history = self._journal.history
        if key not in history.failed:
            return False
        stamp, failed = history.failed[key]
        if stamp != item.stamp or failed.kind in TRANSIENT or self._plan.retry_failed:
            history.deaths.pop(key, None)
            return False
        self._failed[item.name] = failed
        return True

    def _complete(self, item: Item, done: Done) -> None:
        """Write formats of a result that were not asked for before, or are gone."""
        missing: list[str] = []
        for kind in self._setup.formats:
            if kind not in done.formats or not self._folder.path(item.name, kind).is_file():
                missing.append(kind)
        if missing:
            _write(item.name, missing, self._setup.layout, self._folder)
            self._journal.formats(item, {*done.formats, *missing})


# --- before anything runs --------------------------------------------------------------------------------------------


def _checked(setup: Setup, corpus: tuple[CorpusFormat, ...]) -> dict[str, Any]:
    """What results depend on, in the types of JSON. Raises `OptionError`, `MissingDependency`."""
    for kind in setup.formats:
        if kind == "html":
            raise OptionError("html needs the sound: make pages of single results with `mlx_speech write`")
        if kind not in FORMATS:
            raise OptionError(f"{kind!r} is not one of {', '.join([*FORMATS, *CORPUS_FORMATS])}")
    Layout(**setup.layout)
    Options.of(**setup.options)
    check_packages(corpus)
    settings = {
        "pipeline": setup.pipeline,
        "keywords": setup.keywords,
        "options": setup.options,
        "layout": setup.layout,
    }
    try:
        return json.loads(json.dumps(settings, default=os.fspath))
    except (TypeError, ValueError) as error:
        raise OptionError(f"keywords and options go to other machines: give what JSON has ({error})") from error


def _check_pieces(entries: Iterable[Entry], options: Mapping[str, Any]) -> None:
    if options.get("audio_track") is not None and any(entry.offset is not None for entry in entries):
        raise OptionError(PIECES_AND_TRACKS)


def _check_settings(history: History, settings: Mapping[str, Any], plan: Plan, folder: Folder) -> None:
    """Raises `OptionError` where results are there that were made otherwise."""
    if history.settings is None or not history.done or plan.again:
        return
    changes = _changes(history.settings, settings)
    if not changes:
        return
    advice = "choose another folder, or again=True to transcribe all of it anew"
    raise OptionError(f"{folder.out}: its results were made with other options ({', '.join(changes)}): {advice}")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs that results depend on, in words."""
    changes: list[str] = []
    if before["pipeline"] != now["pipeline"]:
        changes.append(f"pipeline was {before['pipeline']}")
    for group in ("keywords", "options"):
        for name in sorted(before[group].keys() | now[group].keys()):
            was, is_now = before[group].get(name), now[group].get(name)
            if was != is_now:
                changes.append(f"{name} was {brief(was)} and is {brief(is_now)}")
    return changes


def _lay_out(history: History, layout: Mapping[str, Any], folder: Folder) -> None:
    """Where texts were laid out in another way, write those that are there anew."""
    if history.settings is None or history.settings.get("layout", {}) == layout:
        return
    for done in history.done.values():
        if done.formats and folder.size(done.name) == done.size:
            _write(done.name, done.formats, layout, folder)


def _write(name: str, kinds: Sequence[str], layout: Mapping[str, Any], folder: Folder) -> None:
    """Write formats of a result that is there."""
    transcript = folder.read(name).transcript
    for kind, text in formatted(name, transcript, kinds, layout).items():
        folder.write_file(folder.path(name, kind), text.encode("utf-8", "replace"))


def _items(entries: Sequence[Entry], history: History, storage: Storage) -> list[Item]:
    """Entries with their names, and their files as they are now."""
    names = names_of(entries, history.names)
    states = storage.states(entry.source for entry in entries)
    items: list[Item] = []
    for entry in entries:
        state = states[entry.source]
        items.append(Item(names[key_of(entry)], entry, state.size, state.stamp))
    return items
