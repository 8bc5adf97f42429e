"""The steps from a recording to a transcript, one module each. They do not import each other."""
