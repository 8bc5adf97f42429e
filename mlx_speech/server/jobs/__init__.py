"""Jobs: recordings that are transcribed while nobody waits at the line, and can be asked for afterwards."""
