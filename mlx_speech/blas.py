"""What has to be right about the process before MLX computes: a fast BLAS on Linux CPUs, and a back end.

MLX's CPU wheel for Linux links the reference BLAS. OpenBLAS, loaded globally before MLX, takes over its `sgemm`:
float32 products then run some 17 times faster. It cannot be done afterwards. An OpenBLAS older than the CPU takes it
for one of 2004 and is five times slower than it could be; it is told which to take it for.

glibc gives large arrays back to the system as soon as MLX frees them, and the system clears every page of the next.
It can be told to keep them. Both hold for the whole process and until its end, so importing the package does neither.
The command line does both; in a program OpenBLAS comes with the first use, and `configure` says otherwise.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_speech.errors import InstallationError, MissingDependency, install

NO_BACKEND = f"MLX has no back end here: {install('cpu')}; for an NVIDIA GPU, cuda13 in place of cpu"
MIXED = (
    "the distribution mlx-speech, another project with the same import name, has files in this package's folder: "
    "pip uninstall mlx-speech mlx-speech-toolkit, then install the one you want"
)
LATE = "MLX was imported first, so OpenBLAS, 17 times faster, cannot serve it: call mlx_speech.configure() before that"
HINT = "OpenBLAS makes products 17 times faster on this CPU: apt-get install libopenblas0-pthread (or your system's)"

_NAMES = ("libopenblas.so.0", "libopenblas.so")
_FALLBACK = "Prescott"  # what OpenBLAS takes an x86 CPU for that it does not know
_CORES = {"avx512bw": "SkylakeX", "avx2": "Haswell"}  # what such a CPU can be taken for, the fastest first
_NOLOAD = 4  # dlopen's RTLD_NOLOAD: only if it is in the process already
# glibc's mallopt: M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX (one, or MLX's thread would give its large arrays back)
_KEEP = {-1: 2**31 - 1, -4: 0, -8: 1}

VARIABLE = "MLX_SPEECH_OPENBLAS"  # of the environment: "0" keeps OpenBLAS out, "1" loads it at import
# whether OpenBLAS may be loaded; whether the user knows that it came too late; see `as_on_gpu`
_CHOICES = {"openblas": True, "told": False, "as_on_gpu": False}


def configure(*, openblas: bool = True, keep_freed_memory: bool = False) -> None:
    """What the package may do to the process of a program that imports it; on Linux CPUs, elsewhere nothing.

    openblas : load OpenBLAS globally, now, for MLX's products: it has to come before MLX is imported, which the first
        use of `mlx_speech.Pipeline`, `load` or `detect_speech` does. Without this call that use loads it; False, or
        MLX_SPEECH_OPENBLAS=0 in the environment, keeps it out: products then take some 17 times as long. With
        MLX_SPEECH_OPENBLAS=1 importing the package loads it
    keep_freed_memory : have glibc keep what the process frees, to the process's end: a fifth to a third less time.
        Without this call it is not done

    Warns where OpenBLAS is there and MLX came first. Figures: `benchmarks/NOTES.md`.
    """
    _CHOICES["openblas"] = openblas
    if openblas:
        preload()
    if keep_freed_memory:
        keep_memory()


def preload_if_asked() -> None:
    """`preload` where MLX_SPEECH_OPENBLAS=1 is in the environment: what importing the package does."""
    if os.environ.get(VARIABLE) == "1":
        preload()


def preload() -> None:
    """Load OpenBLAS into the global namespace on Linux, unless it is kept out; warns where MLX came first."""
    if not sys.platform.startswith("linux") or not _CHOICES["openblas"] or os.environ.get(VARIABLE) == "0":
        return
    if "mlx.core" not in sys.modules:
        _load()
    elif not _CHOICES["told"] and not _open(_NOLOAD) and _open(0) and on_cpu():
        _CHOICES["told"] = True
        warnings.warn(LATE, stacklevel=4)


def keep_memory() -> None:
    """Have glibc keep, for MLX's next arrays, what the process frees; on other systems nothing happens.

    It saves a fifth to a third of the time on a CPU (measured in `benchmarks/NOTES.md`). It concerns every allocation
    of the process and cannot be taken back; `give_back` returns what is kept at a moment. Call it once, at the start.
    """
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in _KEEP.items():
            libc.mallopt(option, value)


def give_back() -> None:
    """Return to the system what memory is kept and not in use."""
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def hint() -> str | None:
    """What would make MLX faster here, or None."""
    return HINT if sys.platform.startswith("linux") and not _open(_NOLOAD) and on_cpu() else None


def check_backend() -> None:
    """Import MLX, behind OpenBLAS, or raise `MissingDependency` saying which extra brings a back end.

    Raises `InstallationError` where the package has been mixed with another one.
    """
    if _mixed():
        raise InstallationError(MIXED)
    preload()
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        raise MissingDependency(NO_BACKEND if "libmlx" in str(error) else f"{NO_BACKEND} ({error})") from error


@functools.cache
def _mixed() -> bool:
    """Whether the distribution mlx-speech has written into this package's folder: some modules here are then its own.

    Only the folder that the package stands in is looked at: elsewhere the other one does no harm, and listing one
    folder takes less time than importing `importlib.metadata`.
    """
    site_packages = Path(__file__).parent.parent
    return any(site_packages.glob("mlx_speech-*.dist-info"))


def core(library: Any = None) -> str | None:
    """The kind of CPU that OpenBLAS works for, in its words; None without it, or where it does not say."""
    library = library or _open(_NOLOAD)
    if not hasattr(library, "openblas_get_corename"):
        return None
    library.openblas_get_corename.restype = ctypes.c_char_p
    return library.openblas_get_corename().decode()


@functools.cache
def openblas() -> ctypes.CDLL | None:
    """The system's OpenBLAS, which serves MLX where it came first, for calls of `cblas_sgemv` and of its number of
    threads; None where it is not in the process when this is first asked for, or lacks one of them."""
    library = _open(_NOLOAD)
    needed = ("cblas_sgemv", "openblas_get_num_threads", "openblas_set_num_threads")
    if library is None or not all(hasattr(library, name) for name in needed):
        return None
    number, array, scalar = ctypes.c_int, ctypes.c_void_p, ctypes.c_float
    library.cblas_sgemv.argtypes = [*4 * [number], scalar, array, number, array, number, scalar, array, number]
    library.cblas_sgemv.restype = None
    library.openblas_set_num_threads.argtypes = [number]
    library.openblas_set_num_threads.restype = None
    return library


def _load() -> ctypes.CDLL | None:
    """OpenBLAS, anew where it does not know the CPU: it asks once, when it is loaded."""
    library, flags = _open(0), Path("/proc/cpuinfo")
    if library is None or core(library) != _FALLBACK or "OPENBLAS_CORETYPE" in os.environ or not flags.exists():
        return library
    known = set(flags.read_text(encoding="utf-8").split())
    for flag, better in _CORES.items():
        if flag in known:
            ctypes.CDLL(None).dlclose(ctypes.c_void_p(library._handle))
            os.environ["OPENBLAS_CORETYPE"] = better
            library = _open(0)
            del os.environ["OPENBLAS_CORETYPE"]
            break
    return library


def _open(flags: int) -> ctypes.CDLL | None:
    for name in _NAMES:
        try:
            return ctypes.CDLL(name, ctypes.RTLD_GLOBAL | flags)
        except OSError:
            continue
    return None


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Go the ways that are a GPU's, wherever MLX computes: the process builds graphs of MLX and looks at no array in
    between. They can so be tested and counted without a GPU; on a CPU they are several times slower."""
    before = _CHOICES["as_on_gpu"]
    _CHOICES["as_on_gpu"] = True
    try:
        yield
    finally:
        _CHOICES["as_on_gpu"] = before


def on_cpu() -> bool:
    """Whether that is where MLX computes, if nobody says otherwise; inside `as_on_gpu` it is not."""
    if _CHOICES["as_on_gpu"]:
        return False
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.cpu
