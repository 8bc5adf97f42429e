"""Random originals: real PyTorch modules with seeded weights, no norm the identity, saved in their own formats."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from mlx_speech import backend as backend  # before anything imports MLX
from mlx_speech import checkpoint, load_audio


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every norm, bias and running statistic a value of its own; matrices keep their initialisation."""
    generator = torch.Generator().manual_seed(seed)
    owners = dict(module.named_modules())
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            owner = owners[name.rpartition(".")[0]]
            norm = "Norm" in type(owner).__name__
            noise = torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else None
            if noise is None or tensor.ndim > 1:
                continue
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif norm and name.endswith("weight"):
                tensor.copy_(1 + 0.3 * noise)
            elif norm or name.endswith(("bias", "running_mean")) or "bias" in name.rpartition(".")[2]:
                tensor.copy_(0.2 * noise)
    return module.eval()


def remembered(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The function of tensors, called once for each input: for models that are compared in several precisions."""
    known: dict[tuple, torch.Tensor] = {}

    def call(*inputs: torch.Tensor) -> torch.Tensor:
        key = tuple((tensor.shape, hashlib.sha256(tensor.numpy().tobytes()).digest()) for tensor in inputs)
        if key not in known:
            known[key] = function(*inputs)
        return known[key]

    return call


def scale(parameter: torch.Tensor, factor: float) -> None:
    with torch.no_grad():
        parameter.mul_(factor)


def window_mel(audio: np.ndarray | torch.Tensor, samples: int = 480_000, n_mels: int = 80) -> torch.Tensor:
    """The spectrogram of a window of openai/whisper's `transcribe`, (n_mels, frames): zeros behind the recording."""
    import whisper.audio as whisper_audio

    mel = whisper_audio.log_mel_spectrogram(audio, n_mels, padding=samples)
    content = mel[:, : len(audio) // 160]
    return whisper_audio.pad_or_trim(content, samples // 160)


def babble(seconds: float) -> torch.Tensor:
    """Noise whose loudness and colour change, (samples,) at 16 kHz: something for outputs to vary over."""
    rng, n = np.random.default_rng(7), int(seconds * 16000)
    time = np.arange(n) / 16000
    noise = rng.normal(size=n) * (0.02 + 0.2 * np.abs(np.sin(2 * np.pi * 0.7 * time)))
    tone = 0.3 * np.sin(2 * np.pi * (200 * time + 150 * np.sin(2 * np.pi * 0.3 * time)))
    return torch.from_numpy((noise + tone * (np.sin(2 * np.pi * 0.5 * time) > 0)).astype(np.float32))


def speech(seconds: float) -> np.ndarray:
    """The start of the recording that comes with the package, (samples,)."""
    return load_audio(Path(checkpoint.__file__).parent / "assets" / "demo" / "pauses.flac")[: int(seconds * 16000)]


def balance(layer: torch.nn.Linear, logits: torch.Tensor, deviation: float = 1.5) -> None:
    """Shift and scale the last layer so that its outputs vary as a trained model's do and no class wins throughout.

    (Left as they fall, random logits are far larger or all but constant; large ones amplify float32's own rounding,
    by which the original differs from itself in float64, beyond the bars.)
    """
    logits = logits.reshape(-1, logits.shape[-1])
    with torch.no_grad():
        factor = deviation / logits.std(dim=0).mean()
        layer.bias.sub_(logits.mean(dim=0))
        layer.weight.mul_(factor)
        layer.bias.mul_(factor)


# --- Whisper ---------------------------------------------------------------------------------------------------------

TINY = {"n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 384, "n_audio_head": 6, "n_audio_layer": 4}
TINY |= {"n_vocab": 51865, "n_text_ctx": 448, "n_text_state": 384, "n_text_head": 6, "n_text_layer": 4}
BASE = {**TINY, "n_audio_state": 512, "n_audio_head": 8, "n_audio_layer": 6}
BASE |= {"n_text_state": 512, "n_text_head": 8, "n_text_layer": 6}
SMALL = {**TINY, "n_audio_state": 768, "n_audio_head": 12, "n_audio_layer": 12}
SMALL |= {"n_text_state": 768, "n_text_head": 12, "n_text_layer": 12}
LARGE_V3 = {**TINY, "n_mels": 128, "n_audio_state": 1280, "n_audio_head": 20, "n_audio_layer": 32, "n_vocab": 51866}
LARGE_V3 |= {"n_text_state": 1280, "n_text_head": 20, "n_text_layer": 32}
TURBO = {**LARGE_V3, "n_text_layer": 4}
# narrow ones that keep every kind of structure: 128 mels, a decoder shorter than the encoder, a small vocabulary
NARROW = {"n_mels": 80, "n_audio_ctx": 300, "n_audio_state": 128, "n_audio_head": 2, "n_audio_layer": 3}
NARROW |= {"n_vocab": 1000, "n_text_ctx": 448, "n_text_state": 128, "n_text_head": 2, "n_text_layer": 2}
NARROW_V3 = {**NARROW, "n_mels": 128, "n_audio_layer": 4, "n_text_layer": 1}


def whisper_openai(dims: dict[str, int], seed: int = 0) -> Any:
    from whisper.model import ModelDimensions, Whisper

    torch.manual_seed(seed)
    model = Whisper(ModelDimensions(**dims))
    # as large as what the blocks add, or one token would win everywhere
    torch.nn.init.normal_(model.decoder.positional_embedding, std=0.5)
    torch.nn.init.normal_(model.decoder.token_embedding.weight, std=0.5)
    return randomise(model, seed)


def read_ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """The variables of a model.bin of CTranslate2, version 6, all little-endian: after the version and the name of the
    specification, a name, a shape, a type and the bytes of each; the aliases behind them are left."""
    types = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
    content = path.read_bytes()
    place = 0

    def number(size: int) -> int:
        nonlocal place
        place += size
        return int.from_bytes(content[place - size : place], "little")

    def text() -> str:
        nonlocal place
        length = number(2)
        place += length
        return content[place - length : place - 1].decode()

    version = number(4)
    assert version == 6, f"CTranslate2's version {version}"
    text()
    number(4)
    variables = {}
    for _ in range(number(4)):
        name = text()
        shape = [number(4) for _ in range(number(1))]
        kind = types[number(1)]
        size = number(4)
        variables[name] = np.frombuffer(content[place : place + size], kind).reshape(shape)
        place += size
    return variables


def whisper_from_ctranslate2(path: Path) -> Any:
    """openai-whisper's model in float32, with the weights of a faster-whisper model.bin.

    CTranslate2 stacks query, key and value of a self-attention, and key and value of a cross-attention.
    """
    from whisper.model import ModelDimensions, Whisper

    left = {name: torch.from_numpy(array.astype(np.float32)) for name, array in read_ctranslate2(path).items()}
    state: dict[str, torch.Tensor] = {}

    def put(ours: str, theirs: str) -> None:
        leaves = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
        for leaf, openai in leaves.items():
            if f"{theirs}/{leaf}" in left:
                state[f"{ours}.{openai}"] = left.pop(f"{theirs}/{leaf}")

    def put_stacked(ours: str, theirs: str, names: tuple[str, ...]) -> None:
        for leaf in ("weight", "bias"):
            for name, rows in zip(names, left.pop(f"{theirs}/{leaf}").chunk(len(names)), strict=True):
                if (name, leaf) == ("key", "bias"):
                    assert not rows.any(), "a key's bias, which Whisper has not"
                else:
                    state[f"{ours}.{name}.{leaf}"] = rows

    depth = {"encoder": 0, "decoder": 0}
    for side in depth:
        while f"{side}/layer_{depth[side]}/ffn/linear_0/weight" in left:
            ours, theirs = f"{side}.blocks.{depth[side]}", f"{side}/layer_{depth[side]}"
            put_stacked(f"{ours}.attn", f"{theirs}/self_attention/linear_0", ("query", "key", "value"))
            put(f"{ours}.attn.out", f"{theirs}/self_attention/linear_1")
            put(f"{ours}.attn_ln", f"{theirs}/self_attention/layer_norm")
            if side == "decoder":
                put(f"{ours}.cross_attn.query", f"{theirs}/attention/linear_0")
                put_stacked(f"{ours}.cross_attn", f"{theirs}/attention/linear_1", ("key", "value"))
                put(f"{ours}.cross_attn.out", f"{theirs}/attention/linear_2")
                put(f"{ours}.cross_attn_ln", f"{theirs}/attention/layer_norm")
            put(f"{ours}.mlp.0", f"{theirs}/ffn/linear_0")
            put(f"{ours}.mlp.2", f"{theirs}/ffn/linear_1")
            put(f"{ours}.mlp_ln", f"{theirs}/ffn/layer_norm")
            depth[side] += 1
        state[f"{side}.positional_embedding"] = left.pop(f"{side}/position_encodings/encodings")
    put("encoder.conv1", "encoder/conv1")
    put("encoder.conv2", "encoder/conv2")
    put("encoder.ln_post", "encoder/layer_norm")
    put("decoder.ln", "decoder/layer_norm")
    put("decoder.token_embedding", "decoder/embeddings")

    vocabulary, width = state["decoder.token_embedding.weight"].shape
    heads = int(left["encoder/num_heads"])
    dims = ModelDimensions(
        n_mels=state["encoder.conv1.weight"].shape[1],
        n_audio_ctx=len(state["encoder.positional_embedding"]),
        n_audio_state=width,
        n_audio_head=heads,
        n_audio_layer=depth["encoder"],
        n_vocab=vocabulary,
        n_text_ctx=len(state["decoder.positional_embedding"]),
        n_text_state=width,
        n_text_head=heads,
        n_text_layer=depth["decoder"],
    )
    model = Whisper(dims).eval()
    model.load_state_dict(state)
    return model


def save_openai(model: Any, path: Path) -> Path:
    torch.save({"dims": dict(model.dims.__dict__), "model_state_dict": model.state_dict()}, path)
    return path


def whisper_transformers(dims: dict[str, int], seed: int = 0) -> Any:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=dims["n_vocab"],
        num_mel_bins=dims["n_mels"],
        d_model=dims["n_audio_state"],
        encoder_layers=dims["n_audio_layer"],
        encoder_attention_heads=dims["n_audio_head"],
        decoder_layers=dims["n_text_layer"],
        decoder_attention_heads=dims["n_text_head"],
        encoder_ffn_dim=4 * dims["n_audio_state"],
        decoder_ffn_dim=4 * dims["n_text_state"],
        max_source_positions=dims["n_audio_ctx"],
        max_target_positions=dims["n_text_ctx"],
        pad_token_id=dims["n_vocab"] - 1,
        bos_token_id=dims["n_vocab"] - 1,
        eos_token_id=dims["n_vocab"] - 1,
        decoder_start_token_id=dims["n_vocab"] - 2,
        begin_suppress_tokens=None,
        suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.decoder.embed_positions.weight, std=0.5)
    torch.nn.init.normal_(model.model.decoder.embed_tokens.weight, std=0.5)
    return randomise(model, seed)


# --- wav2vec2 --------------------------------------------------------------------------------------------------------

LABELS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
VOCAB = {label: index for index, label in enumerate(LABELS)}


def wav2vec2_transformers(kind: str, seed: int = 0, **sizes: Any) -> Any:
    """kind : "group" (base) or "layer" (large, XLSR, MMS)"""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    torch.manual_seed(seed)
    large = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True} if kind == "layer" else {}
    config = Wav2Vec2Config(vocab_size=len(VOCAB), pad_token_id=0, **large, **sizes)
    model = randomise(Wav2Vec2ForCTC(config), seed)
    balance(model.lm_head, model(torch.from_numpy(speech(6))[None]).logits)
    return model


W2V_NARROW = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": [32, 32, 32, 32, 32, 32, 64],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def save_wav2vec2(model: Any, folder: Path, *, do_normalize: bool = False, vocab: dict | None = None) -> Path:
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab or VOCAB))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>", "word_delimiter_token": "|"}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": do_normalize, "sampling_rate": 16000}))
    return folder


