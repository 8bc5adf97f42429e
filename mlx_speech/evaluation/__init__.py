"""How good results are, beside references."""
