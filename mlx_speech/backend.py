"""Imported by what computes, before it imports MLX: loads OpenBLAS where that helps and is wanted (`blas.preload`)."""

from mlx_speech.blas import preload

preload()
