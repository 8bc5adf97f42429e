"""What a GPU is given to do for a token, a chunk and a window, beside mlx-whisper and mlx-audio: counted, not timed.

    python -m benchmarks.graph                        # writes benchmarks/graph.md; what it has of an hour stays
    python -m benchmarks.graph --recordings FOLDER    # and an hour of these recordings, cut as the pipeline does it

Nothing here needs a GPU or a checkpoint: weights are random, in float16, and how it is counted says `counting`. Beside
a step of the decoder stands a whole token, with Whisper's rules of what may be said and the choice among it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import counting, graph_waits
from benchmarks.counting import Counted

OURS = "mlx_speech"
RESULTS = Path(__file__).parent / "graph.md"
HOUR = "## Shapes of an hour"
TINY = {"n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 384, "n_audio_head": 6, "n_audio_layer": 4}
TINY |= {"n_vocab": 51865, "n_text_ctx": 448, "n_text_state": 384, "n_text_head": 6, "n_text_layer": 4}
NARROW = {**TINY, "n_audio_state": 64, "n_audio_head": 1, "n_audio_layer": 1}
NARROW |= {"n_text_state": 64, "n_text_head": 1, "n_text_layer": 1}
PROMPT = 40  # tokens before the step that is counted
WINDOW = 160_000  # samples: 10 s
WINDOWS = 32  # at once, as `mlx_speech.stages.diarize` has them on a GPU
FRAMES = 589  # of a window of PyanNet, and of the masks of its voices
GATES = 4  # of an LSTM
TOKENS = 64  # that are decoded to count waits
BATCH = 8

# What is asked of the graphs.
SHARE_OF_PRIMITIVES = 0.6  # of mlx-whisper's, for a step of the decoder
TOKENS_PER_WAIT = 8
SHARE_OF_SCAN = 1 / 20  # launches of a window of PyanNet, of one for each gate of each step of each layer


INTRODUCTION = """\
# What a GPU is given to do

Written by `python -m benchmarks.graph`: counted on graphs that are built as for a GPU, in float16, with Whisper tiny's
sizes and random weights. No figure here is a time, and none comes from a GPU. *Primitives* are the nodes of MLX's graph
with nothing fused; *compiled as one* counts once what `mx.compile` fuses; *launches* leaves out mere views, and counts
every array that is concatenated. Layer norm and attention are one primitive each, as MLX has them on a GPU; mlx-whisper
and mlx-audio compute attention in parts. Bytes are what all primitives but views read and write, with nothing fused, so
those of activations are more than reach memory."""
WAITS = f"""\
Of the host for the device, while a greedy batch of {BATCH} writes {TOKENS} tokens in each row (a narrow model):"""
MINUTE = """\
And while a minute of speech goes through all stages of mlx_speech (the package's small models; rows end where the text
does, and others enter):"""


@dataclass(frozen=True)
class Line:
    """One line of the table: `counted` of `what`, whose figures are for `parts` windows, or None where `problem` says
    why there is none."""

    what: str
    contender: str
    counted: Counted | None
    parts: int = 1
    problem: str = ""


# --- Whisper --------------------------------------------------------------------------------------------------------


def our_whisper(sizes: dict[str, int] = TINY) -> Any:
    """A model of random weights in float16."""
    from mlx_speech.models import whisper

    return _half(whisper.Model(whisper.ModelArgs(**sizes)))


def _half(model: Any) -> Any:
    """As it is loaded for a GPU: in float16 but for what the family keeps in float32."""
    from mlx_speech.checkpoint import finish

    return finish(model, "float16")


def our_step(model: Any, batch: int, with_choice: bool = False) -> Counted:
    """A step of the decoder for `batch` chunks, and with it the choice of the token."""
    import mlx.core as mx

    from mlx_speech.stages.whisper import search
    from mlx_speech.stages.whisper.rules import Limits

    args, decoder = model.args, model.decoder
    encoded = mx.zeros((batch, args.n_audio_ctx, args.n_audio_state), mx.float16)
    cache = decoder.new_cache(batch, 1)
    decoder.prefill(cache, list(range(batch)), encoded, [list(range(PROMPT))] * batch, [0] * batch)
    audio = [array for pair in cache.audio for array in pair]
    mx.eval(cache.keys, cache.values, audio, cache.visible, cache.itself)
    rules = Limits(
        never=mx.zeros((args.n_vocab,), mx.bool_),
        never_first=mx.zeros((args.n_vocab,), mx.bool_),
        begin=args.n_vocab - 1501,
        eot=args.n_vocab - 1608,
        last_first=args.n_vocab - 1451,
        timestamps=True,
    )
    ones = mx.ones((batch, 1), mx.int32)
    before = search.Hypotheses.of([ones, ones, ones, ones == 1, mx.zeros((batch, 1)), ones, ones.astype(mx.uint32)])
    mx.eval(before.arrays, rules.never, rules.never_first)

    def build() -> list[mx.array]:
        # arrays of its own, which it may write to
        fresh = replace(
            cache,
            keys=[array[:] for array in cache.keys],
            values=[array[:] for array in cache.values],
            visible=cache.visible[:],
            lengths=list(cache.lengths),
        )
        logits = decoder.step(fresh, before.state.last)
        outputs = [logits]
        if with_choice:
            after, logprobs = search.choose_on_gpu(logits, before, rules, None)
            outputs = [logprobs, *after.arrays]
        return [*outputs, *fresh.keys, *fresh.values, fresh.visible]

    return counting.count(build, list(model.arrays().values()), [*cache.keys, *cache.values, *audio])


def their_whisper(name: str, sizes: dict[str, int] = TINY) -> Any:
    """mlx-whisper's or mlx-audio's model of random weights in float16. Raises `ImportError` where it is missing."""
    import mlx.core as mx

    if name == "mlx-whisper":
        from mlx_whisper.whisper import ModelDimensions, Whisper

        model = Whisper(ModelDimensions(**sizes))
    else:
        from mlx_audio.stt.models.whisper.whisper import Model, ModelDimensions

        model = Model(ModelDimensions(**sizes), mx.float16)
    model.set_dtype(mx.float16)
    mx.eval(model.parameters(), model.encoder._positional_embedding, model.decoder._mask)
    return model


def their_step(model: Any, batch: int) -> Counted:
    """A step of their decoder for `batch` chunks."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    encoded = mx.zeros((batch, model.dims.n_audio_ctx, model.dims.n_audio_state), mx.float16)
    _, cache, _ = model.decoder(mx.zeros((batch, PROMPT), mx.int32), encoded)
    kept = [array for _, array in tree_flatten(cache)]
    token = mx.zeros((batch, 1), mx.int32)
    mx.eval(kept, encoded, token)

    def build() -> list[mx.array]:
        logits, after, _ = model.decoder(token, encoded, list(cache))
        return [logits, *(array for _, array in tree_flatten(after))]

    return counting.count(build, _parameters(model), kept)


