"""The proof with real weights on real recordings: OpenAI's Whisper base and tiny.en, pyannote's segmentation of 2022
and 3.0, 3D-Speaker's CAM++. Computed with the BLAS and the threads that a user has."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import originals as make
import pytest
import torch
import whisper
from conftest import DATA, real, real_weights, record
from elsewhere import elsewhere
from test_parity import PRECISIONS, package_file
from threadpoolctl import threadpool_limits

from mlx_speech import blas, checkpoint, load_audio
from mlx_speech.convert import convert
from mlx_speech.convert.parity import measures
from mlx_speech.convert.parity.measures import Row
from mlx_speech.convert.parity.whisper import openai_whisper
from mlx_speech.ops import cpu
from mlx_speech.stages.whisper import batched, decode, word_times
from mlx_speech.stages.whisper.tokenizer import Tokenizer

WINDOW = 480_000  # samples that Whisper hears at once
REAL = 20  # recordings; synthetic ones follow
SEGMENTATIONS = ("2022.07", "3.0")
MEETINGS = ("dev00.wav", "dev01.wav")
SPEAKERS = ("audio/en/jfk.flac", *(f"diar/ami_debug/{recording}" for recording in MEETINGS))  # for CAM++
NAMES = (
    "Whisper base (real)",
    "Whisper tiny.en (real)",
    *(f"PyanNet {name} (real), {recording}" for name in SEGMENTATIONS for recording in MEETINGS),
    *(f"CAM++ (real), {Path(recording).name}" for recording in SPEAKERS),
)
SYNTHETIC = Path(__file__).parent / "data" / "languages"


@pytest.fixture(autouse=True)
def as_a_user_has_it() -> Iterator[None]:
    """As many threads as a process has that nobody limits: conftest.py limits the others."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu.threads.cache_clear()
    with threadpool_limits(limits=cores, user_api="blas"), torch.no_grad():
        yield
    cpu.threads.cache_clear()


# --- Whisper ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """At most 30 s of speech; the text where it is known, and the language."""

    samples: np.ndarray
    text: str | None
    language: str


@dataclass(frozen=True)
class Pair:
    """A model and its original, and what both make of the recordings."""

    theirs: Any
    ours: Any
    tokenizer: Tokenizer
    recordings: list[Recording]
    their_audio: list[torch.Tensor]
    our_audio: list[mx.array]

    @property
    def multilingual(self) -> bool:
        return self.tokenizer.multilingual


def recordings() -> list[Recording]:
    """All that is at hand, cut into windows: 20 of them."""
    texts = {entry["file"]: entry.get("text") for entry in json.loads(real("data/manifest.json").read_text())}
    files = [path for path in sorted(real("data/audio").rglob("*")) if path.suffix in (".wav", ".flac", ".mp3")]
    files += sorted(real("data/diar/ami_debug").glob("*.wav"))
    found = []
    for path in files:
        samples = load_audio(path)
        language = path.parent.name if path.parent.name in ("ja", "sv", "zh") else "en"
        for start in range(0, len(samples) - 16_000, WINDOW):
            text = texts.get(path.relative_to(DATA).as_posix())
            found.append(Recording(samples[start : start + WINDOW], text, language))
    assert len(found) == REAL
    return found


def converted(name: str, folder: Path) -> Path:
    """Our model, out of the same folder."""
    convert(str(real_weights(f"whisper-{name}")), folder / "mlx")
    return folder / "mlx"


def pair(name: str, folder: Path) -> Pair:
    theirs = make.whisper_from_ctranslate2(real_weights(f"whisper-{name}") / "model.bin")
    theirs.set_alignment_heads(whisper._ALIGNMENT_HEADS[name])
    path = converted(name, folder)
    ours = checkpoint.load_folder(path)
    tokenizer = Tokenizer.find(path, ours.args.n_vocab)
    windows = recordings()
    if name == "base":
        for path in sorted(SYNTHETIC.glob("*.opus")):
            windows.append(Recording(load_audio(path), None, path.stem))
    their_audio, our_audio = [], []
    for window in windows:
        mel = make.window_mel(window.samples, n_mels=theirs.dims.n_mels)
        their_audio.append(theirs.encoder(mel[None])[0])
        our_audio.append(batched.encode([window.samples], ours)[0])
    return Pair(theirs, ours, tokenizer, windows, their_audio, our_audio)


