"""How fast, beside what a user would pick instead: `python -m benchmarks`. See `suite.py` for how it is measured."""
