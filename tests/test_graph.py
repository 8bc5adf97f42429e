"""What a GPU is given to do (`benchmarks.graph`): that it is counted rightly, and that it is little."""

from __future__ import annotations

import math
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import counting, graph, graph_shapes, graph_waits
from mlx_speech import load_audio
from mlx_speech.blas import as_on_gpu, on_cpu
from mlx_speech.models.layers import LSTM
from mlx_speech.ops import lstm
from mlx_speech.package_data import DEMO

# Tiny's layers, so that shares are those of the table, and so narrow that weights are made in no time.
SIZES = {**graph.TINY, "n_audio_state": 64, "n_audio_head": 1, "n_text_state": 64, "n_text_head": 1}
POSITIONS = 1100  # of the audio, a number that no other axis has


def evaluated(*shapes: tuple[int, ...]) -> list[mx.array]:
    arrays = [mx.ones(shape) for shape in shapes]
    mx.eval(arrays)
    return arrays


# --- counting ---------------------------------------------------------------------------------------------------------


def test_what_is_fused_counts_once() -> None:
    x, y = evaluated((3, 4), (3, 4))
    compiled = mx.compile(lambda x, y: mx.exp(x) * 2 + y)
    counted = counting.count(lambda: [compiled(x, y)])
    assert counted.names == {"Exp": 1, "Broadcast": 1, "Multiply": 1, "Add": 1}
    assert (counted.primitives, counted.compiled, counted.launches) == (4, 1, 1)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_bytes_of_a_product(rows: int, inner: int, columns: int) -> None:
    x, w, bias = evaluated((rows, inner), (columns, inner), (columns,))
    counted = counting.count(lambda: [mx.addmm(bias, x, w.T)], weights=[w, bias])
    assert counted.bytes.weights == 4 * (columns * inner + columns)  # a bias is read once, not for every row
    assert counted.bytes.activations == 4 * rows * (inner + columns)
    assert counted.launches == 1


def test_views_cost_nothing_and_copies_do() -> None:
    (x,) = evaluated((6, 4))
    view = counting.count(lambda: [x[2:4].T.reshape(4, 2, 1)])
    assert view.launches == 0 and view.bytes.total == 0
    copy = counting.count(lambda: [x.T.reshape(8, 3)])
    assert copy.launches == 1 and copy.bytes.total == 2 * x.nbytes
    part = counting.count(lambda: [mx.exp(x[2:4])])
    assert part.bytes.total == 2 * 2 * 4 * 4


def test_a_slot_is_written_in_place_and_a_longer_cache_is_not() -> None:
    cache, new = evaluated((2, 8, 4), (2, 1, 4))

    def write() -> list[mx.array]:
        own = cache[:]
        own[:, 3:4] = new
        return [own]

    in_place = counting.count(write, kept=[cache])
    assert in_place.bytes.kept == new.nbytes and in_place.bytes.activations == new.nbytes
    longer = counting.count(lambda: [mx.concatenate([cache, new], axis=1)], kept=[cache])
    assert longer.launches == 2  # a copy of each
    assert longer.bytes.kept == cache.nbytes and longer.bytes.activations == cache.nbytes + 2 * new.nbytes


def test_norms_and_attention_are_one_primitive_each_and_only_while_counted() -> None:
    norm = nn.LayerNorm(8)
    queries, keys = evaluated((1, 2, 1, 8), (1, 2, 50, 8))
    mx.eval(norm.parameters())
    before = mx.fast.layer_norm, mx.fast.scaled_dot_product_attention, mx.async_eval, mx.contiguous
    counted = counting.count(
        lambda: [mx.fast.scaled_dot_product_attention(norm(queries), keys, keys, scale=1.0)], kept=[keys]
    )
    assert counted.primitives == counted.launches == 2
    assert counted.bytes.kept == 2 * keys.nbytes
    assert before == (mx.fast.layer_norm, mx.fast.scaled_dot_product_attention, mx.async_eval, mx.contiguous)
    assert on_cpu()


