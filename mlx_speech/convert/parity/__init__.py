"""The converted model beside its original: what is common in `measures`, and a file for every family."""

from mlx_speech import backend as backend  # before a measure imports MLX
