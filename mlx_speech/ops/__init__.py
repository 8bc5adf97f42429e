"""Operations that MLX computes slowly on a CPU, one a file: there they run in NumPy, up to ten times faster.

Each file has one public function, which says which way it goes, and its two ways: a function of MLX's graph and one of
NumPy. On a GPU, for other dtypes than float32, for small arrays and inside mx.compile and mx.vmap it is the graph;
derivatives are the graph's everywhere. What the NumPy versions share is in `cpu`.
"""

from mlx_speech import backend as backend  # before an operation imports MLX
