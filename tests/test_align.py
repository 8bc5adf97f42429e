"""Forced alignment: the Viterbi against all CTC paths, log-probabilities against transformers', words by properties."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import originals as make
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech.errors import AudioError, OptionError
from mlx_speech.loading import load
from mlx_speech.models.wav2vec2 import Model, ModelArgs
from mlx_speech.stages import align as stage
from mlx_speech.stages.align import Labels, align, log_probabilities
from mlx_speech.stages.spelling import split_words, spoken
from mlx_speech.stages.viterbi import viterbi
from mlx_speech.transcript import Segment, Word

RATE, HOP = 16_000, 0.02


def random_log_probs(rng: np.random.Generator, frames: int, columns: int) -> np.ndarray:
    logits = 2 * rng.normal(size=(frames, columns)).astype(np.float32)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


# --- Viterbi ---------------------------------------------------------------------------------------------------------


def collapse(columns: tuple[int, ...], wildcard: int | None = None) -> list[tuple[int, ...]]:
    """What a sequence of columns spells: repeats merged, blanks (0) removed. A run of wildcards may be any number."""
    runs = [(column, len(list(group))) for column, group in itertools.groupby(columns)]
    choices = [[()] if c == 0 else [(c,) * k for k in range(1, n + 1)] if c == wildcard else [(c,)] for c, n in runs]
    return [tuple(itertools.chain(*parts)) for parts in itertools.product(*choices)]


def best_of_all(log_probs: np.ndarray, target: np.ndarray, wildcard: int | None = None) -> float:
    """The log-probability of the likeliest of all columns^frames sequences that spell `target`."""
    frames, columns = log_probs.shape
    return max(
        (
            sum(float(log_probs[t, c]) for t, c in enumerate(sequence))
            for sequence in itertools.product(range(columns), repeat=frames)
            if tuple(target.tolist()) in collapse(sequence, wildcard)
        ),
        default=-np.inf,
    )


def columns_of(states: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.where(states & 1, target[np.minimum(states >> 1, len(target) - 1)], 0)


def check_path(
    states: np.ndarray, log_probs: np.ndarray, target: np.ndarray, score: float, wildcard: int | None
) -> None:
    """It is a way through the states, says `target`, and has the score it claims."""
    assert states[0] in (0, 1) and states[-1] in (2 * len(target) - 1, 2 * len(target))
    for before, after in itertools.pairwise(states.tolist()):
        assert 0 <= after - before <= 2
        if after - before == 2:
            assert after & 1 and (target[after >> 1] != target[before >> 1] or target[after >> 1] == wildcard)
    assert set(range(len(target))) <= set((states[(states & 1) == 1] >> 1).tolist())
    columns = columns_of(states, target)
    assert score == pytest.approx(log_probs[np.arange(len(states)), columns].sum(), abs=1e-4)


@pytest.mark.parametrize("wildcard", [None, 2])
def test_viterbi_finds_the_best_of_all_paths(wildcard: int | None) -> None:
    rng = np.random.default_rng(0)
    shapes = [(t, n) for t in (1, 2, 3, 4, 6) for n in (1, 2, 3, 4)]
    log_probs = [random_log_probs(rng, frames, 3) for frames, _ in shapes]
    targets = [rng.integers(1, 3, size=size) for _, size in shapes]
    paths, scores = viterbi(log_probs, targets, wildcard=wildcard)
    found = 0
    for row, target in enumerate(targets):
        expected = best_of_all(log_probs[row], target, wildcard)
        assert scores[row] == pytest.approx(expected, abs=1e-5)
        path = paths[row]
        assert (path is None) == (expected == -np.inf)
        if path is not None:
            check_path(path, log_probs[row], target, float(scores[row]), wildcard)
            found += 1
    assert 0 < found < len(shapes)


def test_equal_labels_need_a_blank_between_and_different_ones_none() -> None:
    rng = np.random.default_rng(1)
    log_probs = [random_log_probs(rng, frames, 4) for frames in (2, 3, 2, 2)]
    targets = [np.array(t) for t in ([1, 1], [1, 1], [1, 2], [3, 3])]
    paths, _ = viterbi(log_probs, targets, wildcard=3)
    assert paths[0] is None
    assert [path.tolist() for path in paths[1:] if path is not None] == [[1, 2, 3], [1, 3], [1, 3]]


def score_of_states(log_probs: np.ndarray, target: np.ndarray, wildcard: int | None) -> float:
    """The log-probability of the likeliest path, state by state."""
    states = 2 * len(target) + 1
    scores = [0.0] + [-np.inf] * (states - 1)
    columns = columns_of(np.arange(states), target)
    for frame in log_probs.astype(np.float64):
        before = scores
        scores = []
        for state in range(states):
            best = max(before[max(0, state - 1) : state + 1])
            if state & 1 and state > 1 and (columns[state] != columns[state - 2] or columns[state] == wildcard):
                best = max(best, before[state - 2])
            scores.append(best + frame[columns[state]])
    return max(scores[-2:])


@pytest.mark.parametrize("wildcard", [None, 1])
def test_many_equal_labels(wildcard: int | None) -> None:
    rng = np.random.default_rng(6)
    log_probs = [random_log_probs(rng, int(rng.integers(1, 90)), 3) for _ in range(60)]
    targets = [rng.integers(1, 3, size=rng.integers(1, 40)) for _ in log_probs]
    assert sum((target[1:] == target[:-1]).sum() for target in targets) > 300
    paths, scores = viterbi(log_probs, targets, wildcard=wildcard)
    assert any(path is None for path in paths) and sum(path is not None for path in paths) > 20
    for row, target in enumerate(targets):
        expected = score_of_states(log_probs[row], target, wildcard)
        path = paths[row]
        assert (path is None) == (expected == -np.inf)
        assert scores[row] == pytest.approx(expected, abs=1e-4)
        if path is not None:
            check_path(path, log_probs[row], target, float(scores[row]), wildcard)


def test_viterbi_of_many_is_that_of_each_alone() -> None:
    rng = np.random.default_rng(2)
    log_probs = [random_log_probs(rng, int(rng.integers(1, 200)), int(rng.integers(3, 12))) for _ in range(40)]
    targets = [rng.integers(1, row.shape[1], size=rng.integers(1, 40)) for row in log_probs]
    paths, scores = viterbi(log_probs, targets)
    assert any(path is None for path in paths) and sum(path is not None for path in paths) > 20
    for row, path in enumerate(paths):
        (alone,), score = viterbi(log_probs[row : row + 1], targets[row : row + 1])
        assert scores[row] == score[0]
        assert (alone is None) == (path is None) and (alone is None or alone.tolist() == np.array(path).tolist())


def test_a_long_path_keeps_its_precision() -> None:
    rng = np.random.default_rng(3)
    log_probs, target = random_log_probs(rng, 6000, 30), rng.integers(1, 30, size=900)
    (path,), (score,) = viterbi([log_probs], [target])
    assert path is not None
    assert score == pytest.approx(log_probs[np.arange(6000), columns_of(path, target)].sum(dtype=np.float64), rel=1e-6)


def test_log_probs_that_are_no_numbers_have_no_path() -> None:
    log_probs = random_log_probs(np.random.default_rng(4), 9, 4)
    broken = log_probs.copy()
    broken[4] = np.nan
    paths, _ = viterbi([log_probs, broken], [np.array([1, 2]), np.array([1, 2])])
    assert paths[0] is not None and paths[1] is None


# --- the model -------------------------------------------------------------------------------------------------------


@cache
def tiny() -> Model:
    mx.random.seed(0)
    sizes = {key: value for key, value in make.W2V_NARROW.items() if key != "conv_dim"}
    model = Model(ModelArgs(vocab_size=len(make.VOCAB), vocab=make.LABELS, conv_dim=[16] * 7, **sizes))
    model.eval()
    return model


def with_vocab(labels: str, delimiter: str | None = "|") -> Any:
    """A stand-in for a model where only the vocabulary matters."""
    args = ModelArgs(vocab_size=len(labels) + 1, vocab=["<pad>", *labels], word_delimiter=delimiter)
    return SimpleNamespace(args=args)


@pytest.mark.parametrize("kind", ["group", "layer"])
def test_log_probabilities_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    original = make.wav2vec2_transformers(kind, **make.W2V_NARROW)
    normalised = kind == "layer"
    model: Any = load(make.save_wav2vec2(original, tmp_path / "model", do_normalize=normalised))
    assert model.args.do_normalize == normalised
    audio = make.speech(8)
    waveforms = [audio[:40000] * 3 + 0.1, audio[20000:], audio[:400], audio[1000:1160], audio[:16000]]
    found, frames = log_probabilities(waveforms, model)
    assert found.shape == (5, model.num_frames(7 * RATE), len(make.VOCAB)) and frames == [124, 337, 1, 1, 49]
    for row, waveform in enumerate(waveforms):
        sound = torch.from_numpy(waveform.copy())
        if normalised:  # as Wav2Vec2FeatureExtractor does
            sound = (sound - sound.mean()) / torch.sqrt(sound.var(unbiased=False) + 1e-7)
        sound = torch.nn.functional.pad(sound, (0, max(0, 400 - len(sound))))
        with torch.inference_mode():
            expected = torch.log_softmax(original(sound[None]).logits[0], dim=-1).numpy()
        assert len(expected) == frames[row]
        ours = np.array(found[row, : frames[row]])
        assert np.abs(ours - expected).max() < 1e-3 * expected.std()


def segments_of(texts: list[str], seconds: float = 2.0) -> list[Segment]:
    return [Segment(k * seconds, (k + 1) * seconds, text) for k, text in enumerate(texts)]


TEXTS = [
    "Hello world, it's me.",
    "One",
    "A much longer sentence with eleven words in it, I think.",
    "...",
    "",
    "Yes no",
]


def test_a_batch_is_its_segments_alone_in_any_order() -> None:
    audio, model = make.speech(12), tiny()
    segments = [replace(s, end=s.end - 0.1 * k) for k, s in enumerate(segments_of(TEXTS))]
    together = align(segments, audio, model, language="en", batch_size=4)
    assert together == align(segments, audio, model, language="en", batch_size=1)
    assert together == tuple(align([s], audio, model, language="en")[0] for s in segments)
    assert together == align(segments[::-1], audio, model, language="en", batch_size=4)[::-1]
    assert [s.text for s in together] == TEXTS and together[4].words == ()


def test_one_viterbi_or_many_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    audio, segments = make.speech(12), segments_of(TEXTS)
    expected = align(segments, audio, tiny(), language="en", batch_size=2)
    monkeypatch.setattr(stage, "BYTES_PER_VITERBI", 1)
    monkeypatch.setattr(stage, "SAMPLES_PER_ROW", 1)
    assert align(segments, audio, tiny(), language="en", batch_size=2) == expected


def test_progress_reaches_the_whole_sound() -> None:
    seen: list[float] = []
    align(
        segments_of(["one", "two", "three"]),
        make.speech(6),
        tiny(),
        language="en",
        batch_size=2,
        on_progress=seen.append,
    )
    assert seen == [4.0, 6.0]


def test_steps_give_others_a_turn_and_return_the_same() -> None:
    segments, audio = segments_of(["one", "two", "three"]), make.speech(6)
    work = stage.align_steps(segments, audio, tiny(), language="en", batch_size=2)
    assert [next(work), next(work)] == [4.0, 6.0]
    with pytest.raises(StopIteration) as stopped:
        next(work)
    assert stopped.value.value == align(segments, audio, tiny(), language="en", batch_size=2)


# --- planted sound ---------------------------------------------------------------------------------------------------


class Planted:
    """A model that hears the label written into each frame of the sound: sample = index / 1000."""

    def __init__(self, labels: str, delimiter: str | None = "|", certainty: float = 9.0):
        self.args = with_vocab(labels, delimiter).args
        self.certainty = certainty

    num_frames = Model.num_frames

    def __call__(self, waveform: mx.array, lengths: mx.array) -> mx.array:
        heard = np.rint(np.array(waveform)[:, 200::320] * 1000).astype(int)
        heard = heard[:, : self.num_frames(waveform.shape[1])]
        return mx.array(self.certainty * (heard[..., None] == np.arange(self.args.vocab_size)), mx.float32)

    def sound(self, frames: str) -> np.ndarray:
        """A character per frame, "." for the blank."""
        index = [0 if c == "." else self.args.vocab.index(c) for c in frames]
        return np.pad(np.repeat(np.array(index, np.float32) / 1000, 320), (40, 80))


LATIN = "|abcdefghijklmnopqrstuvwxyz'"


def times(
    frames: str, model: Planted, text: str, language: str = "en", offset: float = 0.0, **options: Any
) -> list[Word]:
    """The words of `text` in planted frames, their times in frames."""
    sound = np.concatenate([np.zeros(round(offset * RATE), np.float32), model.sound(frames)])
    segment = Segment(offset, len(sound) / RATE, text)
    (found,) = align([segment], sound, model, language=language, **options)

    def frame(time: float) -> float:
        return (time - offset - 40 / RATE) / HOP

    def framed(word: Word) -> Word:
        chars = tuple(replace(c, start=frame(c.start), end=frame(c.end)) for c in word.chars)
        return replace(word, start=frame(word.start), end=frame(word.end), chars=chars)

    return [framed(word) for word in found.words]


def check_times(words: list[Word], expected: list[tuple[str, float, float]], within: float = 0.06) -> None:
    """`within` : frames; a millisecond is a twentieth of one"""
    assert [word.text for word in words] == [text for text, _, _ in expected]
    for word, (_, start, end) in zip(words, expected, strict=True):
        assert word.start == pytest.approx(start, abs=within) and word.end == pytest.approx(end, abs=within), word


@pytest.mark.parametrize("offset", [0.0, 7.5])
def test_planted_characters_that_fill_their_time(offset: float) -> None:
    frames = "...hhheelll.llloo|||....wwwoorrlldd..."
    words = times(frames, Planted(LATIN), "Hello, world!", offset=offset)
    check_times(words, [("Hello,", 3, 17), ("world!", 24, 35 + stage.TAIL_FRAMES)])
    assert all(word.aligned and word.score > 0.99 for word in words)


def test_planted_spikes() -> None:
    frames = "...h...e...l...l...o........|..w...o...r...l...d........"
    words = times(frames, Planted(LATIN), "hello world")
    # "o" ends after its spike and TAIL, not at the delimiter; so does "d"
    check_times(words, [("hello", 3, 20 + stage.TAIL_FRAMES), ("world", 31, 48 + stage.TAIL_FRAMES)])


def test_characters_of_words() -> None:
    (word,) = times("..a...b..c......", Planted(LATIN), "(Ab-c)", return_char_alignments=True)
    assert [c.text for c in word.chars] == list("(Ab-c)")
    assert [c.score > 0.9 for c in word.chars] == [False, True, True, False, True, False]
    spans = [(2, 2), (2, 6), (6, 9), (9, 9), (9, 13), (13, 13)]
    for char, (start, end) in zip(word.chars, spans, strict=True):
        assert (char.start, char.end) == pytest.approx((start, end), abs=0.06)
    assert (word.start, word.end) == (word.chars[0].start, word.chars[-1].end)
    assert times("..a...b..c......", Planted(LATIN), "(Ab-c)")[0].chars == ()


def test_numbers_are_spelled_and_belong_to_their_word() -> None:
    frames = "..i..|..f.o.r.t.y.|.t.w.o..|.m.e.n...."
    words = times(frames, Planted(LATIN), "I, 42 men", return_char_alignments=True)
    check_times(words, [("I,", 2, 5), ("42", 8, 25 + stage.TAIL_FRAMES - 1), ("men", 29, 37.5)], within=1.01)
    four, two = words[1].chars
    assert (four.text, two.text) == ("4", "2") and four.end == two.start and four.score == two.score > 0.9


def test_an_unknown_word_takes_the_frames_between_its_neighbours() -> None:
    """Hindi has no words for numbers here, so 42 is two wildcards, in whose frames nine letters are heard."""
    frames = "..a.b..|..p.q.r.s.t.u.v.w.x...|..c.d....."
    words = times(frames, Planted(LATIN), "ab 42 cd", language="hi")
    check_times(words, [("ab", 2, 7), ("42", 10, 27 + stage.TAIL_FRAMES), ("cd", 33, 38.5)], within=1.01)
    assert words[1].aligned and words[1].score > 0.5


def test_characters_are_the_words_of_chinese_and_its_spaces_are_not_missed() -> None:
    model = Planted("|你好吗我")
    words = times("..你...||好....我..||..吗....", model, "你好，我吗？", language="zh")
    check_times(words, [("你", 2, 6), ("好，", 8, 12), ("我", 13, 17), ("吗？", 20, 24)])


def test_lengths_between_the_buckets_do_not_matter() -> None:
    for frames in (10, 48, 49, 50, 51, 99):
        words = times("." * 3 + "a" + "." * frames, Planted(LATIN), "a")
        check_times(words, [("a", 3, 4 + stage.TAIL_FRAMES)])


# --- what words hold to ----------------------------------------------------------------------------------------------


def check_words(segment: Segment, language: str, method: str = "nearest") -> None:
    expected = split_words(segment.text)
    if method != "ignore":
        assert [word.text for word in segment.words] == expected
    assert "".join(expected) == "".join(segment.text.split())
    edges = [segment.start, *(t for word in segment.words for t in (word.start, word.end)), segment.end]
    assert edges == sorted(edges)
    for word in segment.words:
        assert 0 <= word.score <= 1 and (word.aligned or word.score == 0)
        assert word.start < word.end or not word.aligned or word.end == segment.end
        assert round(word.start, 3) == word.start or word.start in (segment.start, segment.end)
        if word.chars:
            assert "".join(char.text for char in word.chars) == word.text
            times = [t for char in word.chars for t in (char.start, char.end)]
            assert times == sorted(times) and (times[0], times[-1]) == (word.start, word.end)
            assert all(0 <= char.score <= 1 for char in word.chars)


CHARACTERS = "aAbeZ éßœÅç'’.,!?-—…\"«»()%$€5042٤३ñ\u0301\u093f中好カー。，「」กเำक़कিअبَبцЖ한☺♪ \n\t\u00a0"


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(st.sampled_from(CHARACTERS), max_size=40), max_size=4),
    language=st.sampled_from(["en", "sv", "zh", "ja", "th", "tr", "hi", "xx"]),
    method=st.sampled_from(stage.METHODS),
    cuts=st.lists(st.floats(0, 2.5), min_size=5, max_size=5),
)
@pytest.mark.filterwarnings("ignore:the alignment model has no labels")
def test_words_are_in_order_inside_their_segment_and_spell_its_text(
    texts: list[str], language: str, method: str, cuts: list[float]
) -> None:
    edges = sorted(cuts)
    segments = [Segment(edges[k], edges[k + 1], text.strip()) for k, text in enumerate(texts)]
    audio = make.speech(2)
    options: Any = {"language": language, "interpolate_method": method, "return_char_alignments": True}
    found = align(segments, audio, tiny(), **options)
    assert [replace(segment, words=()) for segment in found] == segments
    for segment in found:
        check_words(segment, language, method)


@pytest.mark.parametrize(
    ("language", "labels", "text"),
    [
        ("sv", "|abcdefghijklmnopqrstuvwxyzåäöé", "Räksmörgås à 25 kr, idé!"),
        ("ja", "|こんにちは東京タワーです", "こんにちは、東京タワーです。"),
        ("zh", "|我们去北京吧二〇四十", "我们去北京吧！24"),
        ("ar", "|ابتثجحخدذرزسشصضطظعغفقكلمنهويأإآةىؤئء", "مَرحَبًا، كيف حالك؟ 42"),
        ("hi", "|नमसतेकयाहलचआपै\u094d\u093e\u0947", "नमस्ते, क्या हाल है?"),
        ("ko", "|안녕하세요반갑습니다", "안녕하세요. 반갑습니다!"),
        ("el", "|αβγδεζηθικλμνξοπρσςτυφχψω", "Καλημέρα σας, Ελλάδα"),
    ],
)
def test_scripts(language: str, labels: str, text: str) -> None:
    model = Planted(labels)
    assert Labels(model.args, language).coverage(text) > 0.8
    sound = 0.001 * np.random.default_rng(0).integers(0, len(labels), size=4 * RATE).astype(np.float32)
    (found,) = align([Segment(0.5, 3.5, text)], sound, model, language=language, return_char_alignments=True)
    check_words(found, language)
    assert all(word.aligned for word in found.words)


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", ["Hello,", "world", "—", "3.5%"]),
        ("zh", ["我", "用", "iPhone", "手", "机，", "好。", "「你", "好」", "吗？", "3.5%", "的", "A&B"]),
        ("ja", ["東", "京", "タ", "ワ", "ー", "で", "す。"]),
        ("th", ["ส", "วั", "ส", "ดี", "เขา", "ไป", "น้ำ"]),
        ("my", ["ကျွ", "န်", "တော်"]),
        ("km", ["ភា", "សា", "ខ្មែ", "រ"]),
    ],
)
def test_words(language: str, words: list[str]) -> None:
    assert split_words((" " if language == "en" else "").join(words)) == words
    assert split_words(" " + " \n".join(words)) == words


def labels_of(model: Any, text: str, language: str = "en") -> list[str]:
    vocab = model.args.vocab
    pieces = [
        piece for k, word in enumerate(split_words(text)) for piece in Labels(model.args, language).pieces(word, k)
    ]
    return ["".join("*" if label < 0 else vocab[label] for label in piece.labels) for piece in pieces]


def test_how_text_is_written_in_labels() -> None:
    upper, lower = with_vocab("|ABCDEFGHIJKLMNOPQRSTUVWXYZ'"), with_vocab("|abcdeéghilmnorstuß")
    assert labels_of(upper, "Don’t 'quote' café, Straße œuvre") == [
        *"DON'T", *"QUOTE", *"CAFE", *"STRA", "SS", "E", "OE", *"UVRE",
    ]  # fmt: skip
    assert labels_of(lower, "É e\u0301 ß ça") == ["é", "é", "ß", "c", "a"]
    assert labels_of(upper, "a ж ☺ — £ ¥ #1") == ["A", "*", "POUNDS", "*", "*", "ONE"]
    assert labels_of(with_vocab("|aA"), "aA") == ["a", "A"]
    assert labels_of(with_vocab("|ıi"), "Iİ", "tr") == ["ı", "i"]
    assert labels_of(with_vocab("|0123456789"), "42") == ["4", "2"]
    assert labels_of(upper, "21st") == ["TWENTY|FIRST"]
    assert labels_of(with_vocab("abcdefghijklmnopqrstuvwxyz", None), "21st") == ["twentyfirst"]


def test_how_much_of_a_text_a_vocabulary_covers() -> None:
    model = with_vocab(LATIN)
    covers = Labels(model.args, "").coverage
    assert covers("Hello, 42 wörld!") == 1 and covers("?! 42") == 1 and covers("") == 1
    assert covers("Привет") == 0 and covers("да ok") == 0.5


@pytest.mark.parametrize(
    ("word", "language", "expected"),
    [
        ("$5,", "en", [(0, 2, "five dollars"), (2, 3, None)]),
        ("$5.50", "en", [(0, 5, "five dollars fifty")]),
        ("3rd", "en", [(0, 3, "third")]),
        ("10:30", "en", [(0, 5, "ten thirty")]),
        ("1,234.5", "en", [(0, 7, "one thousand, two hundred and thirty-four point five")]),
        ("1.234,5", "de", [(0, 7, "eintausendzweihundertvierunddreißig komma fünf")]),
        ("3.5", "de", [(0, 3, "drei komma fünf")]),
        ("50%", "sv", [(0, 3, "femtio procent")]),
        ("1999", "en", [(0, 4, "nineteen ninety-nine")]),
        ("007", "en", [(0, 3, "zero zero seven")]),
        ("B&B", "en", [(0, 1, None), (1, 2, "and"), (2, 3, None)]),
        ("٤٢", "ar", [(0, 2, "اثنان و أربعون")]),
        ("42", "zh", [(0, 2, "四十二")]),
        ("42%", "hi", [(0, 3, None)]),
        ("1234567", "am", [(0, 7, None)]),  # num2words would never come back
        ("9" * 40, "en", [(0, 40, " ".join(["nine"] * 40))]),
        ("word", "en", [(0, 4, None)]),
        ("", "en", []),
    ],
)
def test_numbers_in_words(word: str, language: str, expected: list[tuple[int, int, str | None]]) -> None:
    assert spoken(word, language) == expected


@given(
    word=st.text("0123456789.,:'$€£%&+-/astndrh٤३４", max_size=12),
    language=st.sampled_from(["en", "de", "fr", "sv", "ar", "hi", "ja"]),
)
@settings(max_examples=200, deadline=None)
def test_the_parts_of_any_number_are_the_whole(word: str, language: str) -> None:
    parts = spoken(word, language)
    assert "".join(word[start:end] for start, end, _ in parts) == word
    assert all(start < end and (text is None or text.strip()) for start, end, text in parts)


# --- where there is nothing to align ---------------------------------------------------------------------------------


def test_too_little_sound_for_the_text_gives_interpolated_words() -> None:
    text = "far too many letters for ten milliseconds"
    segments = [Segment(1.0, 1.01, text), Segment(1.2, 1.4, text), Segment(5.0, 6.0, text), Segment(3.0, 3.0, text)]
    for segment in align(segments, make.speech(4), tiny(), language="en"):
        check_words(segment, "en")
        assert len(segment.words) == 7 and not any(word.aligned for word in segment.words)
        assert (segment.words[0].start, segment.words[-1].end) == (segment.start, segment.end)


def test_ten_milliseconds_can_hold_a_letter() -> None:
    (found,) = align([Segment(1.0, 1.01, "A")], make.speech(2), tiny(), language="en")
    (word,) = found.words
    assert word.aligned and 1.0 <= word.start < word.end <= 1.01


def test_words_spread_by_their_length() -> None:
    (found,) = align([Segment(0.0, 1.0, "?? ?????? ??")], make.speech(1), tiny(), language="en")
    assert [(word.start, word.end) for word in found.words] == [(0, 0.2), (0.2, 0.8), (0.8, 1.0)]


A, B = ("a", 2, 6), ("b", 19, 23)  # frames; the sound reaches from -0.125 to 29.25


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("nearest", [("…", 1, 2), A, ("–", 6, 7), ("-", 7, 8), ("—", 18, 19), B, ("!", 23, 24)]),
        ("linear", [("…", -0.125, 2), A, ("–", 6, 10.33), ("-", 10.33, 14.67), ("—", 14.67, 19), B, ("!", 23, 29.25)]),
        ("ignore", [A, B]),
    ],
)
def test_words_without_a_sound_of_their_own(method: str, expected: list[tuple[str, float, float]]) -> None:
    words = times("..a......|.........b.........", Planted(LATIN), "… a – - — b !", interpolate_method=method)
    check_times(words, expected)
    assert [word.aligned for word in words] == [word.text in ("a", "b") for word in words]


def test_another_script_is_said_once_and_interpolated() -> None:
    segments = segments_of(["Привет, мир", "как дела"])
    with pytest.warns(UserWarning, match="align_model") as said:
        found = align(segments, make.speech(4), tiny(), language="ru")
    assert len(said) == 1 and "ru" in str(said[0].message) and "\n" not in str(said[0].message)
    for segment in found:
        check_words(segment, "ru")
        assert not any(word.aligned for word in segment.words)


def test_one_segment_in_another_script_does_not_disturb_the_others() -> None:
    found = align(segments_of(["hello there my friend", "как дела"]), make.speech(4), tiny(), language="en")
    assert [all(word.aligned for word in segment.words) for segment in found] == [True, False]


def test_nothing_to_align() -> None:
    assert align([], make.speech(1), tiny(), language="en") == ()
    assert align([Segment(0.0, 1.0, "")], np.zeros(0), tiny(), language="en")[0].words == ()
    (found,) = align([Segment(0.0, 1.0, "hello")], np.zeros(0), tiny(), language="en")
    assert [word.aligned for word in found.words] == [False]


def test_options() -> None:
    with pytest.raises(OptionError, match="interpolate_method"):
        align([], make.speech(1), tiny(), language="en", interpolate_method="cubic")
    with pytest.raises(OptionError, match="batch_size"):
        align([], make.speech(1), tiny(), language="en", batch_size=0)
    with pytest.raises(AudioError, match="one channel"):
        align([], np.zeros((2, 100)), tiny(), language="en")
    with pytest.raises(OptionError, match="vocab"):
        align([], make.speech(1), SimpleNamespace(args=ModelArgs(vocab_size=4)), language="en")
