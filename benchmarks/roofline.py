"""What the back end can do at most, and what share of that a call reached.

The peaks are MLX's own, in float32: of operations with a large matrix product; of bytes with a large sum of two arrays
or a matrix times a vector, whichever is faster. On a CPU that product is NumPy's, on all cores; MLX's is on one.
A call of known `Work` takes at least the longer of operations / peak and bytes / peak; the rest of its time went into
what is beyond that: overhead, layers too small to fill the machine, data that is moved more often than it must be.

`python -m benchmarks.roofline` prints the device and its peaks as JSON.
"""

from __future__ import annotations

import json
import operator
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = {"cpu": (1536, 6000), "metal": (4096, 12000), "cuda": (8192, 16000)}  # rows of the matrices
PARTS = 4  # of a matrix, that all cores read
REPEATS = 7


def measure(quick: bool = False) -> dict[str, Any]:
    """From another process: {"device": "cpu", "metal" or "cuda", "chip", "blas", "core", "operations" and "bytes" a
    second}."""
    command = [sys.executable, "-m", "benchmarks.roofline", *["quick"] * quick]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"MLX does not run here\n{done.stderr}")
    return json.loads(done.stdout)


def line(work: dict[str, float], seconds: float, peaks: dict[str, Any]) -> str:
    """One sentence on a call that took so many seconds."""
    least = {kind: work[kind] / peaks[kind] for kind in ("operations", "bytes")}
    bound = max(least, key=lambda kind: least[kind])
    share = least[bound] / seconds
    return (
        f"Roofline: {work['operations'] / 1e9:.3g} G operations, {work['bytes'] / 1e6:.3g} MB at least; "
        f"{work['operations'] / seconds / 1e9:.3g} of {peaks['operations'] / 1e9:.3g} G operations/s "
        f"({least['operations'] / seconds:.1%}), {work['bytes'] / seconds / 1e9:.3g} of "
        f"{peaks['bytes'] / 1e9:.3g} GB/s ({least['bytes'] / seconds:.1%}); bound by {bound}, "
        f"{seconds - least[bound]:.3g} s of {seconds:.3g} s are beyond it ({1 - share:.1%})."
    )


def main() -> None:
    import mlx_speech.blas

    mlx_speech.blas.check_backend()
    import mlx.core as mx
    import numpy as np

    from mlx_speech.ops.cpu import in_parallel, slices

    device = "cuda" if mx.cuda.is_available() else "metal" if mx.metal.is_available() else "cpu"
    side, large = (256, 1024) if "quick" in sys.argv else SIZES[device]

    def shortest(call: Callable[[], object]) -> float:
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)

    def best(call: Callable[[mx.array, mx.array], mx.array], *shapes: tuple[int, ...]) -> float:
        arrays = [mx.random.normal(shape) for shape in shapes]
        mx.eval(arrays)
        return shortest(lambda: mx.eval(call(*arrays)))

    product, total = (
        best(operator.matmul, (side, side), (side, side)),
        best(operator.add, (large, large), (large, large)),
    )
    if device == "cpu":
        rng = np.random.default_rng(0)
        matrix = rng.standard_normal((large, large), np.float32)

        def read(part: slice) -> None:
            np.einsum("nd,d->n", matrix[part], matrix[0])

        vector = shortest(lambda: in_parallel(read, slices(large, large // PARTS)))
    else:
        vector = best(operator.matmul, (large, large), (large, 1))
    found: dict[str, Any] = {"operations": 2 * side**3 / product, "bytes": 4 * large**2 * max(3 / total, 1 / vector)}
    chip = "" if device == "cpu" else str(mx.device_info().get("device_name", ""))
    print(
        json.dumps(
            {
                "device": device,
                "chip": chip,
                "blas": mlx_speech.blas.hint() is None,
                "core": mlx_speech.blas.core(),
                **found,
            }
        )
    )


if __name__ == "__main__":
    main()
