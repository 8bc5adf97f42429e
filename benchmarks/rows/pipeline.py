"""Row 6: the whole chain beside the stack a user has today: silero-vad, faster-whisper, wav2vec2 and WhisperX's
trellis, pyannote.audio; and beside WhisperX itself.

With real weights and real speech, texts are held to what was said. Without them Whisper tiny is planted: its decoder
computes as ever, but what its blocks add is zero, so that the token after position k is the one that stands in position
k's embedding. Every contender writes the same English text into each chunk.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models, word_errors
from benchmarks.rows import attention, diarization, words
from benchmarks.rows import whisper_checks as checks
from benchmarks.rows import whisper_peers as peers
from benchmarks.suite import OURS, Call, Row, Work

WHISPERX = "WhisperX"
OWN_SPEAKERS = f"{OURS}, the package's own models of speakers"
STACK = "silero-vad + faster-whisper + wav2vec2 + pyannote.audio"
SECONDS = 60  # of sound, at least, on a CPU
CHUNK, BATCH = 30, 8
TEXT = " We met at the station and walked along the river until the rain began to fall on the old town" * 8


def rows(device: str, quick: bool) -> list[Row]:
    seconds = 12 if quick else SECONDS if device == "cpu" else 600
    real = not quick and models.are_at_hand()
    contenders: dict[str, Any] = {OURS: ours, STACK: stack}
    if real:
        contenders |= {OWN_SPEAKERS: ours_with_own_speakers, WHISPERX: whisperx}
    text = "real speech, Whisper base" if real else f"Whisper tiny, {checks.TOKENS} tokens a chunk"
    duration = models.spoken(seconds).samples.size / models.RATE if real else seconds
    return [
        Row(
            "pipeline",
            f"{duration:.0f} s: speech, text ({text}), word times, {diarization.SPEAKERS} speakers",
            contenders,
            {"device": device, "quick": quick, "seconds": seconds},
            functools.partial(agree_with_what_was_said, seconds=seconds) if real else agree,
            seconds=duration,
            work=None if quick or real else _work(device, seconds),
            targets={STACK: 3.0} | ({WHISPERX: 3.0} if real else {}),
            most=3 if device == "cpu" else 5,
            once=(WHISPERX, OWN_SPEAKERS) if device == "cpu" else (),
        )
    ]


def _work(device: str, seconds: float) -> Work:
    """Of the chunks that there are at least; the speech detection is nothing beside the others."""
    dims, chunks = models.whisper("tiny").sizes, math.ceil(seconds / CHUNK)
    size = 4 if device == "cpu" else 2
    parts = [checks.encoder_work(dims, chunks, size), checks.decoder_work(dims, [checks.TOKENS] * chunks, size)]
    parts += [words.wav2vec2_work(CHUNK)] * chunks
    parts += [diarization.work_of("whole", len(diarization.starts(seconds)))]
    return Work(sum(part.operations for part in parts), sum(part.bytes for part in parts))


def _given(quick: bool, seconds: float) -> tuple[models.Whisper, np.ndarray]:
    """Whisper, and what it hears, (samples,)."""
    if quick or not models.are_at_hand():
        return planted(quick), models.speech(seconds)
    return models.real_whisper("base"), models.spoken(seconds).samples


# --- the planted Whisper ---------------------------------------------------------------------------------------------


def planted(quick: bool) -> models.Whisper:
    """Made once, in another process."""
    folder = models.cache_folder() / f"planted-{'quick' if quick else 'tiny'}"
    files = models.whisper("tiny", quick)
    if not folder.exists():
        part = folder.with_name(f".{folder.name}-{os.getpid()}")
        command = [sys.executable, "-m", "benchmarks.rows.pipeline", str(files.transformers), str(part)]
        done = subprocess.run(command, cwd=models.ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"Whisper could not be planted\n{done.stderr}")
        try:
            part.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(part)
    return files._replace(transformers=folder / "transformers", ours=folder / "ours")


def _plant(source: Path, folder: Path) -> None:
    from safetensors.numpy import load_file, save_file
    from tokenizers import Tokenizer

    from mlx_speech.convert import convert

    target = folder / "transformers"
    shutil.copytree(source, target)
    text = Tokenizer.from_file(str(target / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    weights = load_file(target / "model.safetensors")
    positions = weights["model.decoder.embed_positions.weight"]
    embedding = np.random.default_rng(9).normal(size=weights["model.decoder.embed_tokens.weight"].shape)
    embedding = (embedding / np.linalg.norm(embedding, axis=1, keepdims=True)).astype(np.float32)
    own = text[: checks.TOKENS] + text[-1:] * len(positions)
    own = (text[:1] * (checks.PROMPT - 1) + own)[: len(positions)]  # the text follows the last of the prompt
    for name, array in weights.items():
        if "decoder" in name and re.search(r"\.(out_proj|fc2)\.", name):
            weights[name] = np.zeros_like(array)
        elif "embed_tokens" in name or "proj_out" in name:
            weights[name] = 3 * embedding
        elif "decoder.embed_positions" in name:
            weights[name] = 40 * embedding[own]
        elif "decoder.layer_norm." in name:
            weights[name] = np.full_like(array, name.endswith("weight"))
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    convert(str(target), folder / "ours", dtype="float32")


# --- contenders ------------------------------------------------------------------------------------------------------

Output = dict[str, Any]  # the "text" in words, how many "words" have times, "turns", "stages" with their seconds


def ours(device: str, quick: bool, seconds: float, own_speakers: bool = False) -> Call:
    models.use_mlx(device)
    from mlx_speech.package_data import SPEAKERS
    from mlx_speech.pipeline import Pipeline

    files, audio = _given(quick, seconds)
    pipeline = Pipeline(
        files.ours,
        align_model=models.wav2vec2(quick).ours,
        diarize_model=SPEAKERS if own_speakers else models.diarization(quick).ours,
        dtype=peers.precision(device),
        batch_size=BATCH,
    )
    options: dict[str, Any] = {"language": "en", "temperature": 0.0, "num_speakers": diarization.SPEAKERS}
    if not files.is_real:
        options |= {**checks.OPTIONS, **checks.OFF, "suppress_tokens": [checks.END], "segment_resolution": "chunk"}

    def call() -> Output:
        result = pipeline(audio, **options)
        turns = [(turn.start, turn.end, turn.speaker) for turn in result.diarization.turns]
        text = " ".join(segment.text for segment in result.segments).split()  # a chunk is split where speakers change
        found = [word.aligned for segment in result.segments for word in segment.words]
        return {"text": text, "words": sum(found), "turns": turns, "stages": dict(result.seconds)}

    return call


def ours_with_own_speakers(**arguments: Any) -> Call:
    return ours(**arguments, own_speakers=True)


def stack(device: str, quick: bool, seconds: float) -> Call:
    import torch

    threads = torch.get_num_threads()
    import silero_vad
    from faster_whisper import BatchedInferencePipeline
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    torch.set_num_threads(threads)  # silero-vad has set one
    files, audio = _given(quick, seconds)
    place = attention.TORCH[device]
    vad = silero_vad.load_silero_vad()
    recogniser = BatchedInferencePipeline(peers.faster_whisper(files, device, "float"))
    folder = models.wav2vec2(quick).original
    front, aligner = Wav2Vec2FeatureExtractor.from_pretrained(folder), Wav2Vec2ForCTC.from_pretrained(folder)
    aligner = aligner.to(place).eval()
    trellis, diarizer = words.whisperx_functions(), diarization.pyannote(device, quick)
    index = json.loads((folder / "vocab.json").read_text())
    options: dict[str, Any] = {"language": "en", "beam_size": 1, "temperature": 0.0, "batch_size": BATCH}
    if not files.is_real:  # it writes half of the tokens that it is given, with the prompt
        options |= {"suppress_tokens": [checks.END], "suppress_blank": False}
        options |= {"max_new_tokens": 2 * checks.TOKENS - checks.PROMPT}

    def align(segment: Any) -> list[tuple[float, float]]:
        """The times of a chunk's words; none where they cannot be found."""
        sound = audio[int(segment.start * models.RATE) : int(segment.end * models.RATE)]
        with torch.inference_mode():
            inputs = front(sound, sampling_rate=models.RATE, return_tensors="pt").input_values.to(place)
            emission = torch.log_softmax(aligner(inputs).logits, dim=-1)[0].cpu()
        spelled = ["".join(letter for letter in word if letter in index) for word in segment.text.upper().split()]
        text = "|".join(word for word in spelled if word)
        tokens = [index[letter] for letter in text]
        path = trellis["backtrack"](trellis["get_trellis"](emission, tokens, 0), emission, tokens, 0)
        if path is None:
            return []
        ratio = (segment.end - segment.start) / len(emission)
        first = {point.token_index: point.time_index for point in reversed(path)}
        last = {point.token_index: point.time_index + 1 for point in path}
        spans = [match.span() for match in re.finditer(r"[^|]+", text)]
        return [(segment.start + ratio * first[a], segment.start + ratio * last[b - 1]) for a, b in spans]

    def call() -> Output:
        moments = [time.perf_counter()]
        regions = silero_vad.get_speech_timestamps(torch.from_numpy(audio), vad, max_speech_duration_s=CHUNK)
        chunks = merged([(one["start"] / models.RATE, one["end"] / models.RATE) for one in regions])
        moments.append(time.perf_counter())
        cuts = [{"start": start, "end": end} for start, end in chunks]
        segments, _ = recogniser.transcribe(audio, clip_timestamps=cuts, **options)
        segments = list(segments)
        moments.append(time.perf_counter())
        times = [align(segment) for segment in segments]
        moments.append(time.perf_counter())
        turns = diarization.turns_of(diarizer(diarization.file_of(audio), num_speakers=diarization.SPEAKERS))
        speakers = [speaker_of(word, turns) for own in times for word in own]
        moments.append(time.perf_counter())
        stages = dict(zip(("vad", "transcribe", "align", "diarize"), np.diff(moments).tolist(), strict=True))
        text = " ".join(segment.text for segment in segments).split()
        return {"text": text, "words": len(speakers), "turns": turns, "stages": stages}

    return call


