"""Whisper beside openai-whisper's or transformers'."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech import features
from mlx_speech.convert import port
from mlx_speech.convert.parity.measures import (
    Inputs,
    Row,
    as_numpy,
    beside_rounding,
    largest_difference,
    refuse_degenerate,
)
from mlx_speech.convert.parity.torch_weights import torch_state
from mlx_speech.tensors import Tensor

ORIGINALS = {"openai-whisper": ("torch", "whisper"), "transformers": ("torch", "transformers")}

SAMPLES_PER_POSITION = 320  # of the encoder: two frames of 10 ms
STEPS = 32  # tokens that are decoded one by one
ROUNDING_TRIALS = 4


@dataclass(frozen=True)
class WhisperOriginal:
    """Either of the two originals, functions of torch tensors.

    encode : mel, (batch, n_mels, frames) → encoded, (batch, positions, width)
    decode : tokens, (batch, tokens), and encoded → logits, (batch, tokens, vocabulary)
    in_float64 : the same original that computes in float64
    """

    encode: Callable[[Any], Any]
    decode: Callable[[Any, Any], Any]
    in_float64: Callable[[], WhisperOriginal]


# --- the originals ---------------------------------------------------------------------------------------------------


def build(plan: port.Plan) -> WhisperOriginal:
    """transformers' Whisper for what came from there, openai-whisper's for everything else."""
    if plan.recipe.original == "transformers":
        return _transformers(plan)
    return _openai(plan)


def _transformers(plan: port.Plan) -> WhisperOriginal:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration(WhisperConfig.from_dict(plan.source.config)).eval()
    state = {}
    for name, value in torch_state(_torch_layout(plan, plan.recipe.tensors)).items():
        full_name = name if name.startswith(("model.", "proj_out")) else f"model.{name}"
        state[full_name] = value
    state.setdefault("proj_out.weight", state["model.decoder.embed_tokens.weight"])
    model.load_state_dict(state)
    return whisper_of_transformers(model)


def whisper_of_transformers(model: Any) -> WhisperOriginal:
    """transformers' Whisper in the form that the measure takes."""

    def encode(mel: Any) -> Any:
        return model.model.encoder(mel).last_hidden_state

    def decode(tokens: Any, encoded: Any) -> Any:
        decoded = model.model.decoder(input_ids=tokens, encoder_hidden_states=encoded, use_cache=False)
        return model.proj_out(decoded.last_hidden_state)

    def in_float64() -> WhisperOriginal:
        return whisper_of_transformers(copy.deepcopy(model).double())

    return WhisperOriginal(encode, decode, in_float64)


def _openai(plan: port.Plan) -> WhisperOriginal:
    from whisper.model import ModelDimensions, Whisper

    tensors = port.rename(plan.recipe.tensors, plan.recipe.table).tensors
    if plan.source.config.get("quantization"):
        tensors = port.dequantized(tensors, plan.source.config)
    dims = {key: value for key, value in plan.config.items() if key in ModelDimensions.__dataclass_fields__}
    model = Whisper(ModelDimensions(**dims)).eval()
    state = {}
    for name, value in torch_state(_torch_layout(plan, tensors)).items():
        state[name.replace("mlp1", "mlp.0").replace("mlp2", "mlp.2")] = value
    state.pop("alignment_heads", None)
    model.load_state_dict(state)
    return openai_whisper(model)


def openai_whisper(model: Any) -> WhisperOriginal:
    """openai-whisper's model in the form that the measure takes."""

    def in_float64() -> WhisperOriginal:
        import torch

        exact = copy.deepcopy(model).double()
        for module in exact.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.__class__ = torch.nn.LayerNorm  # openai-whisper's own computes in float32
        return openai_whisper(exact)

    return WhisperOriginal(model.encoder, model.decoder, in_float64)


