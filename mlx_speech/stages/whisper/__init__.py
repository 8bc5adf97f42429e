"""Chunks or windows of sound → text: decoding, its rules and tokens, and the times of words."""
