"""`mlx_speech speakers`: the database of known voices. Each action is a subcommand of its own."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from mlx_speech.cli import outputs
from mlx_speech.cli.parser import add_command, add_models
from mlx_speech.cli.screen import Bars, Say
from mlx_speech.cli.setup import prepare
from mlx_speech.errors import AudioError, CorruptFile, OptionError, in_range

if TYPE_CHECKING:
    import numpy as np

    from mlx_speech.models.diarization_pipeline import Model
    from mlx_speech.stages.voiceprints import Voiceprint
    from mlx_speech.voices import Enrolment, SpeakerStore
    from mlx_speech.voices.store import KnownSpeaker

DESCRIPTION = (
    "Known voices: transcribe --diarize --speakers gives them their names. A voiceprint is biometric data: enrol those "
    "who agree."
)


# --- flags ------------------------------------------------------------------------------------------------------------


def add_parser(group: Any) -> None:
    """The command, its actions and their flags."""
    parser = group.add_parser("speakers", help="known voices, by name", description=DESCRIPTION)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _add_enrolment(actions)
    action = _action(actions, run_again, "enrol-again", "kept sound by another diarization model")
    add_models(action)
    _action(actions, run_list, "list", "names, seconds heard, days, embedding models")
    action = _action(actions, run_remove, "remove", "forget people; nothing is left of them")
    action.add_argument("names", nargs="+", metavar="NAME")
    action = _action(actions, run_rename, "rename", "call somebody by another name")
    action.add_argument("old", metavar="OLD")
    action.add_argument("new", metavar="NEW")
    action.add_argument(
        "--merge", action="store_true", default=False, help="NEW is known, too, and both are one person"
    )
    action = _action(actions, run_export, "export", "names and vectors as JSON")
    action.add_argument("target", nargs="?", default="-", metavar="FILE.json", help="default: standard output")
    action = _action(actions, run_import, "import", "names and vectors from such files")
    action.add_argument("files", nargs="+", metavar="FILE.json")
    action = _action(actions, run_learn, "learn", "enrol the named speakers of transcripts")
    action.add_argument(
        "files", nargs="+", metavar="FILE.json", help="written with --speaker-embeddings, then corrected"
    )


def _add_enrolment(actions: Any) -> None:
    action = _action(actions, run_add, "add", "enrol a voice from recordings of one person")
    action.add_argument("name", metavar="NAME")
    action.add_argument("audio", nargs="+", metavar="FILE", help="in which this person alone is heard")
    action.add_argument("--from", dest="start", type=float, metavar="SECONDS", help="where the person begins to speak")
    action.add_argument("--to", dest="end", type=float, metavar="SECONDS", help="where that ends")
    action.add_argument("--keep-audio", action="store_true", default=False, help="store the sound, too")
    add_models(action)


def _action(actions: Any, run: Callable[..., int], name: str, help: str) -> argparse.ArgumentParser:
    """The parser of one action. help : also its description, as a sentence"""
    description = f"{help[0].upper()}{help[1:]}."
    renamed = {"speaker_embeddings": "speaker_embeddings"}  # a flag of transcribe, that messages name
    parser = add_command(actions, run, name, help, description, only_given=True, renamed=renamed)
    parser.add_argument("--db", default=None, metavar="FILE", help="of known voices (default: the user's own)")
    if run not in (run_add, run_again):  # which have it among the flags of models
        parser.add_argument("-v", "--verbose", action="store_true", default=False, help="tracebacks of errors")
    return parser


# --- enrolling --------------------------------------------------------------------------------------------------------


def run_add(
    name: str,
    audio: list[str],
    keep_audio: bool,
    db: str | None,
    verbose: bool,
    say: Say,
    start: float | None = None,
    end: float | None = None,
    **given: Any,
) -> int:
    """Enrol a voice from each of the recordings: from all of them, or, where one will not do, from none."""
    from mlx_speech.audio import MAX_DURATION
    from mlx_speech.voices.enrolments import checked_name

    name = checked_name(name)
    audio = list(dict.fromkeys(audio))
    _check_stretch(audio, start, end)
    store = _store(db)
    bars = Bars(given.pop("print_progress"))
    max_duration = given.pop("max_duration", MAX_DURATION)
    model = _model(given, say)
    enrolments: list[Enrolment] = []
    with closing(bars):
        for source in audio:
            enrolments.append(_heard(name, source, model, start, end, max_duration, keep_audio, bars))
    added = store.add_all(enrolments)
    seconds = sum(enrolment.seconds for enrolment in enrolments)
    print(f"{name}: {seconds:.1f} s of speech; {_counted(added, len(enrolments))}; in {store.path}")
    return 0


def run_again(db: str | None, verbose: bool, say: Say, **given: Any) -> int:
    """Enrol from the sound that is kept whom this diarization model has not heard yet."""
    from mlx_speech.voices.enrolments import Enrolment, samples_of

    store = _existing(db)
    kept = [enrolment for enrolment in store.enrolments() if enrolment.audio is not None]
    if not kept:
        raise OptionError(f"{store.path}: no sound is kept: mlx_speech speakers add enrols people again")
    bars = Bars(given.pop("print_progress"))
    given.pop("max_duration", None)
    model = _model(given, say)
    enrolments: list[Enrolment] = []
    failed: list[str] = []
    with closing(bars):
        for enrolment in kept:
            if enrolment.model == model.embedding.identity or enrolment.audio is None:
                continue
            try:
                found = _voiceprint(samples_of(enrolment.audio), model, enrolment.name, 0.0, bars)
            except AudioError as error:
                failed.append(str(error))
                continue
            enrolments.append(Enrolment.of(enrolment.name, found))
    added = store.add_all(enrolments)
    print(f"{_counted(added, len(enrolments))}; in {store.path}")
    for message in failed:
        say(message)
    return 1 if failed else 0


def _model(given: dict[str, Any], say: Say) -> Model:
    """The diarization model that flags of `add_models` ask for; all of them are taken out of `given`."""
    from mlx_speech.loading import Models

    name = given.pop("diarize_model", None)
    prepare(say, **given)
    return Models(diarize_model=name).diarization()


def _check_stretch(audio: list[str], start: float | None, end: float | None) -> None:
    """Raises `OptionError` for a stretch that cannot be, or of several recordings."""
    if start is None and end is None:
        return
    if len(audio) > 1:
        raise OptionError(f"--from and --to are for one recording, and {len(audio)} are given: add them one by one")
    in_range(0, math.inf, start=start, end=end)
    if end is not None and end <= (start or 0.0):
        raise OptionError(f"--to {end:g} is not after --from {start or 0.0:g}: give seconds, in order")


def _heard(
    name: str,
    source: str,
    model: Model,
    start: float | None,
    end: float | None,
    max_duration: float,
    keep_audio: bool,
    bars: Bars,
) -> Enrolment:
    """The voice in a stretch of a recording. Raises `AudioError` where it is not one person's."""
    from mlx_speech.audio import load_audio, louder
    from mlx_speech.samples import SAMPLE_RATE
    from mlx_speech.voices.enrolments import Enrolment, pcm

    first = start or 0.0
    samples = load_audio(source, max_duration=max_duration)
    duration = samples.size / SAMPLE_RATE
    if first >= duration:
        raise AudioError(f"{source}: lasts {duration:.1f} s, and --from is {first:g}: choose an earlier stretch")
    last = duration if end is None else min(end, duration)
    samples = louder(samples[round(first * SAMPLE_RATE) : round(last * SAMPLE_RATE)], source)

    found = _voiceprint(samples, model, source, first, bars)
    return Enrolment.of(name, found, audio=pcm(samples) if keep_audio else None)


