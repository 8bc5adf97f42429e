"""Diarization against pyannote.audio: clustering and reconstruction on synthetic voices, the pipeline on meetings."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import originals as make
import pytest
import torch
from conftest import absent, real
from pyannote.audio.core.inference import Inference
from pyannote.audio.core.pipeline import Pipeline
from pyannote.audio.core.plda import PLDA
from pyannote.audio.pipelines.clustering import Clustering
from pyannote.audio.pipelines.speaker_diarization import SpeakerDiarization
from pyannote.audio.utils.powerset import Powerset
from pyannote.audio.utils.signal import binarize
from pyannote.core import Annotation, SlidingWindow, SlidingWindowFeature
from pyannote.pipeline.parameter import ParamDict, Uniform

import mlx_speech
import mlx_speech.convert
from mlx_speech import steps
from mlx_speech.audio import load_audio
from mlx_speech.errors import AudioError, ConfigError, OptionError
from mlx_speech.models.base import SpeakerEmbedding
from mlx_speech.models.diarization_pipeline import Model
from mlx_speech.models.silero_vad import Model as Silero
from mlx_speech.models.silero_vad import ModelArgs as SileroArgs
from mlx_speech.stages import cluster, vad_pyannet, windows
from mlx_speech.stages import diarize as stage
from mlx_speech.stages.diarize import diarize, from_stages
from mlx_speech.stages.vad_pyannet import detect_speech_pyannet, speech_scores
from mlx_speech.steps import Steps
from mlx_speech.transcript import Diarization, Turn

torch.set_num_threads(1)

FRAMES = SlidingWindow(start=0.0, duration=0.0619375, step=0.016875)
VBX, AHC = "VBxClustering", "AgglomerativeClustering"
PARAMS = {VBX: {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8}}
PARAMS[AHC] = {"method": "centroid", "min_cluster_size": 12, "threshold": 0.7045654963945799}


@pytest.fixture(scope="module")
def pldas(tmp_path_factory: pytest.TempPathFactory) -> tuple[PLDA, Any]:
    """The PLDA of community-1: pyannote.audio's and ours."""
    path = real("weights/plda-community-1")
    target = tmp_path_factory.mktemp("plda") / "mlx"
    mlx_speech.convert.convert(str(path), target)
    return PLDA(path / "xvec_transform.npz", path / "plda.npz"), mlx_speech.load(target)


# --- the original ----------------------------------------------------------------------------------------------------


class Given(SpeakerDiarization):
    """pyannote.audio's pipeline, from the segmentations and embeddings on, which it is given."""

    def __init__(self, clustering: str, plda: PLDA, params: dict, *, powerset: bool = True, min_off: float = 0.0):
        Pipeline.__init__(self)
        self.legacy, self.klustering, self.embedding_exclude_overlap = False, clustering, True
        specifications = SimpleNamespace(powerset=powerset)
        self._segmentation = SimpleNamespace(
            model=SimpleNamespace(specifications=specifications, receptive_field=FRAMES)
        )
        self._embedding = SimpleNamespace(dimension=256)
        self._expects_num_speakers = False
        kind = Clustering[clustering].value
        self.clustering = kind(plda) if clustering == VBX else kind()
        self.segmentation = ParamDict(min_duration_off=Uniform(0.0, 1.0), threshold=Uniform(0.1, 0.9))
        self.instantiate({"clustering": params, "segmentation": {"min_duration_off": min_off, "threshold": 0.5}})

    def get_segmentations(self, file: Any, hook: Any = None) -> SlidingWindowFeature:
        data, window = file["segmentations"]
        return SlidingWindowFeature(data.copy(), window)

    def get_embeddings(self, file: Any, *_: Any, **__: Any) -> np.ndarray:
        return file["embeddings"].copy()