def wav2vec2_torchaudio(kind: str, labels: int, seed: int = 0, narrow: bool = True) -> Any:
    from torchaudio.models import wav2vec2_model

    torch.manual_seed(seed)
    width = 128 if narrow else 768
    kernels, strides = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
    model = wav2vec2_model(
        extractor_mode=f"{kind}_norm",
        extractor_conv_layer_config=[(32 if narrow else 512, k, s) for k, s in zip(kernels, strides, strict=True)],
        extractor_conv_bias=kind == "layer",
        encoder_embed_dim=width,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=128,
        encoder_pos_conv_groups=16,
        encoder_num_layers=2,
        encoder_num_heads=width // 64,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=2 * width,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=kind == "layer",
        encoder_layer_drop=0.0,
        aux_num_out=labels,
    )
    randomise(model, seed)
    balance(model.aux, model(torch.from_numpy(speech(6))[None])[0])
    return model


# --- pyannote --------------------------------------------------------------------------------------------------------


def pyannet(powerset: bool = True, seed: int = 0, duration: float = 10.0, **hparams: Any) -> Any:
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.segmentation import PyanNet

    torch.manual_seed(seed)
    model = PyanNet(**{"lstm": {"hidden_size": 128, "num_layers": 4}, **hparams})
    model.specifications = Specifications(
        problem=Problem.MONO_LABEL_CLASSIFICATION if powerset else Problem.MULTI_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=duration,
        warm_up=(0.0, 0.0),
        classes=["speaker#1", "speaker#2", "speaker#3"],
        powerset_max_classes=2 if powerset else None,
        permutation_invariant=True,
    )
    model.build()
    randomise(model, seed)
    for name, parameter in model.named_parameters():
        if "weight_ih" in name or "weight_hh" in name:
            scale(parameter, 1.5)
    model.activation = torch.nn.Identity()
    balance(model.classifier, model(babble(duration)[None, None]))
    model.activation = model.default_activation()
    return model


