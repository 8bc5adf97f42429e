"""What has to happen before MLX is first imported: a fast BLAS on Linux CPUs, a plain word where MLX has no back end.

MLX's CPU wheel for Linux links the reference BLAS. OpenBLAS, loaded globally before MLX, takes over its `sgemm`:
float32 products then run 20 to 30 times faster. It cannot be done afterwards.
"""

from __future__ import annotations

import ctypes
import sys
import warnings

from mlx_speech.errors import MissingDependency

NO_BACKEND = "MLX has no back end here: pip install 'mlx-speech[cpu]' or, for an NVIDIA GPU, 'mlx-speech[cuda13]'"
HINT = "OpenBLAS makes MLX 20 to 30 times faster on this CPU: apt-get install libopenblas0-pthread (or your system's)"

_NAMES = ("libopenblas.so.0", "libopenblas.so")


def preload() -> bool:
    """Load OpenBLAS into the global namespace if this is Linux and MLX is not loaded yet; whether it is there."""
    if not sys.platform.startswith("linux"):
        return False
    late = "mlx.core" in sys.modules
    for name in _NAMES:
        try:
            if late:  # only look: is it in the process already?
                ctypes.CDLL(name, ctypes.RTLD_GLOBAL | _RTLD_NOLOAD)
            else:
                ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
            return True
        except OSError:
            continue
    if late and _on_cpu():
        warnings.warn("import mlx_speech before mlx, so that OpenBLAS can serve MLX", stacklevel=3)
    return False


_RTLD_NOLOAD = 4


def _on_cpu() -> bool:
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.cpu


def check_backend() -> None:
    """Import MLX, or raise `MissingDependency` saying which extra brings a back end."""
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        raise MissingDependency(f"{NO_BACKEND} ({error})" if "libmlx" not in str(error) else NO_BACKEND) from error