def _voiceprint(samples: np.ndarray, model: Model, source: str, first: float, bars: Bars) -> Voiceprint:
    """The voice in samples, with a bar. source : names them; first : seconds where they begin in it

    Raises `AudioError` as `stages.voiceprints.voiceprint`, with the source.
    """
    from mlx_speech.samples import SAMPLE_RATE
    from mlx_speech.stages.voiceprints import voiceprint

    seconds = samples.size / SAMPLE_RATE

    def report(done: float) -> None:
        bars("diarize", done * seconds, seconds, source)

    try:
        return voiceprint(samples, model, offset=first, on_progress=report)
    except AudioError as error:
        raise AudioError(f"{source}: {error}") from error


def run_learn(files: list[str], db: str | None, verbose: bool, say: Say) -> int:
    """Enrol the speakers of transcripts who have a name: of all of them, or, where one will not do, of none."""
    from mlx_speech.voices import learn

    store = _store(db)
    enrolments: list[Enrolment] = []
    for source in dict.fromkeys(files):
        transcript = outputs.read_transcript(source)
        try:
            enrolments += learn(transcript)
        except OptionError as error:
            raise OptionError(f"{source}: {error}") from error
    added = store.add_all(enrolments)
    names = sorted({enrolment.name for enrolment in enrolments})
    print(f"{', '.join(names)}: {_counted(added, len(enrolments))}; in {store.path}")
    return 0