def original(pipeline: Given, scores: np.ndarray, embeddings: np.ndarray, duration: float, **numbers: Any) -> Any:
    window = SlidingWindow(start=0.0, duration=duration, step=0.1 * duration)
    file = {"uri": "x", "segmentations": (scores.astype(np.float32), window), "embeddings": embeddings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipeline.apply(file, **numbers)


def turns_of(annotation: Annotation) -> list[tuple[float, float, str]]:
    return sorted((segment.start, segment.end, label) for segment, _, label in annotation.itertracks(yield_label=True))


def same_turns(ours: tuple[Turn, ...], theirs: Annotation) -> int:
    """Asserts that they are the same; how many there are."""
    expected = turns_of(theirs)
    found = [(turn.start, turn.end, turn.speaker) for turn in ours]
    assert [turn[2] for turn in found] == [turn[2] for turn in expected]
    assert np.allclose([turn[:2] for turn in found], [turn[:2] for turn in expected], rtol=0, atol=1e-6)
    return len(found)


def same(ours: Diarization, theirs: Any, tolerance: float = 1e-6) -> None:
    same_turns(ours.turns, theirs.speaker_diarization)
    same_turns(ours.exclusive, theirs.exclusive_speaker_diarization)
    assert list(ours.embeddings) == theirs.speaker_diarization.labels()
    if ours.embeddings:
        found = np.array(list(ours.embeddings.values()))
        assert np.abs(found - theirs.speaker_embeddings).max() <= tolerance * np.abs(found).max()


# --- synthetic meetings ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meeting:
    """Speakers who take turns, heard through windows: what the models would say of each."""

    segmentations: np.ndarray  # (chunks, frames, 3)
    embeddings: np.ndarray  # (chunks, 3, 256)
    scores: np.ndarray  # (chunks, frames, 3), of a multilabel model


def meeting(
    speakers: int,
    chunks: int,
    seed: int,
    *,
    frames: int = 589,
    duration: float = 10.0,
    overlap: float = 0.3,
    pause: float = 0.3,
    noise: float = 0.5,
) -> Meeting:
    """`overlap`, `pause` : how often a turn overlaps the next, or is followed by silence; `noise` : of embeddings"""
    rng = np.random.default_rng(seed)
    grid = FRAMES.step
    total = round((duration + (chunks - 1) * 0.1 * duration) / grid) + frames
    truth = np.zeros((total, speakers), dtype=bool)
    position, previous = 0, -1
    while position < total:
        speaker = rng.choice([s for s in range(speakers) if s != previous or speakers == 1])
        length = int(rng.uniform(0.3, 4.0) / grid)
        truth[position : position + length, speaker] = True
        gap = rng.uniform(-1.5, 0) if rng.random() < overlap else rng.uniform(0, 2.0) if rng.random() < pause else 0.0
        position, previous = max(position + 1, position + length + int(gap / grid)), speaker
    voices = rng.normal(size=(speakers, 256))
    segmentations = np.zeros((chunks, frames, 3), dtype=np.float32)
    embeddings = rng.normal(size=(1, 1, 256)).repeat(chunks, 0).repeat(3, 1).astype(np.float32)
    for c in range(chunks):
        start = round(c * 0.1 * duration / grid)
        heard = truth[start : start + frames].copy()
        flips = rng.random(heard.shape) < 0.002
        heard ^= flips & heard.any(axis=1, keepdims=True)
        local = np.flatnonzero(heard.any(axis=0))
        local = rng.permutation(local[np.argsort(-heard[:, local].sum(axis=0))][:3])
        for place, speaker in enumerate(local):
            segmentations[c, :, place] = heard[:, speaker]
            embeddings[c, place] = voices[speaker] + noise * rng.normal(size=256)
    both = segmentations.sum(axis=2) > 2  # a powerset model never says three
    segmentations[both, 2] = 0
    scores = np.clip(segmentations * 0.6 + 0.2 + 0.3 * rng.normal(size=segmentations.shape), 0, 1).astype(np.float32)
    return Meeting(segmentations, embeddings, scores)


NUMBERS: dict[str, dict[str, int]] = {
    "free": {},
    "1": {"num_speakers": 1},
    "2": {"num_speakers": 2},
    "5": {"num_speakers": 5},
    "3 to 4": {"min_speakers": 3, "max_speakers": 4},
    "at most 2": {"max_speakers": 2},
    "at least 6": {"min_speakers": 6},
}
MEETINGS: dict[str, Any] = {
    f"{speakers} speakers": partial(meeting, speakers, chunks=30 + 5 * speakers, seed=speakers)
    for speakers in (1, 2, 3, 4, 5, 6, 8, 10, 12)
}
MEETINGS |= {
    "much overlap": partial(meeting, 4, 60, 20, overlap=0.9),
    "much silence": partial(meeting, 3, 60, 21, overlap=0.0, pause=1.0),
    "ambiguous": partial(meeting, 5, 60, 22, noise=1.5),
    "hopeless": partial(meeting, 5, 40, 23, noise=6.0),
    "one window": partial(meeting, 2, 1, 24),
    "two windows": partial(meeting, 3, 2, 25),
    "three windows": partial(meeting, 2, 3, 26),
    "windows of 5 s": partial(meeting, 4, 90, 27, frames=293, duration=5.0),
}
CASES = list(itertools.product(MEETINGS, (VBX, AHC), NUMBERS))


@pytest.mark.filterwarnings("ignore:.*speakers? (is|are) found")
@pytest.mark.parametrize(("name", "clustering", "numbers"), CASES, ids=["-".join(case) for case in CASES])
def test_the_turns_are_the_originals(name: str, clustering: str, numbers: str, pldas: Any) -> None:
    heard = MEETINGS[name]()
    duration = 5.0 if heard.segmentations.shape[1] == 293 else 10.0
    voices = int((heard.segmentations.sum(axis=1) >= 0.2 * heard.segmentations.shape[1]).sum())
    asked = max(NUMBERS[numbers].get("num_speakers", 0), NUMBERS[numbers].get("min_speakers", 0))
    pipeline = Given(clustering, pldas[0], PARAMS[clustering])
    given = {"plda": pldas[1], "clustering": clustering, "params": {"clustering": PARAMS[clustering]}}
    run = partial(from_stages, heard.segmentations.astype(np.int8), heard.embeddings, duration=duration, **given)
    try:
        theirs = original(pipeline, heard.segmentations, heard.embeddings, duration, **NUMBERS[numbers])
    except ValueError as error:  # scikit-learn's: more clusters than vectors
        assert clustering == VBX and asked > 0 and "n_samples" in str(error) and voices < 10
        assert 1 <= len(run(**NUMBERS[numbers]).embeddings) < asked
        return
    same(run(**NUMBERS[numbers]), theirs)


@pytest.mark.filterwarnings("ignore:.*speakers? (is|are) found")
@pytest.mark.parametrize("clustering", [VBX, AHC])
@pytest.mark.parametrize("name", ["4 speakers", "8 speakers", "much overlap", "one window", "windows of 5 s"])
def test_the_turns_of_a_multilabel_model(name: str, clustering: str, pldas: Any) -> None:
    heard = MEETINGS[name]()
    duration = 5.0 if heard.segmentations.shape[1] == 293 else 10.0
    binary = windows.binarize(heard.scores, 0.5).astype(np.int8)
    assert (binary != heard.segmentations).any()
    pipeline = Given(clustering, pldas[0], PARAMS[clustering], powerset=False, min_off=0.3)
    params = {"clustering": PARAMS[clustering], "segmentation": {"min_duration_off": 0.3}}
    given = {"scores": heard.scores, "plda": pldas[1], "clustering": clustering, "params": params}
    for numbers in ({}, {"num_speakers": 2}, {"max_speakers": 3}):
        theirs = original(pipeline, heard.scores, heard.embeddings, duration, **numbers)
        same(from_stages(binary, heard.embeddings, duration=duration, **given, **numbers), theirs)


@pytest.mark.parametrize("clustering", [VBX, AHC])
def test_embeddings_in_double_precision(clustering: str, pldas: Any) -> None:
    heard = meeting(4, 60, 41)
    given = {"plda": pldas[1], "clustering": clustering, "params": {"clustering": PARAMS[clustering]}}
    exact = heard.embeddings + 1e-9 * np.random.default_rng(0).normal(size=heard.embeddings.shape)
    theirs = original(Given(clustering, pldas[0], PARAMS[clustering]), heard.segmentations, exact, 10.0)
    same(from_stages(heard.segmentations, exact, duration=10.0, **given), theirs, tolerance=1e-12)


def test_names_are_in_the_originals_order_beyond_ten(pldas: Any) -> None:
    heard = meeting(13, 260, 40, overlap=0.2, noise=0.3)
    for clustering in (VBX, AHC):
        given = {"plda": pldas[1], "clustering": clustering, "params": {"clustering": PARAMS[clustering]}}
        ours = from_stages(heard.segmentations, heard.embeddings, duration=10.0, **given)
        theirs = original(Given(clustering, pldas[0], PARAMS[clustering]), heard.segmentations, heard.embeddings, 10.0)
        assert len(ours.embeddings) >= 12 and len(ours.turns) > 50
        same(ours, theirs)
        centroids = cluster.cluster(
            heard.embeddings, heard.segmentations, cluster.SpeakerBounds(), **given_params(given)
        )[1]
        assert np.array_equal(ours.embeddings["SPEAKER_02"], centroids[10])  # "10" sorts before "2"


def given_params(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "params": given["params"]["clustering"]}


# --- small and odd input ---------------------------------------------------------------------------------------------


def one_voice(chunks: int, active: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    segmentations = np.zeros((chunks, 589, 3), dtype=np.int8)
    segmentations[:, : int(589 * active), 0] = 1
    embeddings = np.full((chunks, 3, 256), np.nan, dtype=np.float32)
    embeddings[:, 0] = np.random.default_rng(seed).normal(size=(chunks, 256))
    return segmentations, embeddings


@pytest.mark.parametrize("clustering", [VBX, AHC])
@pytest.mark.parametrize(
    ("chunks", "active"), [(1, 1.0), (1, 0.1), (3, 0.1), (3, 0.0)], ids=["one", "too short", "all too short", "silent"]
)
def test_fewer_than_two_embeddings(chunks: int, active: float, clustering: str, pldas: Any) -> None:
    segmentations, embeddings = one_voice(chunks, active)
    found = from_stages(segmentations, embeddings, duration=10.0, plda=pldas[1], clustering=clustering)
    if not active:
        assert found == Diarization()
        return
    assert {turn.speaker for turn in found.turns} == {"SPEAKER_00"} and found.exclusive == found.turns
    assert np.allclose(found.embeddings["SPEAKER_00"], embeddings[:, 0].mean(axis=0), atol=1e-6)


def test_no_windows_and_no_embeddings(pldas: Any) -> None:
    empty = from_stages(np.zeros((0, 589, 3)), np.zeros((0, 3, 256)), duration=10.0, plda=pldas[1])
    assert empty == Diarization()
    segmentations, embeddings = one_voice(2)
    lost = from_stages(segmentations, np.full_like(embeddings, np.nan), duration=10.0, plda=pldas[1])
    assert len(lost.turns) == 1 and not np.any(lost.embeddings["SPEAKER_00"])


@pytest.mark.parametrize("clustering", [VBX, AHC])
def test_asking_for_more_speakers_than_there_are_embeddings(clustering: str, pldas: Any) -> None:
    segmentations, embeddings = one_voice(3)
    run = partial(from_stages, segmentations, embeddings, duration=10.0, plda=pldas[1], clustering=clustering)
    with pytest.warns(UserWarning) as caught:
        found = run(num_speakers=7)
    names = {turn.speaker for turn in found.turns}
    assert 1 <= len(names) <= 3 and set(found.embeddings) == names
    count = "1 speaker is" if len(names) == 1 else f"{len(names)} speakers are"
    reason = "there is too little speech to tell more apart"
    assert [str(warning.message) for warning in caught] == [f"{count} found where 7 were asked for: {reason}"]


@pytest.mark.parametrize("clustering", [VBX, AHC])
def test_the_warning_counts_who_has_turns(clustering: str, pldas: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the clusters: one may get no turn, and two voices at once need two names where there is one cluster."""
    heard = meeting(3, 60, 77)
    given = {"duration": 10.0, "plda": pldas[1], "clustering": clustering}
    run = partial(from_stages, heard.segmentations.astype(np.int8), heard.embeddings, **given)
    names = len(run().embeddings)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {turn.speaker for turn in run(min_speakers=1, max_speakers=names).turns} == set(run().embeddings)

    def one_cluster(vectors: np.ndarray, speaking: np.ndarray, *_: Any, **__: Any) -> tuple[Any, Any]:
        return np.where(speaking, 0, cluster.NONE), vectors.mean(axis=0, keepdims=True)

    monkeypatch.setattr(cluster, "cluster_voices", one_cluster)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        overlapping = run(num_speakers=2)  # two voices at once
    assert {turn.speaker for turn in overlapping.turns} == {"SPEAKER_00", "SPEAKER_01"}

    def overruled(*arguments: Any, **options: Any) -> tuple[Any, Any]:
        clusters, centroids = one_cluster(*arguments, **options)
        clusters[10, 0] = 1  # in one window; the others that hear the same time say 0
        return clusters, np.concatenate([centroids, centroids])

    monkeypatch.setattr(cluster, "cluster_voices", overruled)
    segmentations, embeddings = one_voice(21)
    with pytest.warns(UserWarning, match=r"^1 speaker is found where 2 were asked for: [^\n]*$"):
        found = from_stages(segmentations, embeddings, **given, num_speakers=2)
    assert {turn.speaker for turn in found.turns} == set(found.embeddings) == {"SPEAKER_00"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"num_speakers": 1}, "1 was"), ({"num_speakers": 2}, "2 were"), ({"min_speakers": 2}, "2 or more were"),
     ({"min_speakers": 1, "max_speakers": 3}, "1 to 3 were")],
)  # fmt: skip
def test_a_number_asked_for_is_missed_where_nobody_speaks(asked: dict[str, int], said: str, pldas: Any) -> None:
    silence, nothing = np.zeros((4, 589, 3), np.int8), np.zeros((0, 589, 3), np.int8)
    for heard in (silence, nothing):
        run = partial(from_stages, heard, np.zeros((len(heard), 3, 256)), duration=10.0, plda=pldas[1])
        with pytest.warns(
            UserWarning, match=f"^0 speakers are found where {said} asked for: nobody is heard to speak$"
        ):
            assert run(**asked) == Diarization()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert run() == run(max_speakers=3) == Diarization()


def test_the_rule_of_version_3_takes_every_voice() -> None:
    segmentations, embeddings = one_voice(40, active=0.5)
    segmentations[20:, 300:400, 1] = 1  # alone, but not for a fifth of the frames
    rng = np.random.default_rng(1)
    for place, voice in enumerate(rng.normal(size=(2, 256))):
        embeddings[20 * place :, place] = voice + 0.1 * rng.normal(size=(40 - 20 * place, 256))
    run = partial(cluster.cluster, embeddings, segmentations, cluster.SpeakerBounds(), clustering=AHC)
    assert len(run()[1]) == 1 and len(run(min_active_ratio=0.0)[1]) == 2


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"embeddings": np.zeros((2, 3))}, OptionError, "embeddings"),
        ({"embeddings": np.zeros((2, 4, 256))}, OptionError, "embeddings of"),
        ({"scores": np.zeros((2, 588, 3))}, OptionError, "scores"),
        ({"plda": None}, ConfigError, "PLDA"),
        ({"clustering": "OracleClustering"}, ConfigError, "OracleClustering"),
        ({"params": {"clustering": 3}}, ConfigError, "clustering is 3"),
        ({"params": {"segmentation": {"min_duration_off": "0"}}}, ConfigError, "min_duration_off"),
        ({"params": [1]}, ConfigError, "params is"),
        ({"duration": 5.0}, OptionError, "duration is 5 s"),
        ({"num_speakers": 0}, OptionError, "num_speakers"),
        ({"min_speakers": 3, "max_speakers": 2}, OptionError, "max_speakers"),
    ],
)
def test_wrong_input_is_named(change: dict[str, Any], error: type, says: str, pldas: Any) -> None:
    segmentations, embeddings = one_voice(2)
    given = {"segmentations": segmentations, "embeddings": embeddings, "duration": 10.0, "plda": pldas[1], **change}
    with pytest.raises(error, match=says) as caught:
        from_stages(**given)
    assert "\n" not in str(caught.value)


# --- the whole pipeline ----------------------------------------------------------------------------------------------

TUNED = {VBX: {"threshold": 0.4, "Fa": 0.3, "Fb": 0.2}}  # for voices told apart by random weights
TUNED[AHC] = {"method": "centroid", "min_cluster_size": 3, "threshold": 0.4}


def pyannet_2022() -> Path:
    spec = importlib.util.find_spec("whisperx")
    path = Path(str(spec.origin)).parent / "assets/pytorch_model.bin" if spec else None
    return path if path and path.is_file() else absent("the PyanNet in WhisperX's wheel is not installed")


class Remembering(SpeakerDiarization):
    """pyannote.audio's pipeline; what its models say of a recording is made once, whatever the clustering."""

    def get_segmentations(self, file: Any, hook: Any = None) -> SlidingWindowFeature:
        if "segmentations" not in file:
            file["segmentations"] = super().get_segmentations(file)
        return SlidingWindowFeature(file["segmentations"].data.copy(), file["segmentations"].sliding_window)

    def get_embeddings(self, file: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        if "embeddings" not in file:
            file["embeddings"] = super().get_embeddings(file, *args, **kwargs)
        return file["embeddings"].copy()


@dataclass
class Both:
    """The pipeline of pyannote.audio and ours, with the same models."""

    theirs: dict[str, Remembering]
    ours: dict[str, Model]
    files: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, pldas: Any) -> Both:
    from pyannote.audio import Model as Original

    folder, source = tmp_path_factory.mktemp("models"), pyannet_2022()
    files = {}
    for name in ("dev00", "dev01"):
        samples = load_audio(real(f"data/diar/ami_debug/{name}.wav"))
        files[name] = {"uri": name, "waveform": torch.from_numpy(samples)[None], "sample_rate": 16000}
    embedding = make.wespeaker(channels=8)
    centre(embedding, files["dev00"]["waveform"])
    make.save_lightning(embedding, folder / "pytorch_model.bin", hyper_parameters=False)
    mlx_speech.convert.convert(str(source), folder / "segmentation")
    mlx_speech.convert.convert(str(folder / "pytorch_model.bin"), folder / "embedding")
    parts: list[Any] = [mlx_speech.load(folder / "segmentation"), mlx_speech.load(folder / "embedding"), pldas[1]]
    theirs, ours = {}, {}
    for clustering in (VBX, AHC):
        params = {"clustering": TUNED[clustering], "segmentation": {"threshold": 0.5, "min_duration_off": 0.0}}
        theirs[clustering] = Remembering(
            segmentation=Original.from_pretrained(source), embedding=embedding, embedding_exclude_overlap=True,
            plda=pldas[0], clustering=clustering, segmentation_batch_size=32, embedding_batch_size=8,
        ).instantiate(params)  # fmt: skip
        config = {"clustering": clustering, "embedding_exclude_overlap": True, "params": params}
        ours[clustering] = Model(config, *parts)
    return Both(theirs, ours, files)


def centre(model: Any, waveform: torch.Tensor) -> None:
    """Shift and scale the last layer so that embeddings point in all directions, as a trained model's do."""
    with torch.inference_mode():
        found = model(torch.stack(waveform[:, : 14 * 32000].split(32000, dim=1)))
    last = model.resnet.seg_1
    with torch.no_grad():
        factor = 1 / found.std(dim=0).mean()
        last.bias.copy_((last.bias - found.mean(dim=0)) * factor)
        last.weight.mul_(factor)


def truth(pipeline: Any, file: dict[str, Any]) -> np.ndarray:
    """What the original's segmentation says in float64, (windows, frames, speakers)."""
    if "exact" not in file:
        window, model = file["segmentations"].sliding_window, copy.deepcopy(pipeline._segmentation.model).double()
        size = round(window.duration * 16000)
        starts = [round(window[k].start * 16000) for k in range(len(file["segmentations"].data))]
        padded = torch.nn.functional.pad(file["waveform"].double(), (0, size))
        with torch.inference_mode():
            file["exact"] = np.concatenate([model(padded[None, :, s : s + size]).numpy() for s in starts])
    return file["exact"]


@pytest.fixture
def remembered(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """What our models say of a recording is made once, too."""

    def once(key: str, function: Any) -> Any:
        def remember(audio: np.ndarray, *args: Any) -> list[np.ndarray]:
            file = next(file for file in both.files.values() if np.array_equal(file["waveform"][0].numpy(), audio))
            file[key] = file[key] if key in file else list(function(audio, *args))
            return file[key]

        return remember

    for name in ("segment", "embed"):
        monkeypatch.setattr(stage, name, once(f"our {name}", getattr(stage, name)))


@pytest.mark.filterwarnings("ignore:.*speakers? (is|are) found")
@pytest.mark.parametrize("name", ["dev00", "dev01"])
@pytest.mark.parametrize("clustering", [VBX, AHC])
def test_the_pipeline_gives_the_originals_turns(both: Both, name: str, clustering: str, remembered: None) -> None:
    file, model, theirs = both.files[name], both.ours[clustering], both.theirs[clustering]
    samples, done = file["waveform"][0].numpy(), []
    ours = diarize(samples, model, on_progress=done.append)
    assert 2 <= len(ours.embeddings) <= 6 and len(ours.turns) >= 8
    assert done == sorted(done) and len(done) > 10 and done[-1] == 1.0
    seconds: list[float] = []
    assert ours == steps.run(stage.diarize_steps(samples, model), seconds.append)
    assert seconds[-1] == len(samples) / 16000 and np.allclose(seconds, np.array(done) * seconds[-1])
    same(ours, theirs.apply(file), tolerance=1e-4)
    for number in (1, 2, 5):
        forced = diarize(samples, model, num_speakers=number)
        same(forced, theirs.apply(file, num_speakers=number), tolerance=1e-4)
        assert len(forced.embeddings) == (4 if clustering == AHC and number == 5 else number)  # 3 voices are few
    scores, vectors = np.concatenate(file["our segment"]), np.concatenate(file["our embed"])
    active = binarize(file["segmentations"], onset=0.5, initial_state=False).data.any(axis=1)
    # ours is as far from float64 as the original; in one window near silence each may be off by 0.03
    exact = truth(both.theirs[clustering], file)
    off, theirs_off = (np.sort(np.abs(x - exact).max(axis=(1, 2))) for x in (scores, file["segmentations"].data))
    assert np.median(off) < 1.5 * np.median(theirs_off) and off[-3] < 2 * theirs_off[-3] and off[-1] < 0.05
    theirs_spoken = file["embeddings"][active.any(axis=1)]
    close = np.abs(vectors - theirs_spoken)[active[active.any(axis=1)]].max()
    assert close < 1e-4 * np.abs(theirs_spoken).max()


# --- the models ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[True, False], ids=["powerset", "multilabel"])
def segmenter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A small PyanNet with windows of two seconds: pyannote.audio's and ours."""
    narrow = {"lstm": {"hidden_size": 16, "num_layers": 2}, "linear": {"hidden_size": 16, "num_layers": 1}}
    original = make.pyannet(request.param, seed=3, duration=2.0, **narrow)
    folder = tmp_path_factory.mktemp("pyannet")
    mlx_speech.convert.convert(str(make.save_lightning(original, folder / "pytorch_model.bin")), folder / "mlx")
    return original, mlx_speech.load(folder / "mlx")


LENGTHS = [1, 1000, 31_999, 32_000, 32_001, 35_200, 35_201, 100_000]


@pytest.mark.parametrize("length", LENGTHS)
def test_every_window_is_heard_as_the_original_hears_it(length: int, segmenter: Any) -> None:
    original, model = segmenter
    audio = make.babble(length / 16000 + 1).numpy()[:length]
    slides = Inference(original, step=0.2, skip_aggregation=True, batch_size=4)
    theirs = slides({"waveform": torch.from_numpy(audio)[None], "sample_rate": 16000}).data
    starts = windows.starts(length, 32_000, 3200)
    ours = np.concatenate(list(stage.segment(audio, model, starts, 32_000, 4)))
    assert ours.shape == theirs.shape
    if model.args.powerset_max_classes:
        assert ours.dtype == np.int8 and (ours == theirs).mean() > 0.999
        assert length < 32_000 or len(np.unique(ours.reshape(-1, 3), axis=0)) >= 4
    elif length > 1:  # one sample among zeros is divided by next to nothing
        assert np.abs(ours - theirs).max() < 1e-4


def test_the_classes_of_a_powerset_are_the_originals() -> None:
    for speakers, at_once in [(3, 2), (4, 3), (2, 1), (5, 5)]:
        theirs = Powerset(speakers, at_once).mapping.numpy()
        assert np.array_equal(stage.powerset(speakers, at_once), theirs)


@pytest.mark.parametrize("exclude", [True, False])
def test_masks_fall_back_to_all_of_a_voice(exclude: bool) -> None:
    segmentations = np.zeros((2, 589, 3), dtype=np.int8)
    segmentations[0, 100:200, 0] = segmentations[0, 103:200, 1] = 1  # alone in 3 frames, and in none
    segmentations[1, 100:200, 0] = segmentations[1, 102:200, 1] = 1  # alone in 2, which is not enough
    masks = stage.voice_masks(segmentations, 160_000, exclude_overlap=exclude)
    expected = segmentations.copy()
    if exclude:
        expected[0, 103:, 0] = 0
    assert np.array_equal(masks, expected)


@pytest.mark.parametrize("longest", [1, 100, 250, 1000, 5000])
def test_stretches_hold_every_window_once(longest: int) -> None:
    rng = np.random.default_rng(longest)
    for count in (0, 1, 2, 30):
        starts = np.cumsum(rng.integers(1, 300, count)).tolist()
        found = list(windows.stretches(starts, 100, longest))
        assert [k for first, last in found for k in range(first, last)] == list(range(count))
        for first, last in found:
            length = starts[last - 1] + 100 - starts[first]
            assert length <= longest or last - first == 1
            if last < count:  # one more would not have fitted
                assert starts[last] + 100 - starts[first] > longest


class Fake:
    """A segmentation whose voices are the signs of the samples: two speakers, told apart perfectly."""

    identity = "fake:0"

    def __init__(self) -> None:
        self.args = SimpleNamespace(
            duration=10.0, sample_rate=16000, sincnet_stride=10, powerset_max_classes=2, num_speakers=3, warm_up=None
        )  # fmt: skip

    def __call__(self, waveform: mx.array) -> mx.array:
        frames = np.array(waveform)[:, 495 + 270 * np.arange(589)]
        best = np.where(frames > 0, 1, np.where(frames < 0, 2, 0))
        return mx.array(np.eye(7, dtype=np.float32)[best])

    def overlapping(self, samples: mx.array, starts: list[int], size: int) -> mx.array:
        return self(mx.stack([samples[start : start + size] for start in starts]))


class FakeVoices(SpeakerEmbedding):
    """An embedding of the same two speakers, by the sign of what is heard under a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.args = SimpleNamespace(embedding_size=4)
        self.windows = 0

    def embed(self, waveforms: mx.array, masks: np.ndarray | None = None) -> mx.array:
        assert masks is not None and masks.shape[1] % 3 == 0
        self.windows += masks.shape[0] * masks.shape[1] // 3
        samples = np.array(waveforms)[: len(masks)]
        places = (np.arange(masks.shape[2]) * samples.shape[1]) // masks.shape[2]
        signs = (np.sign(samples[:, None, places]) * masks).sum(axis=2)
        vectors = np.where(signs[..., None] > 0, np.eye(4)[0], np.eye(4)[1])
        return mx.array(np.where(masks.any(axis=2)[..., None], vectors, np.nan).astype(np.float32))


def fake(**config: Any) -> tuple[Any, FakeVoices]:
    voices = FakeVoices()
    return Model({"clustering": AHC, **config}, Fake(), voices), voices  # type: ignore[arg-type]


def dialogue(seconds: float, pause: tuple[float, float] = (0, 0)) -> np.ndarray:
    """One speaker and the other in turns of three seconds, and silence in `pause`."""
    time = np.arange(round(seconds * 16000)) / 16000
    audio = np.where(time % 6 < 3, 0.1, -0.1).astype(np.float32)
    audio[(time >= pause[0]) & (time < pause[1])] = 0
    return audio


@pytest.mark.parametrize("stretch", [None, 10.0, 12.5, 60.0])
@pytest.mark.parametrize("seconds", [0.5, 2.0, 9.9, 10.0, 10.1, 31.7])
def test_recordings_of_all_lengths(seconds: float, stretch: float | None) -> None:
    model, _ = fake(embedding_stretch=stretch)
    found = diarize(dialogue(seconds), model)
    times = list(itertools.takewhile(lambda time: time < seconds, itertools.count(0.0, 3.0)))
    assert len(found.turns) == len(times)
    for turn, start in zip(found.turns, times, strict=True):
        assert turn.start == pytest.approx(start, abs=0.05)
        assert turn.end == pytest.approx(min(start + 3, seconds), abs=0.08)


@pytest.mark.parametrize("stretch", [None, 60.0])
def test_windows_without_a_voice_are_not_embedded(stretch: float | None) -> None:
    model, models = fake(embedding_stretch=stretch)
    audio = dialogue(60, pause=(18, 42))
    found = diarize(audio, model)
    windows_heard = sum(bool(audio[s : s + 160_000].any()) for s in range(0, 51 * 16000, 16000))
    assert models.windows == windows_heard < 40
    assert not [turn for turn in found.turns if turn.end > 18.1 and turn.start < 41.9]
    assert {turn.speaker for turn in found.turns} == {"SPEAKER_00", "SPEAKER_01"}


@pytest.mark.parametrize("samples", [0, 1, 5000, 160_000, 400_000])
def test_silence_and_nothing_have_no_turns(samples: int) -> None:
    assert diarize(np.zeros(samples, dtype=np.float32), fake()[0]) == Diarization()


def test_options_are_checked_before_anything_is_heard() -> None:
    model, models = fake()
    audio = dialogue(12)
    for options, name in (({"batch_size": 0}, "batch_size"), ({"min_speakers": 2, "max_speakers": 1}, "max_speakers")):
        with pytest.raises(OptionError, match=name):
            diarize(audio, model, **options)
    with pytest.raises(AudioError, match="one channel"):
        diarize(np.zeros((2, 16000)), model)
    with pytest.raises(ConfigError, match="PLDA"):
        diarize(audio, fake(clustering=VBX)[0])
    with pytest.raises(ConfigError, match="segmentation_step"):
        fake(segmentation_step=0)
    with pytest.raises(ConfigError, match="min_active_ratio"):
        fake(min_active_ratio=1.5)
    with pytest.raises(ConfigError, match="embedding_stretch"):
        fake(embedding_stretch="60")
    with pytest.raises(ConfigError, match="speaker embedding"):
        Model({"clustering": AHC}, Fake(), Silero(SileroArgs()))  # type: ignore[arg-type]
    assert models.windows == 0


# --- speech, by the same model ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(both: Both) -> dict[str, SlidingWindowFeature]:
    """WhisperX's scores of speech, by recording."""
    from whisperx.vads.pyannote import load_vad_model

    model = load_vad_model("cpu", model_fp=str(pyannet_2022()))
    return {name: model({"waveform": file["waveform"], "sample_rate": 16000}) for name, file in both.files.items()}


@pytest.fixture(scope="module")
def exact_scores(both: Both) -> dict[str, np.ndarray]:
    """The same in float64, (frames,): what the original's own rounding is measured against."""
    from whisperx.vads.pyannote import load_vad_model

    model = load_vad_model("cpu", model_fp=str(pyannet_2022()))
    model._segmentation.model.double()
    files = {name: {"waveform": file["waveform"].double(), "sample_rate": 16000} for name, file in both.files.items()}
    return {name: model(file).data[:, 0] for name, file in files.items()}


def one_step(result: np.ndarray) -> Steps[np.ndarray]:
    yield 1.0
    return result


@pytest.mark.parametrize("name", ["dev00", "dev01"])
def test_regions_of_speech_are_whisperx(
    name: str, both: Both, scored: Any, exact_scores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whisperx.vads.pyannote import Binarize

    samples, model = both.files[name]["waveform"][0].numpy(), both.ours[VBX].segmentation
    scores, expected = speech_scores(samples, model), scored[name].data[:, 0]
    rounding = np.abs(expected - exact_scores[name]).max()  # as large as 6e-3: parity's bar is three times that
    assert len(scores) == len(expected) and np.abs(scores - expected).max() < max(5e-3, 3 * rounding)
    monkeypatch.setattr(vad_pyannet, "speech_scores_steps", lambda *_: one_step(scores))
    for options in ({}, {"max_duration": 30.0}, {"max_duration": 5.0}, {"max_duration": 2.0}, {"onset": 0.7}):
        theirs = Binarize(**{"onset": 0.5, "offset": 0.363, **options})(scored[name])
        found = detect_speech_pyannet(samples, model, **options)
        times = [(segment.start, min(segment.end, len(samples) / 16000)) for segment in theirs.get_timeline()]
        assert len(found) == len(times) >= 2
        assert np.allclose([(region.start, region.end) for region in found], times, rtol=0, atol=1e-6)
        assert all(region.duration <= options.get("max_duration", 99) for region in found)


@pytest.mark.parametrize("length", [1000, 31_999, 32_000, 32_001, 35_201, 100_000])
def test_scores_of_speech_are_the_originals(length: int, segmenter: Any) -> None:
    original, model = segmenter
    audio = make.babble(length / 16000 + 1).numpy()[:length]
    best = Inference(original, pre_aggregation_hook=lambda scores: scores.max(axis=-1, keepdims=True))
    theirs = best({"waveform": torch.from_numpy(audio)[None], "sample_rate": 16000}).data[:, 0]
    scores = speech_scores(audio, model, batch_size=8)
    assert len(scores) == len(theirs) and np.quantile(np.abs(scores - theirs), 0.99) < 1e-4


def test_short_speech_is_dropped_and_short_pauses_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.zeros(600, dtype=np.float32)
    scores[100:200] = scores[205:300] = scores[400:405] = 0.9
    monkeypatch.setattr(vad_pyannet, "speech_scores_steps", lambda *_: one_step(scores))
    detect = partial(detect_speech_pyannet, np.zeros(16000 * 10), Fake())
    assert len(detect()) == 3 and len(detect(min_duration_off=0.1)) == 2
    found = detect(min_duration_off=0.1, min_duration_on=0.2)
    assert len(found) == 1 and found[0].duration == pytest.approx(200 * 0.016875)
    assert [len(detect(min_duration_off=5.0, max_duration=limit)) for limit in (99, 3)] == [1, 3]


def test_no_region_ends_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the padding of the last window alone is taken for speech."""
    scores = np.zeros(600, dtype=np.float32)
    scores[300:302] = 0.9
    monkeypatch.setattr(vad_pyannet, "speech_scores_steps", lambda *_: one_step(scores))
    for samples in range(79_000, 84_000, 40):
        found = detect_speech_pyannet(np.zeros(samples), Fake())
        assert all(region.start < region.end <= samples / 16_000 for region in found)
        assert len(found) == (samples / 16_000 > 300 * 0.016875 + 0.03)


@pytest.mark.parametrize(
    "options",
    [
        {"onset": 2},
        {"onset": float("nan")},
        {"offset": 0.6},
        {"min_duration_on": -1},
        {"min_duration_off": -1},
        {"max_duration": 0},
        {"batch_size": 0},
    ],
)
def test_options_of_speech_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        detect_speech_pyannet(np.zeros(16000), Fake(), **options)


def test_speech_in_nothing_and_in_two_channels() -> None:
    assert detect_speech_pyannet(np.zeros(0), Fake()) == []
    with pytest.raises(AudioError, match="one channel"):
        detect_speech_pyannet(np.zeros((2, 16000)), Fake())