def whisperx(device: str, quick: bool, seconds: float) -> Call:
    """Its own functions as its command line calls them, greedy, beside the PyTorch that is here: its pins ask for an
    older one. nltk's table of abbreviations cannot be had offline: sentences are split by an untrained splitter."""
    import torch

    threads = torch.get_num_threads()
    from nltk.tokenize.punkt import PunktSentenceTokenizer
    from whisperx import alignment, asr, diarize

    torch.set_num_threads(threads)
    alignment.nltk_load = lambda name: PunktSentenceTokenizer()
    files, audio = _given(quick, seconds)
    place = attention.TORCH[device]
    recogniser = asr.load_model(
        str(files.ctranslate2),
        "cuda" if device == "cuda" else "cpu",
        compute_type=peers.precision(device),
        language="en",
        asr_options={"beam_size": 1, "temperatures": [0.0]},
        threads=peers.threads(),
    )
    aligner, known = alignment.load_align_model("en", place, str(models.wav2vec2(quick).original))
    diarizer = diarize.DiarizationPipeline(str(models.diarization(quick).original), device=place)

    def call() -> Output:
        moments = [time.perf_counter()]
        found = recogniser.transcribe(audio, batch_size=BATCH)
        moments.append(time.perf_counter())
        aligned = alignment.align(found["segments"], aligner, known, audio, place)
        moments.append(time.perf_counter())
        table = diarizer(audio, num_speakers=diarization.SPEAKERS)
        diarize.assign_word_speakers(table, aligned)
        moments.append(time.perf_counter())
        turns = sorted(zip(table["start"].tolist(), table["end"].tolist(), table["speaker"].tolist(), strict=True))
        stages = dict(zip(("vad and transcribe", "align", "diarize"), np.diff(moments).tolist(), strict=True))
        text = " ".join(segment["text"] for segment in found["segments"]).split()
        timed = sum("start" in word for word in aligned["word_segments"])
        return {"text": text, "words": timed, "turns": turns, "stages": stages}

    return call


