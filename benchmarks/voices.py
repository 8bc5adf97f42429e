"""From which cosine on a voice is a known one: `python -m benchmarks.voices`.

Voices are embedded piece by piece: real ones of the test data (speakers by its manifest, by RTTM where several talk),
and synthetic ones of espeak-ng, each with its own formants, accent, pitch and tempo. Every pair of pieces is one voice
or two. The table has, for each threshold, how many pairs of two voices reach it, and how many of one voice do not. Then
each piece is looked up as a recording's speaker is (`mlx_speech.voices.match`): as a stranger where all other voices
are enrolled, and where its own is enrolled, too, from its other pieces.

`--campplus FILE` embeds with the original of CAM++ in PyTorch (of the package `speakerlab`), `--diarize-model FOLDER`
with the embedding of a converted pipeline.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from mlx_speech.audio import load_audio
from mlx_speech.evaluation.references import read_rttm
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.transcript import Turn
from mlx_speech.voices.matching import Thresholds, Voices, match, unit

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("MLX_SPEECH_TEST_DATA", ROOT.parent / "shared")) / "data"
LEAST_SECONDS = 2.0  # of a piece: the shortest that anybody would enrol or look up
PIECE_SECONDS = 6.0  # long recordings are cut into such pieces
THRESHOLDS = np.arange(0.30, 0.81, 0.05)
MOST_FALSE = 0.01  # of pairs of two voices
# Of the test data, who is heard in recordings of a single person; those of one speaker in one row.
RECORDINGS = {
    "Kennedy": ("en/jfk.flac",),
    "LibriVox reader": ("en/librivox_sns_0880.wav", "en/librivox_sns_0920.wav"),
    "caller of cards": ("en/cards_001.wav", "en/cards_005.wav"),
    "LibriSpeech 61": ("en/61-70968-0000.flac",),
    "acoustic corpus": ("en/acoustic_corpus.wav",),
    "LJ": ("en/LJ002-0020.wav",),
    "SpeechBrain 1": ("en/sb_spk1_snt1.wav",),
    "SpeechBrain 2": ("en/sb_spk2_snt2.wav",),
    "burn": ("en/whisper_burn_audio16k.wav",),
    "Arctic": ("en/arctic_a0024.wav",),
    "Common Voice": ("ja/common_voice_ja_24511055.mp3",),
    "NST": ("sv/se10x016-08071999-1334_u0016002.wav", "sv/se10x016-08071999-1334_u0016003.wav"),
    "AISHELL 724": ("zh/aishell-BAC009S0724W0121.wav",),
}
TEXTS = (
    "The boats in the harbour were tied up early, because a storm had been forecast for the evening.",
    "Whoever wants to keep bees needs patience, a quiet garden, and neighbours who like honey.",
    "Our train was late again, so that we walked along the river and talked about the new library.",
)

Embedder = Callable[[np.ndarray], np.ndarray]  # (samples,) at 16 kHz → (dimension,)


@dataclass(frozen=True)
class Piece:
    """Speech of one voice. recording : which it was cut from"""

    voice: str
    recording: str
    samples: np.ndarray


# --- the voices -------------------------------------------------------------------------------------------------------


def real_pieces() -> Iterator[Piece]:
    """Of people: whole recordings, and what a speaker says alone in conversations."""
    for voice, files in RECORDINGS.items():
        for file in files:
            yield from pieces_of(voice, file, load_audio(DATA / "audio" / file))
    meetings = DATA / "diar" / "ami_debug"
    for recording in ("dev00", "dev01"):
        audio = load_audio(meetings / f"{recording}.wav")
        yield from spoken_alone(audio, meetings / "debug.development.rttm", recording)
    spec = importlib.util.find_spec("pyannote.audio")
    if spec is not None and spec.origin is not None:
        sample = Path(spec.origin).parent / "sample"
        yield from spoken_alone(load_audio(sample / "sample.wav"), sample / "sample.rttm", "sample")


def spoken_alone(audio: np.ndarray, rttm: Path, recording: str) -> Iterator[Piece]:
    """What each speaker of a conversation says while nobody else speaks."""
    turns = read_rttm(rttm.read_text(encoding="utf-8"))[recording]
    voices = np.zeros(audio.size, dtype=np.int8)
    for turn in turns:
        voices[samples_of(turn)] += 1
    for speaker in sorted({turn.speaker for turn in turns}):
        stretches: list[np.ndarray] = []
        for turn in turns:
            if turn.speaker == speaker:
                stretch = samples_of(turn)
                stretches.append(audio[stretch][voices[stretch] == 1])
        yield from pieces_of(speaker, recording, np.concatenate(stretches))


def samples_of(turn: Turn) -> slice:
    """Where a turn is, in samples."""
    return slice(round(turn.start * SAMPLE_RATE), round(turn.end * SAMPLE_RATE))


def pieces_of(voice: str, recording: str, audio: np.ndarray) -> Iterator[Piece]:
    """A recording in pieces of about `PIECE_SECONDS`; none where it is too short."""
    seconds = audio.size / SAMPLE_RATE
    if seconds < LEAST_SECONDS:
        return
    count = max(1, round(seconds / PIECE_SECONDS))
    for samples in np.array_split(audio, count):
        yield Piece(voice, recording, samples)


def synthetic_pieces(count: int) -> Iterator[Piece]:
    """Of espeak-ng: `count` voices, each with every one of the texts."""
    from demo.espeak import speak
    from demo.voices import speaker

    for number in range(count):
        voice = speaker(number)
        for index, text in enumerate(TEXTS):
            words = text.lower().replace(",", "").replace(".", "").split()
            yield Piece(voice.name, f"text {index}", speak(words, voice).samples)


# --- the models -------------------------------------------------------------------------------------------------------


def campplus(weights: Path) -> Embedder:
    """CAM++ in PyTorch. weights : as 3D-Speaker publishes them"""
    import torch
    from torchaudio.compliance import kaldi

    architecture = importlib.import_module("speakerlab.models.campplus.DTDNN")
    model = architecture.CAMPPlus(80, 192)
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    model.eval()

    def embed(samples: np.ndarray) -> np.ndarray:
        fbank = kaldi.fbank(torch.from_numpy(samples)[None], num_mel_bins=80, dither=0.0)
        with torch.no_grad():
            return model((fbank - fbank.mean(dim=0))[None])[0].numpy()

    return embed


def of_pipeline(folder: Path) -> Embedder:
    """The embedding of a converted diarization pipeline."""
    from mlx_speech.loading import load
    from mlx_speech.models.diarization_pipeline import Model
    from mlx_speech.stages import diarize

    model = load(folder)
    if not isinstance(model, Model):
        raise SystemExit(f"{folder}: is no diarization pipeline")

    def embed(samples: np.ndarray) -> np.ndarray:
        everywhere = np.ones((1, 100, 1), dtype=np.int8)  # one voice, in all of the window
        (vectors,) = diarize.embed(samples, model.embedding, [0], samples.size, everywhere, 1)
        return np.asarray(vectors)[0, 0]

    return embed


# --- the figures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Cosines of pairs: of one voice in two recordings, of one voice in one, and of two voices."""

    across: np.ndarray
    within: np.ndarray
    different: np.ndarray


