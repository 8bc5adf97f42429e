"""OpenAI's Realtime API of transcription: sound comes in through a socket, text goes out as it is said.

`session` carries messages, `configuration` and `events` know their shapes, `sound` makes samples of bytes. What
hears them is a `Recogniser` (`recognition`), which knows nothing of sockets: `turns` is one.
"""
