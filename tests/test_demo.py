"""The models that come with the package: how well they hear, and the command that shows it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from demo_table import measure, table, truths

from mlx_speech import cli, load_audio, package_data
from mlx_speech.errors import OptionError
from mlx_speech.evaluation.references import read_truth
from mlx_speech.evaluation.scores import score
from mlx_speech.pipeline import Pipeline
from mlx_speech.transcript import Diarization, Segment, Transcript, Turn, Word

# bars for voices of espeak-ng that training never heard, float32
WER, DER, ATTRIBUTED, STARTS, BOUNDARY, SPEECH = 0.10, 0.10, 0.90, 0.90, 0.030, 0.05
WORSE = {8: 0.005, 4: 0.02}  # WER that a quantized Whisper may add
RECORDINGS = 5  # of a minute; the README's table has all ten


@pytest.fixture(scope="module", autouse=True)
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The models are converted once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("MLX_SPEECH_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def _own_cache() -> None:
    """In place of every test's own."""


# --- quality ---------------------------------------------------------------------------------------------------------


def test_recordings_of_unheard_voices() -> None:
    """All figures in one test, since the whole pipeline has to run for each of them."""
    found = measure("espeak", most=RECORDINGS)
    quantized = {bits: measure("espeak", bits, RECORDINGS) for bits in WORSE}
    print(f"\n{table([found, *quantized.values()])}")
    s, speech = found.scores, found.speech or 0.0
    failed = {
        "WER": s.wer > WER,
        "DER": s.der > DER,
        "words with their speaker": s.attributed < ATTRIBUTED,
        "word starts": s.starts < STARTS,
        "word boundaries": s.boundary > BOUNDARY,
        "speech": speech > SPEECH,
        **{f"{bits} bits": quantized[bits].scores.wer > s.wer + more for bits, more in WORSE.items()},
    }
    assert not [name for name, missed in failed.items() if missed], f"\n{table([found, *quantized.values()])}"