def save_lightning(model: Any, path: Path, *, hyper_parameters: bool = True, extra: dict | None = None) -> Path:
    """As Lightning and pyannote.audio save a checkpoint: `Model.on_save_checkpoint` adds the header."""
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict(), "pytorch-lightning_version": "2.0.0", "epoch": 3}
    if hyper_parameters:
        checkpoint["hyper_parameters"] = dict(model.hparams)
    if hasattr(model, "_specifications"):
        model.on_save_checkpoint(checkpoint)
    else:  # a speaker embedding from the hub, which was never trained by pyannote.audio
        checkpoint["pyannote.audio"] = {"versions": {"torch": "1.8.1+cu102", "pyannote.audio": "3.1.1"}}
    checkpoint["state_dict"] |= extra or {}
    torch.save(checkpoint, path)
    return path


def wespeaker(
    blocks: list[int] | None = None,
    channels: int = 32,
    bottleneck: bool = False,
    embedding: int = 256,
    seed: int = 0,
    **front: Any,
) -> Any:
    from pyannote.audio.models.embedding import WeSpeakerResNet34
    from pyannote.audio.models.embedding.wespeaker.resnet import BasicBlock, Bottleneck, ResNet

    torch.manual_seed(seed)
    span = front.pop("fbank_centering_span", None)
    model = WeSpeakerResNet34(**front)
    model.hparams.fbank_centering_span = span
    block = Bottleneck if bottleneck else BasicBlock
    bins = front.get("num_mel_bins", 80)
    blocks = blocks or [3, 4, 6, 3]
    model.resnet = ResNet(block, blocks, channels, feat_dim=bins, embed_dim=embedding, two_emb_layer=False)
    return randomise(model, seed)