def merged(regions: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Chunks of at most `CHUNK` seconds, as WhisperX merges them."""
    chunks: list[tuple[float, float]] = []
    for start, end in regions:
        if chunks and end - chunks[-1][0] <= CHUNK:
            chunks[-1] = chunks[-1][0], end
        else:
            chunks.append((start, end))
    return chunks


def speaker_of(word: tuple[float, float], turns: diarization.Turns) -> str | None:
    """Who speaks most of the time of a word."""
    heard: dict[str, float] = {}
    for start, end, speaker in turns:
        if (common := min(end, word[1]) - max(start, word[0])) > 0:
            heard[speaker] = heard.get(speaker, 0.0) + common
    return max(heard, key=lambda speaker: heard[speaker], default=None)


def agree(outputs: Mapping[str, Output]) -> str:
    mine, said = outputs[OURS], []
    for name, output in outputs.items():
        assert output["text"] == mine["text"], (name, output["text"], mine["text"])
        share = diarization.same_time(mine["turns"], output["turns"])
        assert share >= 0.98, (name, share)
        said.append(f"{name} {_work_done(output)}")
    same = f"the same {len(mine['text'])} words, {100 * share:.1f} % of the time the same speakers"
    return "; ".join([same, *said])


def agree_with_what_was_said(outputs: Mapping[str, Output], seconds: float) -> str:
    """No more word errors than the others have; with the same models of speakers, the same speakers."""
    errors = word_errors.count({name: " ".join(output["text"]) for name, output in outputs.items()}, seconds)
    said = []
    for name, output in outputs.items():
        assert errors[OURS].wrong <= errors[name].wrong, errors
        if name not in (OURS, OWN_SPEAKERS):
            share = diarization.same_time(outputs[OURS]["turns"], output["turns"])
            assert share >= 0.98, (name, share)
        said.append(f"{name} has {errors[name]}, {_work_done(output)}")
    return "; ".join(said)


def _work_done(output: Output) -> str:
    stages = ", ".join(f"{stage} {seconds:.2g} s" for stage, seconds in output["stages"].items())
    return f"gave {output['words']} words a time of their own, and first took {stages}"


if __name__ == "__main__":
    _plant(Path(sys.argv[1]), Path(sys.argv[2]))