def compare_logits_of_texts(pair: Pair) -> Row:
    """Of recordings with a known text, each token after those before it; both decoders hear the original's audio."""
    worst, deviation = 0.0, []
    for window, audio in zip(pair.recordings, pair.their_audio, strict=True):
        if window.text is None:
            continue
        start = pair.tokenizer.sot_sequence(window.language if pair.multilingual else None, "transcribe")
        text = pair.tokenizer.encode(f" {window.text}")
        tokens = [*start, pair.tokenizer.no_timestamps, *text, pair.tokenizer.eot]
        expected = pair.theirs.decoder(torch.tensor([tokens]), audio[None]).numpy()
        found = np.array(pair.ours.decoder(mx.array([tokens]), mx.array(audio.numpy())[None]))
        worst = float(np.maximum(worst, np.abs(expected - found).max()))
        deviation.append(expected.std())
    assert len(deviation) == 16
    return Row("16 texts: logits, max difference / deviation", worst / float(np.mean(deviation)), 1e-3)


def compare_decoding(pair: Pair) -> tuple[list[Row], list[whisper.DecodingResult]]:
    """Greedy, with timestamps, the language detected; everything before it, the spectrogram included, is each side's
    own. Returns openai-whisper's results, too."""
    language = None if pair.multilingual else "en"
    options = whisper.DecodingOptions(fp16=False, temperature=0.0, language=language)
    windows = range(REAL)
    expected = whisper.decode(pair.theirs, torch.stack(pair.their_audio[:REAL]), options)
    jobs = [decode.Job(pair.our_audio[index], language, key=index) for index in windows]
    results = decode.decode(jobs, pair.ours, pair.tokenizer, decode.DecodingOptions())
    found = {job.key: result for job, result in results}
    same, apart = 0, 0.0
    for index in windows:
        theirs, ours = expected[index].tokens, list(found[index].tokens)
        if theirs == ours:
            same += 1
            apart = max(apart, abs(expected[index].avg_logprob - found[index].avg_logprob))
        else:
            same += parted_at_a_tie(pair, index, [*theirs, pair.tokenizer.eot], [*ours, pair.tokenizer.eot], language)
    rows = [
        Row("20 recordings: same tokens, share", same / len(windows), 1.0, at_least=True),
        Row("their mean log-probability, max difference", apart, 1e-3),
    ]
    return rows, expected


def parted_at_a_tie(pair: Pair, index: int, theirs: list[int], ours: list[int], language: str | None) -> bool:
    """Whether the two decisions where the texts part are nearer to each other than rounding can tell: than twice the
    largest difference between the logits of both sides."""
    count = next(place for place, (one, other) in enumerate(zip(theirs, ours, strict=False)) if one != other)
    if pair.multilingual:
        language = pair.recordings[index].language
    tokens = [*pair.tokenizer.sot_sequence(language, "transcribe"), *theirs[:count]]
    expected = pair.theirs.decoder(torch.tensor([tokens]), pair.their_audio[index][None])[0, -1].numpy()
    found = np.array(pair.ours.decoder(mx.array([tokens]), pair.our_audio[index][None]))[0, -1]
    rounding = np.abs(expected - found).max()
    return margin(expected, theirs[: count + 1], ours[count], pair.tokenizer.timestamp_begin) <= 2 * rounding


def margin(logits: np.ndarray, tokens: list[int], other: int, timestamp_begin: int) -> float:
    """By how much the last of `tokens` was chosen before `other`. Text and timestamps are weighed against each other by
    the best text and by the sum of all timestamps that may follow."""
    chosen = tokens[-1]
    if (chosen < timestamp_begin) == (other < timestamp_begin):
        return float(abs(logits[chosen] - logits[other]))
    lowest = max([timestamp_begin, *tokens[:-1]])
    timestamps = np.logaddexp.reduce(logits[lowest:])
    return float(abs(timestamps - logits[min(chosen, other)]))


def test_the_margin_of_a_choice() -> None:
    logits = np.array([0.0, 3.0, 2.5, 1.0, 1.0, 2.0], np.float32)
    assert margin(logits, [1], 2, 3) == 0.5
    assert margin(logits, [5], 4, 3) == 1.0
    assert margin(logits, [1], 3, 3) == pytest.approx(3 - np.log(2 * np.e + np.exp(2)))
    assert margin(logits, [4, 1], 5, 3) == pytest.approx(3 - np.log(np.e + np.exp(2)))