def _torch_layout(plan: port.Plan, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions that have MLX's layout already, back in torch's."""
    result = dict(tensors)
    if not plan.recipe.mlx_layout:
        return result
    for name, tensor in tensors.items():
        if ".conv" in name and len(tensor.shape) == 3:
            shape = (tensor.shape[0], tensor.shape[2], tensor.shape[1])
            result[name] = tensor.map(_channels_first, shape)
    return result


def _channels_first(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(0, 2, 1)


# --- the measures ----------------------------------------------------------------------------------------------------


def measure(original: WhisperOriginal, model: Any, inputs: Inputs) -> list[Row]:
    """What the encoders give, and the logits of random tokens, all at once, step by step, in a batch and alone.

    Both decoders get the original's audio, so that each half is measured alone.
    """
    import torch

    args = model.args
    rng = np.random.default_rng(inputs.seed)
    samples = args.n_audio_ctx * SAMPLES_PER_POSITION
    pieces = (inputs.audio, inputs.audio[len(inputs.audio) // 2 :])
    mel = mx.stack([features.log_mel(mx.array(piece), args.n_mels, samples) for piece in pieces])
    their_mel = torch.from_numpy(np.array(mel)).transpose(1, 2).contiguous()
    expected = original.encode(their_mel)
    encoded = model.encoder(mel)
    shared = mx.array(expected.numpy()).astype(encoded.dtype)

    logits = _compare_logits(original, model, expected, shared, inputs, rng)
    refuse_degenerate("tokens", logits.winners, 30, inputs.varied)
    tokens = mx.array(rng.integers(0, args.n_vocab, (2, min(STEPS, args.n_text_ctx))))
    at_once = np.array(model.decoder(tokens, shared))
    stepwise = _stepwise(model, tokens, shared)
    single = np.concatenate([np.array(model.decoder(tokens[k : k + 1], shared[k : k + 1])) for k in range(2)])
    scale = logits.deviation
    return [
        encoder_row(original, their_mel, expected, as_numpy(encoded), inputs.judged),
        Row(
            f"decoder, {inputs.sequences} sequences: logits, max difference / deviation",
            logits.largest_difference / scale,
            1e-3,
        ),
        Row("same next token, share", logits.same, 0.999, at_least=True),
        Row(
            "step by step, max difference / deviation",
            largest_difference(stepwise, at_once) / scale,
            1e-3,
        ),
        Row(
            "batch and singles, max difference / deviation",
            largest_difference(single, at_once) / scale,
            1e-3,
        ),
    ]


@dataclass(frozen=True)
class _Logits:
    """What two decoders make of the same tokens.

    deviation : of the original's logits
    same : share of positions at which the same token wins
    winners : the original's, of all positions
    """

    largest_difference: float
    deviation: float
    same: float
    winners: np.ndarray


def _compare_logits(
    original: WhisperOriginal,
    model: Any,
    expected: Any,
    shared: mx.array,
    inputs: Inputs,
    rng: np.random.Generator,
) -> _Logits:
    """Both decoders on random tokens, teacher-forced: a few lengths from the shortest to the longest, of many rows.

    expected, shared : the audio of two pieces, as torch's and MLX's
    """
    import torch

    args = model.args
    lengths = np.unique(np.geomspace(1, args.n_text_ctx, max(2, inputs.sequences // 8)).astype(int))
    rows = -(-inputs.sequences // len(lengths))
    pieces = np.arange(rows) % 2
    worst = 0.0
    deviations = []
    winners = []
    same = []
    for length in lengths:
        tokens = rng.integers(0, args.n_vocab, (rows, int(length)))
        theirs = original.decode(torch.from_numpy(tokens), expected[pieces]).numpy()
        ours = np.array(model.decoder(mx.array(tokens), shared[mx.array(pieces)]))
        worst = float(np.maximum(worst, largest_difference(theirs, ours)))  # NaN stays
        deviations.append(theirs.std())
        winners.append(theirs.argmax(-1).ravel())
        same.append(winners[-1] == ours.argmax(-1).ravel())
    return _Logits(
        worst,
        float(np.mean(deviations)),
        float(np.concatenate(same).mean()),
        winners=np.concatenate(winners),
    )


def _stepwise(model: Any, tokens: mx.array, encoded: mx.array) -> np.ndarray:
    """The logits of tokens, (batch, tokens), decoded one after another, (batch, tokens, vocabulary)."""
    window = model.decoder.new_cache(2, 1)
    first, _ = model.decoder.prefill(window, [0, 1], encoded, tokens[:, :1].tolist(), [0, 0])
    steps = [first[:, None]]
    for k in range(1, tokens.shape[1]):
        steps.append(model.decoder.step(window, tokens[:, k : k + 1]))
    return np.array(mx.concatenate(steps, axis=1))


def encoder_row(original: WhisperOriginal, mel: Any, expected: Any, encoded: np.ndarray, judged: bool = True) -> Row:
    """What the two encoders make of the same mel, (batch, n_mels, frames).

    Trained Whispers have frames in which one channel is a hundred times the others, and the last norm divides by it:
    there the original's float32 may be further from its float64 than the bar is wide.

    expected, encoded : the original's, and the model's, (batch, positions, width)
    judged : as of `Inputs`
    """
    name = "encoder, max difference"
    bar = 1e-3
    apart = largest_difference(expected.numpy(), encoded)
    if judged and (apart > bar or np.isnan(apart)):
        own_rounding = _own_rounding(original.encode, original.in_float64().encode, mel)
        if own_rounding > bar / 3:
            name, bar = beside_rounding(name, own_rounding)
    return Row(name, apart, bar)


def _own_rounding(run: Callable[[Any], Any], exact: Callable[[Any], Any], x: Any) -> float:
    """How far float32 may be from float64 on `x`: the most over inputs that float32 can hardly tell from each other. A
    single one may, by chance, be a third of that."""
    import torch

    expected = exact(x.double())
    generator = torch.Generator().manual_seed(0)
    neighbours = [x]
    for _ in range(ROUNDING_TRIALS - 1):
        ulps = torch.rand(x.shape, generator=generator) - 0.5
        neighbours.append(x * (1 + ulps * torch.finfo(torch.float32).eps))
    return max(largest_difference(run(neighbour).numpy(), expected.numpy()) for neighbour in neighbours)
