"""What runs in a process of its own, on any machine: it holds a pipeline, and transcribes what it is given."""

from __future__ import annotations

import importlib
import os
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from mlx_speech import blas
from mlx_speech.archive.failures import kind_of, reason_of
from mlx_speech.archive.items import Failed, Item, Outcome
from mlx_speech.archive.results import heard
from mlx_speech.archive.storage import Storage
from mlx_speech.errors import OptionError

FETCHED_AHEAD = 4  # files of a task that are fetched, or cut, while others are heard


@dataclass(frozen=True)
class Setup:
    """What a worker is told when it starts.

    pipeline : the import path of a class, or of what makes an object, as "mlx_speech.pipeline:Pipeline.demo"; it is
        called with `keywords`, and has `transcribe(recordings, **options)` as of `Pipeline`
    keywords : of the pipeline; options : of each transcription
    formats, layout : of results, as of `results.heard`
    storage : keywords of fsspec
    environment : variables that models are found by
    cores : threads that compute; None leaves it to the libraries
    """

    pipeline: str = "mlx_speech.pipeline:Pipeline"
    keywords: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    formats: tuple[str, ...] = ()
    layout: Mapping[str, Any] = field(default_factory=dict)
    storage: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    cores: int | None = None


class Worker:
    """A pipeline, and what it is fed with. Two tasks may be under way in it, whose chunks share Whisper's batches."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._pipeline: Any = None
        self._storage = Storage(setup.storage)
        self._warnings: list[str] = []  # that no result has taken along

    def prepare(self) -> Failed | None:
        """Load what is checked before anything is transcribed; says what is wrong, where something is."""
        os.environ.update(self._setup.environment)
        if self._setup.cores is not None:
            _limit_threads(self._setup.cores)
        blas.keep_memory()  # the process is for this alone
        warnings.showwarning = self._keep_warning
        warnings.simplefilter("always", UserWarning)  # the second recording with a fault hears of it too
        from mlx_speech.engine import Failure, attempt

        outcome = attempt(self._load)
        if isinstance(outcome, Failure):
            return Failed("", kind_of(outcome.error, fetching=False), reason_of(outcome.error))
        return None

    def transcribe(self, items: Sequence[Item]) -> Iterator[Outcome]:
        """Each item's outcome, as soon as it is there; whatever happens, each has one. They are of one language."""
        from mlx_speech.engine import Failure, attempt

        left = {item.name: item for item in items}
        options = dict(self._setup.options)
        language = items[0].entry.language
        if language is not None:
            options["language"] = language
        with _Sources(items, self._storage) as sources:
            results = self._pipeline.transcribe(sources, **options)
            while left:
                step = attempt(lambda: next(results, None))
                for failed in sources.failures():
                    del left[failed.name]
                    yield failed
                if isinstance(step, Failure):
                    for item in left.values():
                        yield _failed(item, step.error)
                    return
                if step is None:
                    return
                recording, result = step
                item, path = sources.finished(recording)
                if isinstance(result, Exception):
                    outcome: Outcome = _failed(item, result, path)
                else:
                    outcome = heard(item, result, self._setup.formats, self._setup.layout)
                    outcome = replace(outcome, warnings=self._warnings_of(item, path))
                del left[item.name]
                yield outcome

    def _keep_warning(self, message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        """What `warnings` calls. From any thread."""
        if category is UserWarning:
            self._warnings.append(str(message))

    def _warnings_of(self, item: Item, path: str) -> tuple[str, ...]:
        """Those that nobody was told of. path : of the file, maybe a copy that nobody knows"""
        kept, self._warnings = self._warnings, []
        return tuple(text.replace(path, item.entry.source) for text in kept)

    def _load(self) -> None:
        """Make the pipeline; that it can do what is asked it says itself, with no recording at all."""
        self._pipeline = imported(self._setup.pipeline)(**self._setup.keywords)
        for _ in self._pipeline.transcribe([], **self._setup.options):
            pass


class _Source(NamedTuple):
    """recording : as the pipeline takes it; path : of the file, maybe a copy; copies : what deletes that"""

    recording: Any
    path: str
    copies: ExitStack


class _Unread(NamedTuple):
    """What nobody can hear. path : as of `_Source`; "" where there is none"""

    error: Exception
    path: str = ""


class _Sources:
    """Recordings of a task as a pipeline takes them, one after the other; some are fetched ahead. A file is fetched and
    decoded once for all of its pieces that stand one behind the other."""

    def __init__(self, items: Sequence[Item], storage: Storage) -> None:
        self._items = items
        self._storage = storage
        self._taken: dict[int, tuple[Item, _Source]] = {}  # by the identity of what the pipeline has
        self._failures: list[Failed] = []
        self._closing = ExitStack()
        self._pool = self._closing.enter_context(ThreadPoolExecutor(FETCHED_AHEAD, "fetching"))

    def __iter__(self) -> Iterator[Any]:
        from mlx_speech.engine import Failure, attempt

        waiting = deque(_of_one_file(self._items))
        fetching: deque[tuple[list[Item], Future[Any]]] = deque()
        while waiting or fetching:
            while waiting and len(fetching) < FETCHED_AHEAD:
                items = waiting.popleft()
                fetching.append((items, self._pool.submit(attempt, lambda items=items: self._open(items))))
            items, future = fetching.popleft()
            opened = future.result()
            sources = [_Unread(opened.error)] * len(items) if isinstance(opened, Failure) else opened
            for item, source in zip(items, sources, strict=True):
                if isinstance(source, _Unread):
                    self._failures.append(_failed(item, source.error, source.path, fetching=True))
                    continue
                self._taken[id(source.recording)] = (item, source)
                yield source.recording

    def __enter__(self) -> _Sources:
        return self

    def __exit__(self, *exception: object) -> None:
        for _, source in self._taken.values():
            source.copies.close()
        self._closing.close()

    def finished(self, recording: Any) -> tuple[Item, str]:
        """The item of a recording that the pipeline has done, and the path that messages name it by; if that is a
        copy's, it is deleted."""
        item, source = self._taken.pop(id(recording))
        source.copies.close()
        return item, source.path

    def failures(self) -> list[Failed]:
        """Those that could not be fetched, since this was asked last."""
        failures = self._failures
        self._failures = []
        return failures

    def _open(self, items: Sequence[Item]) -> list[_Source | _Unread]:
        """items : a file, or pieces of one. Raises where none of them can be had."""
        from mlx_speech.archive import pieces  # which loads NumPy: not before `prepare` has said with how many threads

        copies = ExitStack()
        with ExitStack() as undo:
            undo.push(copies)
            path = copies.enter_context(self._storage.fetched(items[0].entry.source))
            if items[0].entry.offset is None:
                undo.pop_all()
                return [_Source(path, path, copies)]
            sources: list[_Source | _Unread] = []
            for piece in pieces.cut(path, [item.entry for item in items]):
                if isinstance(piece, Exception):
                    sources.append(_Unread(piece, path))
                else:
                    sources.append(_Source(piece, path, ExitStack()))
        return sources


def _of_one_file(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Files by themselves, and pieces of one file that stand one behind the other together; but for those whose length
    nobody knows."""
    together: list[Item] = []
    for item in items:
        if together and not _may_join(together[-1], item):
            yield together
            together = []
        together.append(item)
    if together:
        yield together


def _may_join(one: Item, other: Item) -> bool:
    are_pieces = all(item.entry.offset is not None and item.entry.duration is not None for item in (one, other))
    return are_pieces and one.entry.source == other.entry.source


def _failed(item: Item, error: Exception, spelling: str = "", *, fetching: bool = False) -> Failed:
    """spelling : of the file in the message, which may be a copy that nobody knows"""
    reason = reason_of(error)
    if spelling:
        reason = reason.replace(spelling, item.entry.source)
    return Failed(item.name, kind_of(error, fetching=fetching), reason)


def imported(path: str) -> Any:
    """The object at an import path, "package.module:name.name". Raises `OptionError`."""
    module, colon, names = path.partition(":")
    if not module or not colon or not names:
        raise OptionError(f"pipeline is {path!r}: give an import path, such as package.module:Name")
    try:
        found: Any = importlib.import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise OptionError(
            f"pipeline is {path!r}, which cannot be imported ({error}): is it installed there?"
        ) from error
    return found


def _limit_threads(cores: int) -> None:
    """Libraries compute with so many threads if they are loaded behind this: a process of Ray's has none of them yet.

    Told later (threadpoolctl), NumPy's OpenBLAS took several times as long for everything.
    """
    os.environ["OPENBLAS_NUM_THREADS"] = str(cores)
    os.environ["OMP_NUM_THREADS"] = str(cores)