def test_as_on_gpu_ends_with_its_block() -> None:
    with as_on_gpu():
        assert not on_cpu()
        with pytest.raises(KeyError), as_on_gpu():
            raise KeyError
        assert not on_cpu()
    assert on_cpu()


def test_waits_are_looks_at_what_is_not_known_to_be_done() -> None:
    with counting.waits() as counted:
        first, second, third = mx.ones(3) * 2, mx.ones(3) * 3, mx.ones(3) * 4
        mx.async_eval(first)
        mx.async_eval(second, [third])
        assert (counted.waits, counted.handed_over) == (0, 2)
        assert np.array(second).tolist() == [3, 3, 3]
        assert counted.waits == 1
        assert np.array(first)[0] == 2 and third.tolist() == [4, 4, 4]  # handed over before, or with it
        assert counted.waits == 1
        assert (first + 1).sum().item() == 9
        assert bool(mx.array(1) * 1 == 1)
        assert counted.waits == 3
        mx.eval(first, {"one": second})
        assert counted.waits == 3


# --- Whisper ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, graph.BATCH])
def test_a_step_of_the_decoder_is_little_beside_mlx_whispers(batch: int) -> None:
    ours = graph.our_step(graph.our_whisper(SIZES), batch)
    theirs = graph.their_step(graph.their_whisper("mlx-whisper", SIZES), batch)
    assert ours.primitives <= graph.SHARE_OF_PRIMITIVES * theirs.primitives
    assert ours.compiled <= graph.SHARE_OF_PRIMITIVES * theirs.compiled
    assert ours.launches < theirs.launches
    assert ours.bytes.activations < theirs.bytes.activations


def test_a_token_with_its_rules_is_few_launches() -> None:
    model = graph.our_whisper(SIZES)
    step = graph.our_step(model, graph.BATCH)
    token = graph.our_step(model, graph.BATCH, with_choice=True)
    assert token.compiled - step.compiled <= 0.5 * (token.primitives - step.primitives)


def test_no_step_copies_what_grows_with_the_audio_or_the_text() -> None:
    sizes = {**SIZES, "n_audio_ctx": POSITIONS}

    def touching(counted: counting.Counted) -> set[str]:
        """What reads or writes arrays as long as the audio."""
        names = set()
        for name, inputs, outputs in counted.shapes:
            if any(POSITIONS in shape for shape in [*inputs, *outputs]):
                names.add(name)
        return names

    ours = graph.our_step(graph.our_whisper(sizes), 2)
    assert touching(ours) == {counting.STAND_IN}  # attention alone
    assert ours.names["Concatenate"] == 0 and ours.names["SliceUpdate"] > 0
    theirs = graph.their_step(graph.their_whisper("mlx-whisper", sizes), 2)
    assert touching(theirs) > {"Matmul"} and theirs.names["Concatenate"] > 0


def test_the_host_waits_once_for_eight_tokens() -> None:
    model = graph.our_whisper({**graph.NARROW, "n_audio_ctx": 100})
    assert graph.our_waits(model) <= 1 / graph.TOKENS_PER_WAIT


def test_the_host_waits_once_a_batch(shared_cache: None) -> None:
    """While speech is heard, and rows of the decoder end."""
    stages = {stage.what: stage for stage in graph_waits.stages(seconds=20.0)}
    assert stages["encoder"].waits == 0
    assert 0 < stages["decoder"].waits <= stages["decoder"].count / graph.TOKENS_PER_WAIT
    assert stages["speech detection"].waits <= 2 * stages["speech detection"].count  # probabilities, and the state
    for what in ("words from the cross-attention", "forced alignment"):
        assert 0 < stages[what].waits <= math.ceil(stages[what].count / graph_waits.BATCH)
    for what in ("segmentation", "embedding"):
        assert 0 < stages[what].waits <= math.ceil(stages[what].count / graph_waits.WINDOWS)


