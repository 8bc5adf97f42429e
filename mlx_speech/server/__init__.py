"""OpenAI's audio API, jobs for long recordings, live sessions and a page, in front of a `Pipeline`."""
