"""The PyTorch originals, built from a source's own tensors: only for `--verify`, the only file that needs torch."""

from __future__ import annotations

import copy
from typing import Any

import torch

from mlx_speech.convert import port
from mlx_speech.convert.parity.measures import WhisperOriginal
from mlx_speech.tensors import Tensor


def build(plan: port.Plan) -> Any:
    """What `verify.measure` compares the converted model of `plan` with."""
    torch.set_grad_enabled(False)
    if plan.family == "whisper":
        return _whisper_transformers(plan) if plan.recipe.original == "transformers" else _whisper_openai(plan)
    if plan.family == "wav2vec2":
        return _wav2vec2_torchaudio(plan) if plan.recipe.original == "torchaudio" else _wav2vec2_transformers(plan)
    return {"silero_vad": _silero_vad, "pyannet": _pyannet, "wespeaker": _wespeaker, "plda": _plda}[plan.family](plan)


def _floats(tensors: dict[str, Tensor]) -> dict[str, torch.Tensor]:
    state = {name: torch.from_numpy(tensor.numpy().copy()) for name, tensor in tensors.items()}
    return {name: array.float() if array.is_floating_point() else array for name, array in state.items()}


# the two parts of a weight norm, as torch's older function spells them and as the newer one does
WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def _load_wanted(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load what the model has of `state`, weight norms spelled as it spells them, which depends on versions."""
    wanted = model.state_dict()
    for one, other in (*WEIGHT_NORM.items(), *((new, old) for old, new in WEIGHT_NORM.items())):
        state = {n.removesuffix(one) + other if n.endswith(one) and n not in wanted else n: v for n, v in state.items()}
    model.load_state_dict({name: value for name, value in state.items() if name in wanted})


def _silero_vad(plan: port.Plan) -> Any:
    return torch.jit.load(str(plan.source.files[0])).eval()


def _plda(plan: port.Plan) -> Any:
    from pyannote.audio.core.plda import PLDA

    plda, transform = plan.source.files
    return PLDA(transform, plda, lda_dimension=plan.config["lda_size"])


def _pyannet(plan: port.Plan) -> Any:
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.segmentation import PyanNet

    args = plan.config
    lstm = {name: args[f"lstm_{name}"] for name in ("hidden_size", "num_layers", "bidirectional")}
    lstm["monolithic"] = "lstm.weight_ih_l0" in plan.source.tensors
    linear = {"hidden_size": args["linear_hidden_size"], "num_layers": args["linear_num_layers"]}
    sincnet = {"stride": args["sincnet_stride"]}
    model = PyanNet(sincnet=sincnet, lstm=lstm, linear=linear, sample_rate=args["sample_rate"])
    largest = args["powerset_max_classes"]
    problem = Problem.MULTI_LABEL_CLASSIFICATION if largest is None else Problem.MONO_LABEL_CLASSIFICATION
    task = {"classes": [f"speaker#{k}" for k in range(args["num_speakers"])], "duration": args["duration"]}
    task |= {"powerset_max_classes": largest, "permutation_invariant": True}
    model.specifications = Specifications(problem=problem, resolution=Resolution.FRAME, **task)
    model.build()
    kept = {name: tensor for name, tensor in _floats(plan.source.tensors).items() if not name.startswith("loss_func")}
    model.load_state_dict(kept)
    return model.eval()


def _wespeaker(plan: port.Plan) -> Any:
    from pyannote.audio.models.embedding import WeSpeakerResNet34
    from pyannote.audio.models.embedding.wespeaker.resnet import BasicBlock, Bottleneck, ResNet

    args = plan.config
    keys = ("sample_rate", "num_mel_bins", "frame_length", "frame_shift")
    model = WeSpeakerResNet34(**{key: args[key] for key in keys})
    model.hparams["fbank_centering_span"] = args["fbank_centering_span"]  # its constructor does not take it
    sizes = {"m_channels": args["base_channels"], "feat_dim": args["num_mel_bins"], "embed_dim": args["embedding_size"]}
    block = Bottleneck if args["bottleneck"] else BasicBlock
    model.resnet = ResNet(block, args["num_blocks"], two_emb_layer=False, **sizes)
    state = {name.removeprefix("resnet."): value for name, value in _floats(plan.source.tensors).items()}
    model.resnet.load_state_dict({name: value for name, value in state.items() if not name.startswith("projection")})
    return model.eval()


def _wav2vec2_transformers(plan: port.Plan) -> Any:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = {**plan.source.config, "vocab_size": plan.config["vocab_size"]}
    model = Wav2Vec2ForCTC(Wav2Vec2Config.from_dict(config)).eval()
    # an adapter may have replaced tensors: those of the recipe count, the folded one excepted
    unfolded = {name: tensor for name, tensor in plan.recipe.tensors.items() if tensor.sources == (name,)}
    state = _floats({**plan.source.tensors, **unfolded})
    training = "wav2vec2.masked_spec_embed"  # many published files lack it
    _load_wanted(model, {**{n: v for n, v in model.state_dict().items() if n == training}, **state})
    return lambda audio: model(audio).logits


# fmt: off
TORCHAUDIO = {  # argument of torchaudio's wav2vec2_model → ours
    "extractor_conv_bias": "conv_bias", "encoder_embed_dim": "hidden_size", "aux_num_out": "vocab_size",
    "encoder_num_layers": "num_hidden_layers", "encoder_num_heads": "num_attention_heads",
    "encoder_ff_interm_features": "intermediate_size", "encoder_layer_norm_first": "do_stable_layer_norm",
    "encoder_pos_conv_kernel": "num_conv_pos_embeddings", "encoder_pos_conv_groups": "num_conv_pos_embedding_groups",
}
# fmt: on
DROPOUTS = ("projection_dropout", "attention_dropout", "ff_interm_dropout", "dropout", "layer_drop")


def _wav2vec2_torchaudio(plan: port.Plan) -> Any:
    from torchaudio.models import wav2vec2_model

    args = plan.config
    sizes: dict[str, Any] = {theirs: args[ours] for theirs, ours in TORCHAUDIO.items()}
    sizes |= {f"encoder_{name}": 0.0 for name in DROPOUTS}
    convolutions = list(zip(args["conv_dim"], args["conv_kernel"], args["conv_stride"], strict=True))
    mode = "layer_norm" if args["feat_extract_norm"] == "layer" else "group_norm"
    model = wav2vec2_model(extractor_mode=mode, extractor_conv_layer_config=convolutions, **sizes).eval()
    state = {name.removeprefix("model."): value for name, value in _floats(plan.source.tensors).items()}
    for leaf in ("weight", "bias"):
        state[f"aux.{leaf}"] = torch.from_numpy(plan.recipe.tensors[f"lm_head.{leaf}"].numpy().copy()).float()
    _load_wanted(model, state)
    return lambda audio: model(audio)[0]


def _torch_layout(plan: port.Plan, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions that have MLX's layout already, back in torch's."""
    result = dict(tensors)
    for name, tensor in tensors.items():
        if plan.recipe.mlx_layout and ".conv" in name and len(tensor.shape) == 3:
            shape = (tensor.shape[0], tensor.shape[2], tensor.shape[1])
            result[name] = tensor.map(lambda array: array.transpose(0, 2, 1), shape)
    return result


def _whisper_transformers(plan: port.Plan) -> WhisperOriginal:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration(WhisperConfig.from_dict(plan.source.config)).eval()
    state = _floats(_torch_layout(plan, plan.recipe.tensors))
    state = {n if n.startswith(("model.", "proj_out")) else f"model.{n}": value for n, value in state.items()}
    state.setdefault("proj_out.weight", state["model.decoder.embed_tokens.weight"])
    model.load_state_dict(state)
    return whisper_of_transformers(model)


def whisper_of_transformers(model: Any) -> WhisperOriginal:
    """transformers' Whisper in the form that the measure takes."""

    def encode(mel: torch.Tensor) -> torch.Tensor:
        return model.model.encoder(mel).last_hidden_state

    def decode(tokens: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        decoded = model.model.decoder(input_ids=tokens, encoder_hidden_states=encoded, use_cache=False)
        return model.proj_out(decoded.last_hidden_state)

    return WhisperOriginal(encode, decode, lambda: whisper_of_transformers(copy.deepcopy(model).double()))


def _whisper_openai(plan: port.Plan) -> WhisperOriginal:
    from whisper.model import ModelDimensions, Whisper

    tensors = port.rename(plan.recipe.tensors, plan.recipe.table)[0]
    if plan.source.config.get("quantization"):
        tensors = port.dequantized(tensors, plan.source.config)
    dims = {key: value for key, value in plan.config.items() if key in ModelDimensions.__dataclass_fields__}
    model = Whisper(ModelDimensions(**dims)).eval()
    state = _floats(_torch_layout(plan, tensors))
    state = {name.replace("mlp1", "mlp.0").replace("mlp2", "mlp.2"): value for name, value in state.items()}
    state.pop("alignment_heads", None)
    model.load_state_dict(state)
    return openai_whisper(model)


def openai_whisper(model: Any) -> WhisperOriginal:
    """openai-whisper's model in the form that the measure takes."""

    def in_float64() -> WhisperOriginal:
        exact = copy.deepcopy(model).double()
        for module in exact.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.__class__ = torch.nn.LayerNorm  # openai-whisper's own computes in float32
        return openai_whisper(exact)

    return WhisperOriginal(model.encoder, model.decoder, in_float64)