# --- looking after the database ---------------------------------------------------------------------------------------


def run_list(db: str | None, verbose: bool, say: Say) -> int:
    """Print a line for everybody who is known."""
    speakers = _existing(db).speakers()
    width = max((len(speaker.name) for speaker in speakers), default=0)
    for speaker in speakers:
        print(f"{speaker.name:{width}}  {_line(speaker)}")
    if not speakers:
        say("nobody is known yet: mlx_speech speakers add enrols somebody")
    return 0


def _line(speaker: KnownSpeaker) -> str:
    """What is known of somebody beside the name."""
    times = "once" if speaker.enrolments == 1 else f"{speaker.enrolments} times"
    entries = [f"{speaker.seconds:.1f} s, enrolled {times}, {speaker.last.isoformat()}", *speaker.models]
    if speaker.with_audio:
        entries.append(f"sound kept of {speaker.with_audio}")
    return "; ".join(entries)


def run_remove(names: list[str], db: str | None, verbose: bool, say: Say) -> int:
    """Forget people."""
    store = _existing(db)
    store.remove(names)
    print(f"{', '.join(dict.fromkeys(names))}: removed from {store.path}")
    return 0


def run_rename(old: str, new: str, merge: bool, db: str | None, verbose: bool, say: Say) -> int:
    """Call somebody by another name."""
    store = _existing(db)
    store.rename(old, new, merge=merge)
    print(f"{old} is now {new}, in {store.path}")
    return 0


def run_export(target: str, db: str | None, verbose: bool, say: Say) -> int:
    """Write everybody's names and vectors as JSON, into a file that only the user may read."""
    from mlx_speech.folders import expand
    from mlx_speech.voices import exchange

    enrolments = _existing(db).enrolments()
    text = exchange.to_json(enrolments)
    if target == "-":
        print(text, end="")
        return 0
    path = expand(target)
    outputs.write(path, text, private=True)
    names = {enrolment.name for enrolment in enrolments}
    print(f"{len(names)} names, {len(enrolments)} enrolments: written to {path}")
    return 0


def run_import(files: list[str], db: str | None, verbose: bool, say: Say) -> int:
    """Take in exports: all of them, or, where one will not do, none."""
    from mlx_speech.checkpoint import read_json
    from mlx_speech.folders import expand
    from mlx_speech.voices import exchange

    store = _store(db)
    enrolments: list[Enrolment] = []
    for source in dict.fromkeys(files):
        content = read_json(expand(source))
        try:
            enrolments += exchange.from_dict(content)
        except CorruptFile as error:
            raise CorruptFile(f"{source}: {error}") from error
    added = store.add_all(enrolments)
    print(f"{_counted(added, len(enrolments))}; in {store.path}")
    return 0


def _store(db: str | None) -> SpeakerStore:
    """The database, which need not be there yet."""
    from mlx_speech.voices import SpeakerStore

    return SpeakerStore(db)


def _existing(db: str | None) -> SpeakerStore:
    """The database. Raises `SourceNotFound` where there is none."""
    store = _store(db)
    store.check_exists()
    return store


def _counted(added: int, given: int) -> str:
    """How many of the enrolments that were given are new."""
    text = f"{added} enrolled"
    if added < given:
        text += f", {given - added} known already"
    return text