def test_the_sets_are_what_they_are_said_to_be() -> None:
    for kind, least in (("espeak", 500), ("flite", 120)):
        given = truths(kind)
        assert sum(truth.duration for truth in given.values()) > least
        for path, truth in given.items():
            assert load_audio(path).size == pytest.approx(16000 * truth.duration, abs=1)
            assert all(segment.words for segment in truth.segments)
            spelled = [[word.text for word in segment.words] for segment in truth.segments]
            written = [segment.text.lower().rstrip(".").split() for segment in truth.segments]
            assert spelled == written


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_shows_the_conversation(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["demo", "-o", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "not for work" in said.out.splitlines()[0]
    assert {path.name for path in tmp_path.iterdir()} == {f"conversation.{kind}" for kind in ("srt", "json", "rttm")}
    found = json.loads((tmp_path / "conversation.json").read_text(encoding="utf-8"))
    assert len({turn["speaker"] for turn in found["turns"]}) == 3
    assert all(f"{segment['speaker']}: {segment['text']}" in said.out for segment in found["segments"])
    for name in ("WER", "DER", "their speaker", "within 50 ms", "word boundaries"):
        assert sum(name in line for line in said.out.splitlines()) == 1
    for stage in ("models", "audio", "vad", "transcribe", "align", "diarize"):
        assert f"{stage} " in said.out.splitlines()[-1]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """The first utterance of the conversation, with its truth."""
    path, source = tmp_path / "clip.wav", package_data.DEMO / "conversation"
    truth = json.loads(source.with_suffix(".json").read_text(encoding="utf-8"))
    first = min(truth["utterances"], key=lambda utterance: utterance["start"])
    truth["duration"] = first["end"] + 0.2
    for key in ("utterances", "turns", "words"):
        truth[key] = [entry for entry in truth[key] if entry["end"] <= first["end"]]
    path.with_suffix(".json").write_text(json.dumps(truth), encoding="utf-8")
    samples = load_audio(source.with_suffix(".flac"))[: round(16000 * truth["duration"])]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        data = np.round(samples * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(data, format="s16", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_another_recording(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert cli.main(["demo", str(clip), "-o", str(out), "--q-bits", "8"]) == 0
    assert "(WER)" in capsys.readouterr().out and len(list(out.iterdir())) == 3
    truth = clip.with_suffix(".json").read_bytes()
    assert cli.main(["demo", str(clip), "-o", str(tmp_path)]) == 2  # it would be overwritten
    assert "choose another --output-dir" in capsys.readouterr().err
    assert clip.with_suffix(".json").read_bytes() == truth
    clip.with_suffix(".json").unlink()
    for _ in range(2):  # the second time with its own results beside it
        assert cli.main(["demo", str(clip), "-o", str(tmp_path)]) == 0
        said = capsys.readouterr()
        assert "(WER)" not in said.out and not said.err


def test_without_what_counts_errors(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    assert cli.main(["demo", str(clip), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "SPEAKER_00: " in said.out and "(WER)" not in said.out
    assert said.err.count("\n") == 1 and "pip install 'mlx-speech-toolkit[demo]'" in said.err


def test_the_same_in_python(clip: Path, _shared_cache: Path) -> None:
    pipeline = Pipeline.demo(batch_size=2)
    result = pipeline(clip)
    assert result.language == "en" and result.words and pipeline.batch_size == 2
    assert pipeline(clip, multilingual=True).segments[0].language == "en"  # nobody named a language
    with pytest.raises(OptionError, match="multilingual and language conflict"):
        pipeline(clip, multilingual=True, language="en")
    made = {path.name: path.stat().st_mtime_ns for path in _shared_cache.iterdir()}
    assert Pipeline.demo()(clip).text == result.text  # and nothing is converted again
    assert {path.name: path.stat().st_mtime_ns for path in _shared_cache.iterdir()} == made


def test_originals_that_have_changed_are_converted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _shared_cache: Path
) -> None:
    shutil.copytree(package_data.DEMO / "wav2vec2", tmp_path / "wav2vec2")
    monkeypatch.setattr("mlx_speech.pipeline.DEMO", tmp_path)
    for _ in range(2):
        Pipeline.demo().models.aligner("en")
    made = set(_shared_cache.glob("wav2vec2-*"))
    (tmp_path / "wav2vec2" / "config.json").touch()
    Pipeline.demo().models.aligner("en")
    assert len(set(_shared_cache.glob("wav2vec2-*")) - made) == 2  # a folder and its lock


# --- scores ----------------------------------------------------------------------------------------------------------


def transcript(*words: tuple[str, float, float, str], aligned: bool = True) -> Transcript:
    """A segment and a turn for each run of one speaker's words."""
    spoken = [Word(start, end, text, speaker=who, aligned=aligned) for text, start, end, who in words]
    runs: list[list[Word]] = []
    for word in spoken:
        if not runs or runs[-1][-1].speaker != word.speaker:
            runs.append([])
        runs[-1].append(word)
    segments = tuple(
        Segment(run[0].start, run[-1].end, " ".join(w.text for w in run), tuple(run), str(run[0].speaker))
        for run in runs
    )
    turns = tuple(Turn(segment.start, segment.end, str(segment.speaker)) for segment in segments)
    return Transcript(segments, duration=10.0, diarization=Diarization(turns))


TRUTH = transcript(*(("one", 0, 1, "x"), ("two", 1, 2, "x"), ("three", 4, 5, "y"), ("four", 5, 6, "y")))


def test_counts() -> None:
    """A wrong word and an added one of four; a speaker who is another's for one of four seconds."""
    perfect = score([(TRUTH, TRUTH)])
    assert (perfect.wer, perfect.der, perfect.attributed, perfect.starts, perfect.boundary) == (0, 0, 1, 1, 0)
    words = (
        ("One,", 0.04, 1, "B"),
        ("to", 1, 2, "B"),
        ("well", 2, 2, "B"),
        ("THREE", 4, 5.3, "A"),
        ("four", 5, 6, "B"),
    )
    found = score([(transcript(*words), TRUTH)])
    assert found.wer == 0.5 and found.attributed == 0.5  # "four" is said by the other speaker
    assert found.starts == 1.0 and found.boundary == 0.0
    assert found.der == pytest.approx((0.7 + 0.3 + 0.04) / 4)  # confused; one too many; missed
    late = transcript(*((text, start + 0.06, end + 0.02, who) for text, start, end, who in words))
    assert score([(late, TRUTH)]).starts == 0.0
    both = score([(TRUTH, TRUTH), (transcript(*words), TRUTH)])
    assert both.wer == 0.25 and both.attributed == 0.75
    nothing = score([(Transcript(duration=10.0), TRUTH)])
    assert (nothing.wer, nothing.der, nothing.attributed, nothing.starts) == (1, 1, 0, 0)
    assert len(str(found).splitlines()) == 5


def test_where_nothing_was_said_or_nothing_is_compared() -> None:
    silence = Transcript(duration=10.0)
    for pairs in ([], [(silence, silence)]):
        found = score(pairs)
        assert (found.wer, found.der, found.attributed, found.starts) == (0, 0, 1, 0) and len(str(found)) > 100
    invented = score([(TRUTH, silence)])
    assert (invented.wer, invented.der, invented.attributed) == (4, 1, 1)
    both = score([(TRUTH, silence), (TRUTH, TRUTH)])
    assert (both.wer, both.attributed, both.starts) == (1, 1, 1)


def test_guessed_times_are_not_scored() -> None:
    guessed = transcript(*((w.text, w.start, w.end, str(w.speaker)) for w in TRUTH.words), aligned=False)
    assert score([(TRUTH, guessed)]).starts == 0.0 and score([(TRUTH, guessed)]).wer == 0.0


def test_words_belong_to_utterances_however_they_overlap(tmp_path: Path) -> None:
    """Two utterances at once: the order of the words is that of their utterances."""
    spans = [{"start": 0, "end": 3, "speaker": "a", "text": "One two three."}]
    spans.append({"start": 2, "end": 4, "speaker": "b", "text": "Four five."})
    times = {"one": (0, 1), "two": (1, 2.4), "four": (2, 2.8), "three": (2.4, 3), "five": (2.8, 4)}
    words = [
        {
            "text": text,
            "start": a,
            "end": b,
            "speaker": "b" if text in ("four", "five") else "a",
            "exact": text != "two",
        }
        for text, (a, b) in times.items()
    ]
    said = {"duration": 5, "utterances": spans[::-1], "turns": spans, "words": words}
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(said))
    truth = read_truth(path)
    assert truth is not None and [word.text for word in truth.words] == ["one", "two", "three", "four", "five"]
    assert [word.aligned for word in truth.words] == [True, False, True, True, True]
    broken = ({**said, "words": [{"text": "x"}]}, {**said, "utterances": []}, {**said, "turns": 3}, [1], {})
    for text in (*map(json.dumps, broken), "no JSON"):
        path.write_text(text)
        assert read_truth(path) is None
    assert read_truth(tmp_path / "none.json") is None
