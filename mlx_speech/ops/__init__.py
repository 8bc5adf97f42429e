"""Operations that MLX is slow at on a CPU."""