# --- 3D-Speaker ------------------------------------------------------------------------------------------------------


def campplus(
    growth_rate: int = 32,
    init_channels: int = 128,
    embedding_size: int = 192,
    seed: int = 0,
    centred: bool = True,
) -> Any:
    """CAM++: its head, and how many layers it has, are the same in every size.

    centred : whether the last norm holds what speech gives, as a trained one does, so that embeddings point in all
        directions; of random layers they are all but the same, and what centring leaves of them is nothing for bfloat16
    """
    from speakerlab.models.campplus.DTDNN import CAMPPlus

    torch.manual_seed(seed)
    model = CAMPPlus(growth_rate=growth_rate, init_channels=init_channels, embedding_size=embedding_size)
    randomise(model, seed)
    if not centred:
        return model
    with torch.no_grad():
        features = torch.cat([model.head(_filterbank(piece)) for piece in torch.from_numpy(speech(16)).split(32000)])
        pooled = model.xvector[:-1](features)
        plain = model.xvector.dense.linear(pooled[..., None])[..., 0]
        last = model.xvector.dense.nonlinear.batchnorm
        last.running_mean.copy_(plain.mean(dim=0))
        last.running_var.copy_(plain.var(dim=0))
    return model


def _filterbank(samples: torch.Tensor) -> torch.Tensor:
    """samples (count,) → (1, mel bins, frames), centred"""
    import torchaudio.compliance.kaldi as kaldi

    fbank = kaldi.fbank(samples[None], num_mel_bins=80, dither=0.0)
    return (fbank - fbank.mean(dim=0))[None].permute(0, 2, 1)


def save_campplus(model: Any, path: Path) -> Path:
    """As 3D-Speaker publishes it: the plain state dict."""
    torch.save(model.state_dict(), path)
    return path


# --- files -----------------------------------------------------------------------------------------------------------


def half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def save_sharded(state: dict[str, torch.Tensor], folder: Path, shards: int = 3) -> None:
    """model-0000k-of-….safetensors with their index."""
    names, weight_map = sorted(state), {}
    for k in range(shards):
        file = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: state[name].contiguous() for name in names[k::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