def their_token(model: Any, batch: int) -> Counted:
    """A step of mlx-whisper's decoder, with its filters of logits and its greedy choice."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_whisper.decoding import DecodingOptions, DecodingTask

    task = DecodingTask(model, DecodingOptions(language="en", temperature=0.0))
    encoded = mx.zeros((batch, model.dims.n_audio_ctx, model.dims.n_audio_state), mx.float16)
    tokens = mx.zeros((batch, PROMPT), mx.int32)
    _, cache, _ = model.decoder(tokens, encoded)
    tokens = mx.concatenate([tokens, tokens[:, :1]], axis=1)
    total = mx.zeros(batch)
    kept = [array for _, array in tree_flatten(cache)]
    mx.eval(kept, encoded, tokens, total)
    last = tokens[:, -1:]
    mx.eval(last)

    def build() -> list[mx.array]:
        logits, after, _ = model.decoder(last, encoded, list(cache))
        logits = logits[:, -1].astype(mx.float32)
        for one in task.logit_filters:
            logits = one.apply(logits, tokens)
        chosen, completed, totals = task.decoder.update(tokens, logits, total[:])  # which it writes to
        return [chosen, completed, totals, *(array for _, array in tree_flatten(after))]

    return counting.count(build, _parameters(model), kept)


def _parameters(model: Any) -> list[Any]:
    from mlx.utils import tree_flatten

    return [array for _, array in tree_flatten(model.parameters())]


def encoder(model: Any) -> Counted:
    """A pass of 30 s through an encoder, ours or theirs."""
    import mlx.core as mx

    mel = mx.zeros((1, 2 * TINY["n_audio_ctx"], TINY["n_mels"]), mx.float16)
    mx.eval(mel)
    return counting.count(lambda: [model.encoder(mel)], _parameters(model))


def our_waits(model: Any, batch: int = BATCH) -> float:
    """Waits of the host for each step of a greedy batch."""
    import mlx.core as mx

    from mlx_speech.blas import as_on_gpu
    from mlx_speech.stages.whisper import decode
    from mlx_speech.stages.whisper.tokenizer import Tokenizer

    tokenizer = Tokenizer.find(None, model.args.n_vocab)
    encoded = mx.random.normal((batch, model.args.n_audio_ctx, model.args.n_audio_state)).astype(mx.float16)
    jobs = [decode.Job(row, "en") for row in encoded]
    mx.eval([job.encoded for job in jobs])
    # the end of the text is never said, so that all rows have as many tokens
    options = decode.DecodingOptions(temperature=(0.0,), sample_len=TOKENS, suppress_tokens=(tokenizer.eot,))
    with as_on_gpu(), counting.waits() as counted:
        results = [result for _, result in decode.decode(jobs, model, tokenizer, options, batch_size=batch)]
    if any(len(result.tokens) != TOKENS for result in results):
        raise ValueError("a row has ended before the others: the waits are not those of a whole batch")
    return counted.waits / TOKENS


def their_waits(model: Any, batch: int = BATCH) -> float:
    """The same of mlx-whisper, whose `decode` takes several windows."""
    import mlx.core as mx
    from mlx_whisper.decoding import DecodingOptions

    encoded = mx.random.normal((batch, model.dims.n_audio_ctx, model.dims.n_audio_state)).astype(mx.float16)
    mx.eval(encoded)
    tokenizer_eot = 50257
    options = DecodingOptions(
        language="en", temperature=0.0, sample_len=TOKENS, suppress_tokens=[tokenizer_eot], suppress_blank=False
    )
    with counting.waits() as counted:
        model.decode(encoded, options)
    return counted.waits / TOKENS


# --- other models -----------------------------------------------------------------------------------------------------


def segmentation(windows: int) -> Counted:
    """10 s windows of PyanNet, as pyannote's segmentation-3.0 is."""
    import mlx.core as mx

    from mlx_speech.models import pyannet

    model = _half(pyannet.Model(pyannet.ModelArgs(num_classes=7, powerset_max_classes=2)))
    return _on_windows(model, windows, lambda sound: [model(sound)], mx.zeros((windows, WINDOW)))


