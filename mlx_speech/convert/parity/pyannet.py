"""PyanNet beside pyannote.audio's."""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.convert.parity.measures import (
    Inputs,
    Row,
    beside_rounding,
    largest_difference,
    refuse_degenerate,
)
from mlx_speech.convert.parity.torch_weights import torch_state
from mlx_speech.convert.port import Plan

ORIGINALS = {"pyannote.audio": ("torch", "pyannote.audio", "torchaudio")}

BAR = 1e-4  # of the largest difference
MIN_CHUNKS = 2
MAX_CHUNKS = 24


def build(plan: Plan) -> Any:
    """pyannote.audio's PyanNet."""
    from pyannote.audio.models.segmentation import PyanNet

    args = plan.config
    model = PyanNet(
        sincnet={"stride": args["sincnet_stride"]},
        lstm={
            "hidden_size": args["lstm_hidden_size"],
            "num_layers": args["lstm_num_layers"],
            "bidirectional": args["lstm_bidirectional"],
            "monolithic": "lstm.weight_ih_l0" in plan.source.tensors,
        },
        linear={"hidden_size": args["linear_hidden_size"], "num_layers": args["linear_num_layers"]},
        sample_rate=args["sample_rate"],
    )
    model.specifications = _specifications(args)
    model.build()
    state = torch_state(plan.source.tensors)
    model.load_state_dict({name: value for name, value in state.items() if not name.startswith("loss_func")})
    return model.eval()


def _specifications(args: dict[str, Any]) -> Any:
    """What pyannote's constructor does not take: what the model was trained for."""
    from pyannote.audio.core.task import Problem, Resolution, Specifications

    largest = args["powerset_max_classes"]
    multilabel = largest is None
    return Specifications(
        problem=Problem.MULTI_LABEL_CLASSIFICATION if multilabel else Problem.MONO_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        classes=[f"speaker#{k}" for k in range(args["num_speakers"])],
        duration=args["duration"],
        powerset_max_classes=largest,
        permutation_invariant=True,
    )


def measure(original: Any, model: Any, inputs: Inputs) -> list[Row]:
    """The outputs of chunks that overlap by half, and the classes that win."""
    import torch

    chunks = _chunks(inputs.audio, int(model.args.duration * model.args.sample_rate))
    expected = original(torch.from_numpy(chunks)[:, None]).numpy()
    outputs = np.array(model(mx.array(chunks)))
    single = np.concatenate([np.array(model(mx.array(chunk[None]))) for chunk in chunks])
    powerset = model.args.powerset_max_classes is not None
    expected_classes = _classes(expected, powerset)
    _refuse_degenerate(expected_classes, powerset, inputs.varied)
    same = expected_classes == _classes(outputs, powerset)

    # A filter that hears next to nothing is amplified by its norm, rounding and all: on some recordings the original in
    # float32 is further from itself in float64 than the bar is wide. Nothing can be nearer to it than that.
    exact = copy.deepcopy(original).double()(torch.from_numpy(chunks).double()[:, None]).numpy()
    own_rounding = largest_difference(expected, exact)
    name = "output, max difference"
    bar = BAR
    bar_of_batches = BAR
    if own_rounding > BAR:
        name, bar = beside_rounding(name, own_rounding)
        # Products of another size are rounded another way, and either may be `bar` from the original.
        bar_of_batches = 2 * bar
    return [
        Row(name, largest_difference(expected, outputs), bar),
        Row("same class, share of frames", float(same.mean()), 0.999, at_least=True),
        Row("batch and singles, max difference", largest_difference(single, outputs), bar_of_batches),
    ]


def _chunks(audio: np.ndarray, samples: int) -> np.ndarray:
    """(chunks, samples), spread over the recording; what is too short for one is repeated."""
    count = max(MIN_CHUNKS, min(MAX_CHUNKS, 2 * len(audio) // samples))
    starts = np.linspace(0, max(0, len(audio) - samples), count).astype(int)
    return np.stack([np.resize(audio[start : start + samples], samples) for start in starts]).astype(np.float32)


def _classes(outputs: np.ndarray, powerset: bool) -> np.ndarray:
    """(chunks, frames): the class that wins; (chunks, frames, speakers) where every speaker is told apart: who is
    active."""
    return outputs.argmax(-1) if powerset else outputs > 0.5


def _refuse_degenerate(classes: np.ndarray, powerset: bool, varied: bool) -> None:
    if powerset:
        refuse_degenerate("powerset classes", classes, 4, varied)
    else:
        patterns = classes @ (1 << np.arange(classes.shape[2]))  # a number for each set of speakers
        refuse_degenerate("activity patterns", patterns, 4, varied)
