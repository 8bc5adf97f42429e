"""A converted model in a process of its own, with the environment that a test gives it: `python tests/elsewhere.py
folder`. Arrays come on standard input, pickled, and what the model makes of them goes to standard output."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_speech import backend as backend, blas, checkpoint  # isort: skip  (before anything imports mlx)

import mlx.core as mx
import numpy as np


class Elsewhere:
    """What stands here for a model that is there.

    args : of the model; core : the kind of CPU that OpenBLAS computes for there
    """

    def __init__(self, args: Any, process: subprocess.Popen) -> None:
        self.args, self.process = args, process
        assert process.stdout is not None
        self.core = process.stdout.readline().decode().strip()

    def __call__(self, array: mx.array) -> mx.array:
        assert self.process.stdin is not None and self.process.stdout is not None
        pickle.dump(np.array(array), self.process.stdin)
        self.process.stdin.flush()
        return mx.array(pickle.load(self.process.stdout))


@contextmanager
def elsewhere(folder: Path, **environment: str) -> Iterator[Elsewhere]:
    """The model in `folder`, in a process with other environment variables."""
    call = [sys.executable, __file__, str(folder)]
    environment = {**os.environ, **environment}
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        yield Elsewhere(checkpoint.load_folder(folder).args, process)


def main() -> None:
    model: Any = checkpoint.load_folder(Path(sys.argv[1]))
    sys.stdout.buffer.write(f"{blas.core()}\n".encode())
    sys.stdout.buffer.flush()
    while sys.stdin.buffer.peek(1):
        array = pickle.load(sys.stdin.buffer)
        pickle.dump(np.array(model(mx.array(array))), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