def embedding(family: str, windows: int) -> Counted:
    """10 s windows with three voices each."""
    import mlx.core as mx

    from mlx_speech.models import campplus, wespeaker

    module: Any = {"wespeaker": wespeaker, "campplus": campplus}[family]
    model = _half(module.Model(module.ModelArgs()))
    masks = np.ones((windows, 3, FRAMES), np.int8)
    return _on_windows(model, windows, lambda sound: [model.embed(sound, masks)], mx.zeros((windows, WINDOW)))


def alignment(windows: int) -> Counted:
    """10 s of wav2vec2-base, to log-probabilities; the path through them is found in NumPy."""
    import mlx.core as mx

    from mlx_speech.models import wav2vec2
    from mlx_speech.stages.align import log_probabilities

    model = _half(wav2vec2.Model(wav2vec2.ModelArgs(vocab_size=32)))
    sound = [np.zeros(WINDOW, np.float32)] * windows
    return _on_windows(model, windows, lambda _: [log_probabilities(sound, model)[0]], mx.zeros(()))


def _on_windows(model: Any, windows: int, call: Callable[[Any], Sequence[Any]], sound: Any) -> Counted:
    import mlx.core as mx

    mx.eval(sound)
    return counting.count(lambda: call(sound), list(model.arrays().values()))


def scan_of_single_launches(layers: int = 4) -> int:
    """Launches of a window of PyanNet, were each gate of each step one, of both directions together."""
    return layers * FRAMES * GATES


# --- the table --------------------------------------------------------------------------------------------------------


def lines() -> list[Line]:
    """All that is counted."""
    found: list[Line] = []
    model = our_whisper()
    for batch in (1, BATCH):
        found.append(Line(f"decoder step, batch {batch}", OURS, our_step(model, batch)))
        for name in ("mlx-whisper", "mlx-audio"):
            found.append(_theirs(f"decoder step, batch {batch}", name, lambda peer, n=batch: their_step(peer, n)))
    for batch in (1, BATCH):
        found.append(Line(f"token with its rules, batch {batch}", OURS, our_step(model, batch, with_choice=True)))
        what = f"token with its rules, batch {batch}"
        found.append(_theirs(what, "mlx-whisper", lambda peer, n=batch: their_token(peer, n)))
    found.append(Line("encoder, 30 s", OURS, encoder(model)))
    found += [_theirs("encoder, 30 s", name, encoder) for name in ("mlx-whisper", "mlx-audio")]
    for windows in (1, WINDOWS):
        found.append(Line(f"segmentation, 10 s, {windows} at once", OURS, segmentation(windows), windows))
    for family in ("wespeaker", "campplus"):
        for windows in (1, WINDOWS):
            what = f"embedding ({family}), 10 s, {windows} at once"
            found.append(Line(what, OURS, embedding(family, windows), windows))
    for windows in (1, BATCH):
        found.append(Line(f"alignment, 10 s, {windows} at once", OURS, alignment(windows), windows))
    return found


