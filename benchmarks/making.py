"""Makes what `models.py` hands out: python -m benchmarks.making FOLDER NAME SIZE"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import models

models.know_tests()
if TYPE_CHECKING:
    import torch

QUICK = {"n_audio_state": 64, "n_audio_head": 1, "n_audio_layer": 1, "n_text_state": 64, "n_text_head": 1}
QUICK |= {"n_text_layer": 2}


def speech(folder: Path, _: str) -> None:
    import mlx_speech

    demo = Path(mlx_speech.__file__).parent / "assets" / "demo"
    parts = [mlx_speech.load_audio(demo / name) for name in ("conversation.flac", "pauses.flac")]
    np.save(folder / "speech.npy", np.concatenate(parts))


def whisper(folder: Path, size: str) -> None:
    import originals
    import torch

    from mlx_speech.convert import convert

    dims = {"tiny": originals.TINY, "small": originals.SMALL, "quick": {**originals.TINY, **QUICK}}[size]
    model = originals.whisper_openai(dims)
    torch.nn.init.normal_(model.decoder.positional_embedding, std=5.0)  # where it is decides what is said next
    torch.nn.init.normal_(model.decoder.token_embedding.weight, std=0.25)
    convert(str(originals.save_openai(model, folder / "openai.pt")), folder / "ours", dtype="float32")
    _save_transformers(model.state_dict(), dims, folder / "transformers")
    _save_mlx_whisper(model.state_dict(), dims, folder / "mlx_whisper")


def real_whisper(folder: Path, name: str) -> None:
    """OpenAI's weights, which `tests/real_weights.py` has fetched in CTranslate2's form."""
    import originals
    import real_weights

    from benchmarks import ggml
    from mlx_speech.convert import convert

    source = real_weights.folder() / f"whisper-{name}"
    if not source.exists():
        raise FileNotFoundError(f"{source} is not here: python tests/real_weights.py fetches it")
    shutil.copytree(source, folder / "ctranslate2")
    convert(str(source), folder / "ours", dtype="float32")
    model = originals.whisper_from_ctranslate2(source / "model.bin")
    originals.save_openai(model, folder / "openai.pt")
    dims = vars(model.dims)
    _save_mlx_whisper(model.state_dict(), dims, folder / "mlx_whisper")
    ggml.save(model.state_dict(), dims, folder / "ggml.bin")
    if name == "base":
        _save_transformers(model.state_dict(), dims, folder / "transformers")


def spoken(folder: Path, seconds: str) -> None:
    """Recordings whose words are known, one behind the other, in a little noise."""
    import hearing

    sample = hearing.in_turn(float(seconds), loudness=0.001, seed=5)
    np.save(folder / "samples.npy", sample.audio)
    (folder / "text.txt").write_text(sample.text, encoding="utf-8")


def meeting(folder: Path, _: str) -> None:
    """The excerpts of meetings of the test data, one behind the other."""
    import hearing

    import mlx_speech

    excerpts = sorted((hearing.DATA / "data" / "diar" / "ami_debug").glob("*.wav"))
    np.save(folder / "samples.npy", np.concatenate([mlx_speech.load_audio(path) for path in excerpts]))


# openai-whisper's names → those of transformers
TRANSFORMERS = {
    r"^": "model.",
    r"\.blocks\.": ".layers.",
    r"encoder\.positional_embedding": "encoder.embed_positions.weight",
    r"decoder\.positional_embedding": "decoder.embed_positions.weight",
    r"token_embedding": "embed_tokens",
    r"encoder\.ln_post": "encoder.layer_norm",
    r"decoder\.ln\.": "decoder.layer_norm.",
    r"\.cross_attn_ln\.": ".encoder_attn_layer_norm.",
    r"\.attn_ln\.": ".self_attn_layer_norm.",
    r"\.mlp_ln\.": ".final_layer_norm.",
    r"\.cross_attn\.": ".encoder_attn.",
    r"\.attn\.": ".self_attn.",
    r"\.(query|key|value)\.": lambda found: f".{found[1][0]}_proj.",
    r"\.out\.": ".out_proj.",
    r"\.mlp\.0\.": ".fc1.",
    r"\.mlp\.2\.": ".fc2.",
}


def _save_transformers(state: dict[str, torch.Tensor], dims: dict[str, int], folder: Path) -> None:
    """As on the hub: weights, config, the front end's settings, and the tokenizer that openai-whisper ships."""
    import originals
    import whisper as openai
    from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

    from mlx_speech.stages.whisper.tokenizer import from_ranks

    renamed = {}
    for name, tensor in state.items():
        for pattern, new in TRANSFORMERS.items():
            name = re.sub(pattern, new, name, count=1)
        renamed[name] = tensor
    model = originals.whisper_transformers(dims)
    tokenizer = from_ranks(Path(openai.__file__).parent / "assets" / "multilingual.tiktoken", dims["n_vocab"])
    for name in ("bos", "eos", "pad"):
        setattr(model.config, f"{name}_token_id", tokenizer.eot)
        setattr(model.generation_config, f"{name}_token_id", tokenizer.eot)
    model.generation_config.lang_to_id = {f"<|{code}|>": index for code, index in tokenizer.languages.items()}
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = tokenizer.sot
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert set(missing) <= {"proj_out.weight"} and not unexpected, (missing, unexpected)
    model.tie_weights()
    model.save_pretrained(folder)
    end, special = "<|endoftext|>", [tokenizer._special[index] for index in sorted(tokenizer._special)]
    tokenizer._backend.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer._backend, bos_token=end, eos_token=end, unk_token=end)
    fast.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "WhisperTokenizer"}))
    WhisperFeatureExtractor(feature_size=dims["n_mels"]).save_pretrained(folder)


