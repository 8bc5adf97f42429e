"""wav2vec2 beside transformers' or torchaudio's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech import features
from mlx_speech.convert.parity.measures import (
    Inputs,
    Row,
    as_numpy,
    largest_difference,
    refuse_degenerate,
)
from mlx_speech.convert.parity.torch_weights import load_wanted, torch_state
from mlx_speech.convert.port import Plan

ORIGINALS = {"transformers": ("torch", "transformers"), "torchaudio": ("torch", "torchaudio")}

# argument of torchaudio's wav2vec2_model → ours
TORCHAUDIO_ARGUMENTS = {
    "extractor_conv_bias": "conv_bias",
    "encoder_embed_dim": "hidden_size",
    "aux_num_out": "vocab_size",
    "encoder_num_layers": "num_hidden_layers",
    "encoder_num_heads": "num_attention_heads",
    "encoder_ff_interm_features": "intermediate_size",
    "encoder_layer_norm_first": "do_stable_layer_norm",
    "encoder_pos_conv_kernel": "num_conv_pos_embeddings",
    "encoder_pos_conv_groups": "num_conv_pos_embedding_groups",
}
DROPOUTS = ("projection_dropout", "attention_dropout", "ff_interm_dropout", "dropout", "layer_drop")
LENGTHS = (7, 4, 2)  # sevenths of half the recording, a row each
PADDING = 0.1  # what a shorter row is filled up with; no zero, so that it shows where padding is heard


def build(plan: Plan) -> Callable[[Any], Any]:
    """A function of torch tensors: waveforms, (batch, samples) → logits, (batch, frames, vocabulary)."""
    if plan.recipe.original == "torchaudio":
        return _torchaudio(plan)
    return _transformers(plan)


def _transformers(plan: Plan) -> Callable[[Any], Any]:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = {**plan.source.config, "vocab_size": plan.config["vocab_size"]}
    model = Wav2Vec2ForCTC(Wav2Vec2Config.from_dict(config)).eval()
    # An adapter may have replaced tensors: those of the recipe count, the folded one excepted.
    unfolded = {name: tensor for name, tensor in plan.recipe.tensors.items() if tensor.sources == (name,)}
    state = torch_state({**plan.source.tensors, **unfolded})
    training = "wav2vec2.masked_spec_embed"  # many published files lack it
    if training in model.state_dict():
        state.setdefault(training, model.state_dict()[training])
    load_wanted(model, state)

    def run(waveform: Any) -> Any:
        return model(waveform).logits

    return run


def _torchaudio(plan: Plan) -> Callable[[Any], Any]:
    import torch
    from torchaudio.models import wav2vec2_model

    args = plan.config
    sizes: dict[str, Any] = {theirs: args[ours] for theirs, ours in TORCHAUDIO_ARGUMENTS.items()}
    for name in DROPOUTS:
        sizes[f"encoder_{name}"] = 0.0
    sizes["extractor_mode"] = "layer_norm" if args["feat_extract_norm"] == "layer" else "group_norm"
    convolutions = zip(args["conv_dim"], args["conv_kernel"], args["conv_stride"], strict=True)
    model = wav2vec2_model(extractor_conv_layer_config=list(convolutions), **sizes).eval()
    state = {name.removeprefix("model."): value for name, value in torch_state(plan.source.tensors).items()}
    # The recipe has taken out rows of the head that mean nothing.
    for leaf in ("weight", "bias"):
        head = plan.recipe.tensors[f"lm_head.{leaf}"].numpy()
        state[f"aux.{leaf}"] = torch.from_numpy(head.copy()).float()
    load_wanted(model, state)

    def run(waveform: Any) -> Any:
        return model(waveform)[0]

    return run


def measure(original: Callable[[Any], Any], model: Any, inputs: Inputs) -> list[Row]:
    """Logits of three lengths, one by one beside the original's, and padded to a batch beside one by one.

    original : waveforms, (batch, samples) → logits
    """
    import torch

    seventh = len(inputs.audio) // 2 // 7
    lengths = [seventh * sevenths for sevenths in LENGTHS]
    waveforms = [inputs.audio[length : 2 * length].astype(np.float32) for length in lengths]
    if model.args.do_normalize:
        waveforms = [np.array(features.normalize(mx.array(waveform)[None]))[0] for waveform in waveforms]
    expected = np.concatenate([original(torch.from_numpy(waveform)[None]).numpy()[0] for waveform in waveforms])
    refuse_degenerate("labels", expected.argmax(-1), 5, inputs.varied)
    singles = [as_numpy(model(mx.array(waveform)[None]))[0] for waveform in waveforms]
    single = np.concatenate(singles)
    batched = _batched(model, waveforms, [len(logits) for logits in singles])
    deviation = float(expected.std())
    same = expected.argmax(-1) == single.argmax(-1)
    return [
        Row(
            "logits, max difference / deviation",
            largest_difference(expected, single) / deviation,
            1e-3,
        ),
        Row("same label, share of frames", float(same.mean()), 0.999, at_least=True),
        Row(
            "padded batch and singles, max difference / deviation",
            largest_difference(single, batched) / deviation,
            1e-3,
        ),
    ]


def _batched(model: Any, waveforms: list[np.ndarray], frames: list[int]) -> np.ndarray:
    """Logits of the waveforms as one padded batch, one behind the other. frames : of each"""
    lengths = [len(waveform) for waveform in waveforms]
    longest = max(lengths)
    padded = []
    for waveform in waveforms:
        padded.append(np.pad(waveform, (0, longest - len(waveform)), constant_values=PADDING))
    logits = as_numpy(model(mx.array(np.stack(padded)), mx.array(lengths)))
    return np.concatenate([row[:count] for row, count in zip(logits, frames, strict=True)])
