"""Sound that is still coming in: words while they are spoken, and in the end what a file of it would have given.

`events` is what a session tells, `session` what its caller holds, `hearing` its work in the engine's thread.
`sources` are microphones, pipes and growing files; `journal` keeps what is final.
"""
