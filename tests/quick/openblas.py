"""Import this before anything that imports MLX: on Linux CPUs OpenBLAS has to be there first."""

from __future__ import annotations

from mlx_speech import blas

blas.preload()
