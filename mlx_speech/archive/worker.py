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
from mlx_speech.errors import AudioError, OptionError

FETCHED_AHEAD = 4  # files of a task that are fetched, or cut, while others are heard
_BLOCK = 30.0  # seconds of a file that are decoded at once where a piece is cut


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


class _Sources:
    """Recordings of a task as a pipeline takes them, one after the other; some are fetched ahead."""

    def __init__(self, items: Sequence[Item], storage: Storage) -> None:
        self._items = items
        self._storage = storage
        self._taken: dict[int, tuple[Item, _Source]] = {}  # by the identity of what the pipeline has
        self._failures: list[Failed] = []
        self._closing = ExitStack()
        self._pool = self._closing.enter_context(ThreadPoolExecutor(FETCHED_AHEAD, "fetching"))

    def __iter__(self) -> Iterator[Any]:
        from mlx_speech.engine import Failure, attempt

        waiting = deque(self._items)
        fetching: deque[tuple[Item, Future[Any]]] = deque()
        while waiting or fetching:
            while waiting and len(fetching) < FETCHED_AHEAD:
                item = waiting.popleft()
                fetching.append((item, self._pool.submit(attempt, lambda item=item: self._open(item))))
            item, future = fetching.popleft()
            source = future.result()
            if isinstance(source, Failure):
                self._failures.append(_failed(item, source.error, fetching=True))
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

    def _open(self, item: Item) -> _Source:
        entry = item.entry
        copies = ExitStack()
        with ExitStack() as undo:
            undo.push(copies)
            path = copies.enter_context(self._storage.fetched(entry.source))
            if entry.offset is None:
                undo.pop_all()
                return _Source(path, path, copies)
            samples = _piece(path, entry.offset, entry.duration)
        return _Source(samples, path, ExitStack())


def _piece(path: str, offset: float, duration: float | None) -> Any:
    """(samples,) at 16 kHz of a piece of a file, of which no more is decoded than to the end of the piece.

    Raises as `audio.load_audio`, and `AudioError` where the file ends before the piece begins.
    """
    import numpy as np

    from mlx_speech import audio
    from mlx_speech.samples import SAMPLE_RATE

    first = round(offset * SAMPLE_RATE)
    last = None if duration is None else round((offset + duration) * SAMPLE_RATE)
    pieces: list[np.ndarray] = []
    end = 0
    for start, block in audio.blocks(path, block_seconds=_BLOCK):
        place = round(start * SAMPLE_RATE)
        end = place + block.size
        stop = block.size if last is None else last - place
        pieces.append(block[max(first - place, 0) : max(stop, 0)])
        if last is not None and end >= last:
            break
    if end <= first:
        raise AudioError(f"{path}: ends at {end / SAMPLE_RATE:.1f} s, and the piece begins at {offset:g} s: correct it")
    return np.concatenate(pieces)


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