def compare_languages(pair: Pair) -> list[Row]:
    spoken = {window.language for window in pair.recordings}
    assert len(spoken) == 7
    found = decode.detect_language(mx.stack(pair.our_audio), pair.ours, pair.tokenizer)
    same, apart = 0, 0.0
    for window, audio, ours in zip(pair.recordings, pair.their_audio, found, strict=True):
        _, theirs = whisper.decoding.detect_language(pair.theirs, audio)
        assert set(theirs) == set(ours)
        same += max(theirs, key=theirs.__getitem__) == max(ours, key=ours.__getitem__) == window.language
        apart = max(apart, *(abs(theirs[code] - ours[code]) for code in theirs))
    return [
        Row("23 recordings in 7 languages: language, share", same / len(found), 1.0, at_least=True),
        Row("probability of a language, max difference", apart, 1e-3),
    ]


def compare_word_times(pair: Pair, expected: list[whisper.DecodingResult]) -> list[Row]:
    """Where both decoders look, of the tokens that openai-whisper heard."""
    pair.theirs.encoder = torch.nn.Identity()  # the audio is encoded already
    apart, less_sure, count = 0.0, 0.0, 0
    for index, result in enumerate(expected):
        their_audio, our_audio = pair.their_audio[index], pair.our_audio[index]
        tokens = [token for token in result.tokens if token < pair.tokenizer.eot]
        frames = len(pair.recordings[index].samples) // 160
        tokenizer = whisper.tokenizer.get_tokenizer(
            pair.theirs.is_multilingual,
            num_languages=pair.theirs.num_languages,
            language=result.language,
            task="transcribe",
        )
        theirs = whisper.timing.find_alignment(pair.theirs, tokenizer, tokens, their_audio, frames)
        ours = word_times.find_alignment(
            our_audio[None], [tokens], pair.ours, pair.tokenizer, languages=[result.language], num_frames=[frames]
        )[0]
        assert [word.word for word in ours] == [word.word for word in theirs]
        for one, other in zip(ours, theirs, strict=True):
            apart = max(apart, abs(one.start - other.start), abs(one.end - other.end))
            less_sure = max(less_sure, abs(one.probability - other.probability))
        count += len(ours)
    assert count > 300
    return [
        Row("20 recordings: time of a word, max difference in s", apart, 0.0),
        Row("probability of a word, max difference", less_sure, 1e-3),
    ]


@pytest.mark.parametrize("name", ["base", "tiny.en"])
def test_the_real_whisper(name: str, tmp_path: Path) -> None:
    models = pair(name, tmp_path)
    case = f"Whisper {name} (real)"
    speech = measures.Inputs(load_audio(real("data/audio/en/jfk.flac")), sequences=8, varied=True)
    rows = measures.measure("whisper", openai_whisper(models.theirs), models.ours, speech)
    rows.append(compare_logits_of_texts(models))
    decoded, expected = compare_decoding(models)
    rows += decoded
    if models.multilingual:
        rows += compare_languages(models)
    rows += compare_word_times(models, expected)
    record(case, "openai-whisper", "float32", rows)
    assert all(row.ok for row in rows), measures.table(rows)


def test_the_real_whisper_in_smaller_precisions(tmp_path: Path) -> None:
    original = make.whisper_from_ctranslate2(real_weights("whisper-tiny.en") / "model.bin")
    golden = np.load(real("weights/whisper-tiny.en-partial/golden_jfk_encoder.npz"))
    mel, expected = (golden[name] for name in sorted(golden.files, key=lambda name: golden[name].shape != (80, 3000)))
    source = make.save_openai(original, tmp_path / "tiny.en.pt")
    speech = load_audio(real("data/audio/en/jfk.flac"))
    few = measures.Inputs(speech, sequences=2, judged=False)  # float16 is slow on a CPU
    theirs = openai_whisper(original)
    theirs = replace(theirs, encode=make.remembered(theirs.encode), decode=make.remembered(theirs.decode))
    for name, options in PRECISIONS.items():
        convert(str(source), tmp_path / name, **options)
        smaller = checkpoint.load_folder(tmp_path / name, dtype="float16" if name == "float16" else None)
        rows = measures.measure("whisper", theirs, smaller, few)
        record("Whisper tiny.en (real)", "openai-whisper", name, rows)
        assert all(np.isfinite(row.value) for row in rows)
    found = original.encoder(torch.from_numpy(mel)[None])[0].numpy()
    assert np.abs(found - expected).max() < 1e-3  # what openai-whisper gave for OpenAI's own file, on another machine


def test_a_real_whisper_is_verified_by_the_command(tmp_path: Path) -> None:
    """It meets its bars, or `convert` would raise, on the recording of the command, where the original itself rounds
    by up to 1e-3."""
    report = convert(str(real_weights("whisper-tiny.en")), tmp_path / "mlx", verify=True)
    assert "| encoder, max difference" in report.tables[""] and "| decoder, 8 sequences" in report.tables[""]