def pairs_of(pieces: list[Piece], vectors: np.ndarray) -> Pairs:
    """The cosines of all pairs of pieces. vectors : (pieces, dimension)"""
    directions = unit(vectors)
    cosines = directions @ directions.T
    across: list[float] = []
    within: list[float] = []
    different: list[float] = []
    for one, other in combinations(range(len(pieces)), 2):
        cosine = float(cosines[one, other])
        if pieces[one].voice != pieces[other].voice:
            different.append(cosine)
        elif pieces[one].recording == pieces[other].recording:
            within.append(cosine)
        else:
            across.append(cosine)
    return Pairs(np.array(across), np.array(within), np.array(different))


@dataclass
class Outcomes:
    """What becomes of pieces that are looked up. Strangers are not in the database, known ones are."""

    strangers: int = 0
    strangers_named: int = 0
    known: int = 0
    known_right: int = 0
    known_wrong: int = 0


def looked_up(pieces: list[Piece], vectors: np.ndarray, threshold: float) -> Outcomes:
    """Each piece is looked up twice: where all other voices are enrolled, and where its own is, too, from its other
    pieces. vectors : (pieces, dimension)"""
    thresholds = Thresholds(certain=threshold, doubtful=threshold)
    names = [piece.voice for piece in pieces]
    seconds = [piece.samples.size / SAMPLE_RATE for piece in pieces]
    outcomes = Outcomes()
    for probe, name in enumerate(names):
        others = [k for k in range(len(pieces)) if names[k] != name]
        own = [k for k in range(len(pieces)) if names[k] == name and k != probe]
        found = named(probe, others, names, vectors, seconds, thresholds)
        outcomes.strangers += 1
        outcomes.strangers_named += found is not None
        if own:
            found = named(probe, others + own, names, vectors, seconds, thresholds)
            outcomes.known += 1
            outcomes.known_right += found == name
            outcomes.known_wrong += found not in (None, name)
    return outcomes


