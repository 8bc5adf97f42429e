"""A family of models that is not part of the package, made by the steps of CONTRIBUTING.md: one that tells tones."""
