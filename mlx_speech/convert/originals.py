"""The PyTorch originals, built from a source's own tensors: only for `--verify`, the only file that needs torch."""

from __future__ import annotations

from typing import Any

import torch

from mlx_speech.convert import port
from mlx_speech.convert.verify import WhisperOriginal
from mlx_speech.tensors import Tensor


def build(plan: port.Plan) -> Any:
    """What `verify.measure` compares the converted model of `plan` with."""
    torch.set_grad_enabled(False)
    if plan.family == "whisper":
        return _whisper_transformers(plan) if plan.recipe.original == "transformers" else _whisper_openai(plan)
    if plan.family == "wav2vec2":
        return _wav2vec2_torchaudio(plan) if plan.recipe.original == "torchaudio" else _wav2vec2_transformers(plan)
    return {"silero_vad": _silero_vad, "pyannet": _pyannet, "wespeaker": _wespeaker, "plda": _plda}[plan.family](plan)


def _state(tensors: dict[str, Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(tensor.numpy().copy()) for name, tensor in tensors.items()}


def _floats(tensors: dict[str, Tensor]) -> dict[str, torch.Tensor]:
    return {name: array.float() if array.is_floating_point() else array for name, array in _state(tensors).items()}


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
    lstm = {
        "hidden_size": args["lstm_hidden_size"],
        "num_layers": args["lstm_num_layers"],
        "bidirectional": args["lstm_bidirectional"],
        "monolithic": "lstm.weight_ih_l0" in plan.source.tensors,
    }
    linear = {"hidden_size": args["linear_hidden_size"], "num_layers": args["linear_num_layers"]}
    model = PyanNet(
        sincnet={"stride": args["sincnet_stride"]}, lstm=lstm, linear=linear, sample_rate=args["sample_rate"]
    )
    largest = args["powerset_max_classes"]
    model.specifications = Specifications(
        problem=Problem.MULTI_LABEL_CLASSIFICATION if largest is None else Problem.MONO_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=args["duration"],
        classes=[f"speaker#{k}" for k in range(args["num_speakers"])],
        powerset_max_classes=largest,
        permutation_invariant=True,
    )
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
    model.resnet = ResNet(
        Bottleneck if args["bottleneck"] else BasicBlock,
        args["num_blocks"],
        m_channels=args["base_channels"],
        feat_dim=args["num_mel_bins"],
        embed_dim=args["embedding_size"],
        two_emb_layer=False,
    )
    state = {name.removeprefix("resnet."): value for name, value in _floats(plan.source.tensors).items()}
    model.resnet.load_state_dict({name: value for name, value in state.items() if not name.startswith("projection")})
    return model.eval()


def _wav2vec2_transformers(plan: port.Plan) -> Any:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = {**plan.source.config, "vocab_size": plan.config["vocab_size"]}
    model = Wav2Vec2ForCTC(Wav2Vec2Config.from_dict(config)).eval()
    # an adapter may have replaced tensors: those of the recipe count, the folded one excepted
    state = _floats({**plan.source.tensors, **_unfolded(plan)})
    spelled = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    state = {
        f"{n.rpartition('.')[0]}.{spelled[n.rpartition('.')[2]]}" if n.rpartition(".")[2] in spelled else n: v
        for n, v in state.items()
    }
    wanted = model.state_dict()
    training = "wav2vec2.masked_spec_embed"  # many published files lack it
    state |= {training: wanted[training]} if training in wanted and training not in state else {}
    model.load_state_dict({name: value for name, value in state.items() if name in wanted})
    return lambda audio: model(audio).logits


def _unfolded(plan: port.Plan) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in plan.recipe.tensors.items() if tensor.sources == (name,)}


def _wav2vec2_torchaudio(plan: port.Plan) -> Any:
    from torchaudio.models import wav2vec2_model

    args = plan.config
    model = wav2vec2_model(
        extractor_mode="layer_norm" if args["feat_extract_norm"] == "layer" else "group_norm",
        extractor_conv_layer_config=[
            tuple(c) for c in zip(args["conv_dim"], args["conv_kernel"], args["conv_stride"], strict=True)
        ],
        extractor_conv_bias=args["conv_bias"],
        encoder_embed_dim=args["hidden_size"],
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=args["num_conv_pos_embeddings"],
        encoder_pos_conv_groups=args["num_conv_pos_embedding_groups"],
        encoder_num_layers=args["num_hidden_layers"],
        encoder_num_heads=args["num_attention_heads"],
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=args["intermediate_size"],
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=args["do_stable_layer_norm"],
        encoder_layer_drop=0.0,
        aux_num_out=args["vocab_size"],
    ).eval()
    state = {name.removeprefix("model."): value for name, value in _floats(plan.source.tensors).items()}
    for leaf in ("weight", "bias"):
        state[f"aux.{leaf}"] = torch.from_numpy(plan.recipe.tensors[f"lm_head.{leaf}"].numpy().copy()).float()
    spelled = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    wanted = model.state_dict()
    for old, new in spelled.items():  # torchaudio's own spelling depends on its version
        for name in [n for n in state if n not in wanted]:
            if name.endswith(old) and f"{name.removesuffix(old)}{new}" in wanted:
                state[f"{name.removesuffix(old)}{new}"] = state.pop(name)
            elif name.endswith(new) and f"{name.removesuffix(new)}{old}" in wanted:
                state[f"{name.removesuffix(new)}{old}"] = state.pop(name)
    model.load_state_dict({name: value for name, value in state.items() if name in wanted})
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
    tensors = dict(plan.recipe.tensors)
    tensors = _torch_layout(plan, tensors)
    state = _floats(tensors)
    state = {
        name if name.startswith(("model.", "proj_out")) else f"model.{name}": value for name, value in state.items()
    }
    state.setdefault("proj_out.weight", state["model.decoder.embed_tokens.weight"])
    model.load_state_dict(state)
    encoder, decoder = model.model.encoder, model.model.decoder
    return WhisperOriginal(
        encode=lambda mel: encoder(mel).last_hidden_state,
        decode=lambda tokens, encoded: model.proj_out(
            decoder(input_ids=tokens, encoder_hidden_states=encoded, use_cache=False).last_hidden_state
        ),
    )


def _whisper_openai(plan: port.Plan) -> WhisperOriginal:
    from whisper.model import ModelDimensions, Whisper

    tensors = dict(plan.recipe.tensors)
    if plan.source.config.get("quantization"):
        tensors = port.dequantized(tensors, plan.source.config)
    tensors = _torch_layout(plan, tensors)
    dims = {key: value for key, value in plan.config.items() if key in ModelDimensions.__dataclass_fields__}
    model = Whisper(ModelDimensions(**dims)).eval()
    state = {name.replace("mlp1", "mlp.0").replace("mlp2", "mlp.2"): value for name, value in _floats(tensors).items()}
    state.pop("alignment_heads", None)
    model.load_state_dict(state)
    return openai_whisper(model)


def openai_whisper(model: Any) -> WhisperOriginal:
    """openai-whisper's model in the form that the measure takes."""
    return WhisperOriginal(encode=model.encoder, decode=lambda tokens, encoded: model.decoder(tokens, encoded))