# --- other models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [1, 2])
def test_a_step_of_an_lstm_is_three_launches_however_many_windows(directions: int) -> None:
    layer = LSTM(6, 4, directions)
    launches = {}
    for steps in (10, 300):
        for windows in (1, 16):
            (x,) = evaluated((windows, steps, 6))
            mx.eval(layer.parameters())
            launches[steps, windows] = counting.count(lambda x=x: [layer(x)[0]]).launches
    assert launches[10, 1] == launches[10, 16] and launches[300, 1] == launches[300, 16]
    blocks = -(-300 // lstm.STEPS_PER_GRAPH)
    assert launches[300, 1] - launches[10, 1] == 3 * 290 + blocks  # which are joined


def test_a_window_of_segmentation_is_a_twentieth_of_single_launches() -> None:
    counted = graph.segmentation(graph.WINDOWS)
    each = counted.launches / graph.WINDOWS
    assert each <= graph.SHARE_OF_SCAN * graph.scan_of_single_launches()


def test_functions_are_compiled_once_for_each_of_few_shapes() -> None:
    speech = load_audio(DEMO / "conversation.flac")
    sounds = [speech[:640_000], speech[:200_000]]
    noted = graph_shapes.count(sounds, graph.our_whisper({**graph.NARROW, "n_audio_ctx": 100}), batch_size=4)
    sizes = {"choice of tokens": 3 * len(graph_shapes.TEMPERATURES), "step of an LSTM": 4}
    for name, most in sizes.items():
        assert noted.given[name].total() > 2 * len(noted.given[name])
        assert noted.traced[name] == len(noted.given[name]) <= most


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_says_what_is_met_and_what_is_missing() -> None:
    step = counting.Counted(60, 50, 40, counting.Bytes(1_000_000, 2_000_000, 0), counting.Counter(), [])
    found = [graph.Line("encoder, 30 s", "mlx-audio", None, problem="not installed: no such package")]
    for batch in (1, graph.BATCH):
        for name, factor in ((graph.OURS, 1), ("mlx-whisper", 2 if batch == 1 else 1)):
            peer = counting.Counted(60 * factor, 50 * factor, 40, step.bytes, step.names, [])
            found.append(graph.Line(f"decoder step, batch {batch}", name, peer))
    found.append(graph.Line(f"segmentation, 10 s, {graph.WINDOWS} at once", graph.OURS, step, graph.WINDOWS))
    minute = [graph_waits.Stage("encoder", 9, "chunks", 1)]
    text = graph.document(found, {graph.OURS: 0.125, "mlx-whisper": 1.0}, minute, hour="")
    assert "| primitives of a decoder step, batch 1, of mlx-whisper's | 0.500 | 0.600 | met |" in text
    assert (
        f"| primitives of a decoder step, batch {graph.BATCH}, of mlx-whisper's | 1.000 | 0.600 | **missed** |" in text
    )
    assert "not installed: no such package" in text and "- mlx_speech: 8.0 tokens for each wait" in text
    assert "| decoder step, batch 1 | mlx_speech | 60 | 50 | 40 |  | 1.00 MB | 2.00 MB |  |" in text
    assert "| encoder | 9 chunks | 1 |" in text


def test_a_count_without_recordings_keeps_what_is_there_of_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "RESULTS", tmp_path / "graph.md")
    assert graph.hour_before() == ""
    graph.RESULTS.write_text("# Counted\n\n## Waits\n", encoding="utf-8")
    assert graph.hour_before() == ""
    hour = f"{graph.HOUR}\n\n| function | calls |\n|---|---|\n| choice | 8 |"
    graph.RESULTS.write_text(f"# Counted\n\n## Waits\n\n{hour}\n", encoding="utf-8")
    assert graph.hour_before() == hour