def _theirs(what: str, name: str, measure: Callable[[Any], Counted]) -> Line:
    try:
        return Line(what, name, measure(their_whisper(name)))
    except ImportError as error:
        return Line(what, name, None, problem=f"not installed: {error}")


def table(found: Sequence[Line]) -> str:
    """Markdown."""
    rows = [
        "| what | of | primitives | compiled as one | launches | a window | weights | keys and values | activations |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in found:
        if line.counted is None:
            rows.append(f"| {line.what} | {line.contender} | {line.problem} |||||||")
            continue
        counted = line.counted
        each = f"{counted.launches / line.parts:.0f}" if line.parts > 1 else ""
        sizes = [counted.bytes.weights, counted.bytes.kept, counted.bytes.activations]
        cells = [line.what, line.contender, counted.primitives, counted.compiled, counted.launches, each]
        cells += [f"{size / 1e6:.2f} MB" if size else "" for size in sizes]
        rows.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(rows)


@dataclass(frozen=True)
class Bar:
    """What is asked of a figure: at most `most`."""

    what: str
    reached: float
    most: float


def bars(found: Sequence[Line], waits: float) -> list[Bar]:
    """What is asked, and what was counted; a step beside mlx-whisper's only where that is installed."""
    by_name = {(line.what, line.contender): line.counted for line in found}
    result: list[Bar] = []
    for batch in (1, BATCH):
        what = f"decoder step, batch {batch}"
        ours, theirs = by_name[what, OURS], by_name[what, "mlx-whisper"]
        if ours is not None and theirs is not None:
            against = f"{what}, of mlx-whisper's"
            result.append(Bar(f"primitives of a {against}", ours.primitives / theirs.primitives, SHARE_OF_PRIMITIVES))
            result.append(Bar(f"compiled as one, {against}", ours.compiled / theirs.compiled, SHARE_OF_PRIMITIVES))
    result.append(Bar(f"waits for each token of a greedy batch of {BATCH}", waits, 1 / TOKENS_PER_WAIT))
    scan = by_name[f"segmentation, 10 s, {WINDOWS} at once", OURS]
    if scan is not None:
        share = scan.launches / WINDOWS / scan_of_single_launches()
        result.append(Bar("launches of a window of segmentation, of one for each gate of a step", share, SHARE_OF_SCAN))
    return result


def document(found: Sequence[Line], waits: dict[str, float], minute: Sequence[graph_waits.Stage], hour: str) -> str:
    """`graph.md`."""
    versions = []
    for name in ("mlx", "mlx-whisper", "mlx-audio"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name}: not installed")
    judged = ["| what | reached | at most | |", "|---|---|---|---|"]
    for bar in bars(found, waits[OURS]):
        verdict = "met" if bar.reached <= bar.most else "**missed**"
        judged.append(f"| {bar.what} | {bar.reached:.3f} | {bar.most:.3f} | {verdict} |")
    waited = [f"- {name}: {1 / each:.1f} tokens for each wait" for name, each in waits.items()]
    parts = [INTRODUCTION, f"{', '.join(versions)}.", "## What is asked", "\n".join(judged), "## Counted", table(found)]
    parts += ["## Waits", WAITS, "\n".join(waited), MINUTE, graph_waits.table(minute)]
    if hour:
        parts.append(hour)
    return "\n\n".join(parts) + "\n"


def hour_before() -> str:
    """What `graph.md` has of an hour, which only a run with recordings counts; empty where it has nothing."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    _, heading, rest = text.partition(HOUR)
    return (heading + rest).rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.graph", description="Count what a GPU is given to do.")
    parser.add_argument("--recordings", type=Path, help="of which an hour is made, to count shapes")
    options = parser.parse_args()
    found = lines()
    waits = {OURS: our_waits(our_whisper(NARROW))}
    try:
        waits["mlx-whisper"] = their_waits(their_whisper("mlx-whisper", NARROW))
    except ImportError as error:
        print(f"mlx-whisper is not installed: {error}", file=sys.stderr)
    hour = hour_before()
    if options.recordings is not None:
        from benchmarks import graph_shapes

        hour = graph_shapes.report(options.recordings)
    text = document(found, waits, graph_waits.stages(), hour)
    RESULTS.write_text(text, encoding="utf-8")
    print(text)
    return int(any(bar.reached > bar.most for bar in bars(found, waits[OURS])))


if __name__ == "__main__":
    sys.exit(main())