def _save_mlx_whisper(state: dict[str, torch.Tensor], dims: dict[str, int], folder: Path) -> None:
    from safetensors.numpy import save_file

    weights = {}
    for name, tensor in state.items():
        if name == "encoder.positional_embedding":  # computed there
            continue
        array = tensor.numpy()
        array = array.swapaxes(1, 2) if "conv" in name and array.ndim == 3 else array
        weights[name.replace("mlp.0", "mlp1").replace("mlp.2", "mlp2")] = np.ascontiguousarray(array)
    folder.mkdir()
    save_file(weights, folder / "weights.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "whisper", **dims}))


def wav2vec2(folder: Path, size: str) -> None:
    import originals

    from mlx_speech.convert import convert

    model = originals.wav2vec2_transformers("group", **(originals.W2V_NARROW if size == "quick" else {}))
    original = originals.save_wav2vec2(model, folder / "original", do_normalize=True)
    convert(str(original), folder / "ours", dtype="float32")


def diarization(folder: Path, size: str) -> None:
    import originals
    import torch
    from pyannote.audio.core.task import Problem, Resolution, Specifications

    from mlx_speech.convert import convert

    original, rng = folder / "original", np.random.default_rng(5)
    for name in ("segmentation", "embedding", "plda"):
        (original / name).mkdir(parents=True)
    lstm = {"lstm": {"hidden_size": 16, "num_layers": 1, "bidirectional": True}}
    weights = original / "segmentation" / "pytorch_model.bin"
    if size == "real":
        import real_weights

        shutil.copy(real_weights.folder() / "segmentation-3.0" / "pytorch_model.bin", weights)
    else:
        originals.save_lightning(originals.pyannet(**(lstm if size == "quick" else {})), weights)
    embedding = originals.wespeaker()  # pyannote.audio loads no narrower one
    windows = torch.from_numpy(models.speech(60)).reshape(12, 1, -1)
    with torch.no_grad():  # directions that differ, or there would be one speaker
        originals.balance(embedding.resnet.seg_1, embedding(windows))
    embedding.specifications = Specifications(Problem.REPRESENTATION, Resolution.CHUNK, duration=5.0)
    path = original / "embedding" / "pytorch_model.bin"
    originals.save_lightning(embedding, path, hyper_parameters=False)
    transform = {"mean1": rng.normal(size=256) / 10, "lda": rng.normal(size=(256, 128)) / 16}
    transform["mean2"] = rng.normal(size=128) / 10
    turn = np.linalg.qr(rng.normal(size=(128, 128)))[0]
    plda = {"mu": rng.normal(size=128), "tr": turn, "psi": np.sort(rng.uniform(0.01, 5, 128))[::-1]}
    np.savez(original / "plda" / "xvec_transform.npz", **transform)
    np.savez(original / "plda" / "plda.npz", **plda)
    (original / "config.yaml").write_text(COMMUNITY, encoding="utf-8")
    convert(str(original), folder / "ours", dtype="float32")


def large_v3(folder: Path, size: str) -> None:
    from benchmarks import convert_memory

    if size == "full":
        convert_memory.make_safetensors(folder / "original", "float16")
    else:
        import originals

        originals.whisper_transformers(originals.NARROW_V3).half().save_pretrained(folder / "original")


def narrow(folder: Path, _: str) -> None:
    from benchmarks import pipeline_memory

    pipeline_memory.make(folder)


COMMUNITY = """
version: 4.0.0
pipeline:
  name: pyannote.audio.pipelines.SpeakerDiarization
  params:
    clustering: VBxClustering
    segmentation: $model/segmentation
    segmentation_batch_size: 32
    embedding: $model/embedding
    embedding_batch_size: 32
    embedding_exclude_overlap: true
    plda: $model/plda
params:
  clustering:
    threshold: 0.6
    Fa: 0.07
    Fb: 0.8
  segmentation:
    min_duration_off: 0.0
"""


def main() -> None:
    os.environ["PYANNOTE_METRICS_ENABLED"] = "0"
    folder, name, size = sys.argv[1:]
    every = (speech, spoken, meeting, whisper, real_whisper, wav2vec2, large_v3, diarization, narrow)
    make = {one.__name__: one for one in every}[name]
    make(Path(folder), size)


if __name__ == "__main__":
    main()
