"""Chunks or windows of sound → text: decoding, its rules, its tokens, and the times of the
words."""
