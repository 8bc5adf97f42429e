"""Archives: thousands of recordings on many machines. `transcribe(manifest, out, …)` goes on where it ended.

Read from `run.transcribe` down. One process runs the archive (`run`): it reads the manifest (`manifest`, `storage`),
gives each recording a name (`naming`), keeps the line of what waits (`line`), and is the only one to write results
(`results`), the corpus (`shards`, `corpus`) and the journal (`journal`). Ray starts the processes that transcribe
(`fleet`), each with a pipeline of its own (`worker`), for which pieces of long recordings are cut out of them
(`pieces`). Needs the extra `ray`.
"""

from __future__ import annotations

from mlx_speech.archive.items import Entry, Failed
from mlx_speech.archive.manifest import read_manifest
from mlx_speech.archive.progress import Progress
from mlx_speech.archive.results import Result
from mlx_speech.archive.run import Plan, Report, results, transcribe

__all__ = ["Entry", "Failed", "Plan", "Progress", "Report", "Result", "read_manifest", "results", "transcribe"]
