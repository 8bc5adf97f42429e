"""A process that writes a journal and its sound until it is killed: `live_journal_process.py JOURNAL SOUND`.

Its session hears a tenth of a second at a time, and a chunk is final every half second. It says `final N` when its
record was handed to the journal.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np
from scripted_live import ScriptedSession, final, speakers

from mlx_speech.live.events import Block, Final
from mlx_speech.live.journal import Journal
from mlx_speech.live.saved import SavedSound

CHUNKS = 10_000


def main(journal_path: Path, sound_path: Path) -> None:
    journal = Journal(journal_path)
    sound = SavedSound(sound_path, goes_on=journal.recovered.sessions > 0)
    continued = journal.begin({"language": "en"}, offset=sound.seconds)
    sound.fill(continued.offset)
    script = [(0.0, speakers(0.0, [(0.0, 1e5, None, "SPEAKER_00")], 1e5))]
    script += [(0.5 * (k + 1), final(k, 0.5 * k, f"word{k}", speaker="SPEAKER_00")) for k in range(CHUNKS)]
    session = ScriptedSession(script)
    block = Block(np.full(1600, 0.25, np.float32))

    def feed() -> None:
        while True:
            sound.add(block)
            session.feed(block)
            time.sleep(0.001)  # a hundred times faster than it is spoken

    threading.Thread(target=feed, daemon=True).start()
    for told in session.events():
        event = continued.event(told)
        journal.add(event)
        if isinstance(event, Final):
            print("final", event.chunk, event.segments[0].text, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