def named(
    probe: int,
    enrolled: list[int],
    names: list[str],
    vectors: np.ndarray,
    seconds: list[float],
    thresholds: Thresholds,
) -> str | None:
    """The name that one piece gets from a database of others; None where it is in doubt or unknown."""
    voices = Voices.of([names[k] for k in enrolled], vectors[enrolled], [seconds[k] for k in enrolled], "")
    found = match({"probe": vectors[probe].tolist()}, voices, thresholds).get("probe")
    return None if found is None or found.doubtful else found.name


def report(title: str, pieces: list[Piece], embed: Embedder) -> None:
    """Print the figures of one set of voices."""
    vectors = np.array([embed(piece.samples) for piece in pieces], dtype=np.float64)
    pairs = pairs_of(pieces, vectors)
    voices = len({piece.voice for piece in pieces})
    print(f"\n{title}: {voices} voices, {len(pieces)} pieces")
    print("| pairs of | how many | lowest | 1 % | median | 99 % | highest |")
    print("|---|---|---|---|---|---|---|")
    kinds = {
        "one voice, in two recordings": pairs.across,
        "one voice, in one recording": pairs.within,
        "two voices": pairs.different,
    }
    for kind, cosines in kinds.items():
        if cosines.size:
            cells = " | ".join(f"{value:.2f}" for value in np.percentile(cosines, (0, 1, 50, 99, 100)))
            print(f"| {kind} | {cosines.size} | {cells} |")
    same = np.concatenate([pairs.across, pairs.within])
    print("\n| threshold | pairs of two voices above | of one below | strangers named | known: right | wrong |")
    print("|---|---|---|---|---|---|")
    for threshold in THRESHOLDS:
        false = float(np.mean(pairs.different >= threshold))
        misses = float(np.mean(same < threshold))
        outcomes = looked_up(pieces, vectors, float(threshold))
        strangers = f"{outcomes.strangers_named} of {outcomes.strangers}"
        known = f"{outcomes.known_right} of {outcomes.known} | {outcomes.known_wrong}"
        print(f"| {threshold:.2f} | {false:.2%} | {misses:.1%} | {strangers} | {known} |")
    least = float(np.quantile(pairs.different, 1 - MOST_FALSE))
    misses = float(np.mean(same < least))
    print(f"\nat most {MOST_FALSE:.0%} of pairs of two voices from {least:.2f} on; misses there: {misses:.1%}")


def main() -> None:
    """Print the tables of real and of synthetic voices."""
    parser = argparse.ArgumentParser(description="cosines of one voice and of two")
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--campplus", type=Path, metavar="FILE", help="weights of the original")
    models.add_argument("--diarize-model", type=Path, metavar="FOLDER", help="a converted pipeline")
    parser.add_argument("--synthetic", type=int, default=66, metavar="N", help="voices of espeak-ng (default 66)")
    options = parser.parse_args()
    embed = of_pipeline(options.diarize_model) if options.diarize_model else campplus(options.campplus)
    report("people", list(real_pieces()), embed)
    if options.synthetic:
        report("espeak-ng", list(synthetic_pieces(options.synthetic)), embed)


if __name__ == "__main__":
    main()
