"""A matrix times a vector, on the threads of the BLAS that serves MLX.

NumPy brings a BLAS of its own, whose threads wait for more work busily, for a tenth of a second: MLX's products that
come next would share the cores with them. Also, telling it how many threads it may have takes as long as a small
product.
"""

from __future__ import annotations

import numpy as np

from mlx_speech.blas import openblas
from mlx_speech.ops.cpu import threads

# numbers of the matrix; of fewer, a second thread begins too late
SMALLEST_FOR_THREADS = 1 << 16
SMALLEST_FOR_NUMPYS_THREADS = 1 << 19

# CBLAS's names of how a matrix lies
_ROW_MAJOR = 101
_NOT_TRANSPOSED = 111


def matrix_vector(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """matrix (outputs, inputs), vector (inputs,) → (outputs,)

    For float32 whose numbers lie one behind the other, where OpenBLAS is loaded, else NumPy's product, as for small
    matrices. Only one thread at a time may call it, as inside `cpu.one_core_per_product`.
    """
    if matrix.size < SMALLEST_FOR_THREADS:
        return matrix @ vector
    library = openblas()
    if library is None or not (_is_plain(matrix) and _is_plain(vector)):
        if matrix.size < SMALLEST_FOR_NUMPYS_THREADS:
            return matrix @ vector
        with threads().blas.limit(limits=threads().count):
            return matrix @ vector
    outputs, inputs = matrix.shape
    result = np.empty(outputs, np.float32)
    before = library.openblas_get_num_threads()
    library.openblas_set_num_threads(threads().count)
    try:
        library.cblas_sgemv(
            *(_ROW_MAJOR, _NOT_TRANSPOSED, outputs, inputs),
            *(1.0, matrix.ctypes.data, inputs, vector.ctypes.data, 1),
            *(0.0, result.ctypes.data, 1),
        )
    finally:
        library.openblas_set_num_threads(before)
    return result


def _is_plain(array: np.ndarray) -> bool:
    """Whether BLAS can read it by its address."""
    return array.dtype == np.float32 and array.flags.c_contiguous and array.flags.aligned