# --- pyannote --------------------------------------------------------------------------------------------------------


def segmentation(name: str, folder: Path) -> tuple[Any, Any]:
    """The original and ours."""
    from pyannote.audio import Model

    if name == "3.0":
        source = real_weights("segmentation-3.0/pytorch_model.bin")
    else:
        source = package_file("whisperx", "assets/pytorch_model.bin")
    convert(str(source), folder / "mlx")
    return Model.from_pretrained(source).eval(), checkpoint.load_folder(folder / "mlx")


def meeting(name: str, recording: str) -> measures.Inputs:
    samples = load_audio(real(f"data/diar/ami_debug/{recording}"))[: 30 * 16_000]
    # in its 10 s, two voices do not overlap here: three classes win
    few_classes = (name, recording) == ("3.0", "dev00.wav")
    return measures.Inputs(samples, varied=not few_classes)


@pytest.mark.parametrize("recording", MEETINGS)
@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_the_real_pyannet(name: str, recording: str, tmp_path: Path) -> None:
    original, model = segmentation(name, tmp_path)
    rows = measures.measure("pyannet", original, model, meeting(name, recording))
    record(f"PyanNet {name} (real), {recording}", "pyannote.audio", "float32", rows)
    assert all(row.ok for row in rows), measures.table(rows)


@pytest.mark.skipif(blas.core() is None, reason="no OpenBLAS")
@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_the_real_pyannet_does_not_depend_on_the_blas(name: str, tmp_path: Path) -> None:
    """Two threads, and OpenBLAS's kernels of every CPU that this one can stand for."""
    original, _ = segmentation(name, tmp_path)
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    for core in [core for flag, core in blas._CORES.items() if flag in flags]:
        with elsewhere(tmp_path / "mlx", OPENBLAS_CORETYPE=core, OPENBLAS_NUM_THREADS="2") as model:
            assert model.core == core
            for recording in MEETINGS:
                rows = measures.measure("pyannet", original, model, meeting(name, recording))
                assert all(row.ok for row in rows), f"{core}, {recording}\n{measures.table(rows)}"


# --- 3D-Speaker ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_campplus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CAM++ in float32 and in float16, in folders of these names."""
    folder = tmp_path_factory.mktemp("campplus")
    source = real_weights("campplus/campplus_cn_en_common.pt")
    for dtype in ("float32", "float16"):
        convert(str(source), folder / dtype, dtype=dtype)
    return folder


def original_campplus() -> Any:
    from speakerlab.models.campplus.DTDNN import CAMPPlus

    model = CAMPPlus(embedding_size=192)
    model.load_state_dict(torch.load(real_weights("campplus/campplus_cn_en_common.pt")))
    return model.eval()


@pytest.mark.parametrize("recording", SPEAKERS)
def test_the_real_campplus(recording: str, real_campplus: Path) -> None:
    speech = measures.Inputs(load_audio(real(f"data/{recording}"))[: 30 * 16_000], varied=True)
    model = checkpoint.load_folder(real_campplus / "float32")
    rows = measures.measure("campplus", original_campplus(), model, speech)
    record(f"CAM++ (real), {Path(recording).name}", "speakerlab", "float32", rows)
    assert all(row.ok for row in rows), measures.table(rows)


@pytest.mark.parametrize("recording", SPEAKERS)
@pytest.mark.parametrize("computed", ["float32", "float16"])
def test_the_real_campplus_with_weights_of_float16(recording: str, computed: str, real_campplus: Path) -> None:
    """The weights that come with the package, computed in float32, as on a CPU, or in float16, as on a GPU; without
    masks and with them."""
    samples = mx.array(load_audio(real(f"data/{recording}"))[: 4 * 16_000])[None]
    masks = (np.random.default_rng(3).random((1, 3, 19)) > 0.5).repeat(31, axis=2)
    exact = checkpoint.load_folder(real_campplus / "float32")
    rounded = checkpoint.load_folder(real_campplus / "float16", dtype=computed)
    for given in (None, masks):
        expected = np.array(exact.embed(samples, given)).reshape(-1, 192)
        found = np.array(rounded.embed(samples, given)).reshape(-1, 192)
        assert len(found) == (1 if given is None else 3)
        assert not np.array_equal(found, expected)
        norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
        assert ((expected * found).sum(axis=1) / norms).min() >= 0.9999
