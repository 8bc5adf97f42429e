"""Tiny models that a whole pipeline can be run with in a second: originals' formats, converted as a user would.

The Whisper is planted: its blocks add nothing, so that the token after position k is the one whose embedding stands in
position k's. It writes the same text into every chunk, which a test can look for.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import tempfile
from pathlib import Path

import originals
import torch
import whisper

from mlx_speech.convert import convert

TEXT = ((0.0, 1.4, " Hello there, Dr. Smith."), (1.4, 2.8, " How are you? I owe you $42."))
DIMS = {"n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 64, "n_audio_head": 1, "n_audio_layer": 1}
DIMS |= {"n_vocab": 51865, "n_text_ctx": 448, "n_text_state": 64, "n_text_head": 1, "n_text_layer": 2}


def tokens(text: tuple[tuple[float, float, str], ...], language: str) -> list[int]:
    """What is planted: from the token after <|startoftranscript|> to the end of text."""
    tokenizer = whisper.tokenizer.get_tokenizer(True, language=language, task="transcribe")
    found = list(tokenizer.sot_sequence[1:])
    for start, end, words in text:
        found += [tokenizer.timestamp_begin + round(start * 50), *tokenizer.encode(words)]
        found += [tokenizer.timestamp_begin + round(end * 50)]
    return [*found, *[tokenizer.eot] * 8]


def planted_whisper(text=TEXT, language: str = "en", **dims: int) -> torch.nn.Module:
    model = originals.whisper_openai({**DIMS, **dims})
    with torch.no_grad():
        for name, parameter in model.decoder.named_parameters():
            if ".out." in name or ".mlp.2." in name:
                parameter.zero_()
        embedding = torch.nn.functional.normalize(torch.randn(51865, 64, generator=torch.manual_seed(5)), dim=1)
        positions = torch.zeros(448, 64)
        planted = tokens(text, language)
        positions[: len(planted)] = 40 * embedding[planted]
        positions[len(planted) :] = 40 * embedding[planted[-1]]
        model.decoder.token_embedding.weight.copy_(3 * embedding)
        model.decoder.positional_embedding.copy_(positions)
        model.decoder.ln.weight.fill_(1)
        model.decoder.ln.bias.zero_()
    return model


@functools.cache
def folder() -> Path:
    """whisper, wav2vec2 and diarization, converted, in one folder; made once a process."""
    place = Path(tempfile.mkdtemp(prefix="mlx_speech_tiny-"))
    source = place / "sources"
    source.mkdir()
    convert(str(originals.save_openai(planted_whisper(), source / "tiny.pt")), place / "whisper")
    aligner = originals.wav2vec2_transformers("group", **originals.W2V_NARROW)
    convert(str(originals.save_wav2vec2(aligner, source / "wav2vec2")), place / "wav2vec2")
    for name in ("segmentation", "embedding", "plda"):
        (source / "pipeline" / name).mkdir(parents=True)
    spec = importlib.util.find_spec("whisperx")
    if spec is None or spec.origin is None:
        raise ImportError("whisperx is not installed: make test brings it")
    shutil.copy(
        Path(spec.origin).parent / "assets" / "pytorch_model.bin",
        source / "pipeline" / "segmentation" / "pytorch_model.bin",
    )
    embedding = originals.wespeaker(channels=8)
    originals.save_lightning(embedding, source / "pipeline" / "embedding" / "pytorch_model.bin", hyper_parameters=False)
    (source / "pipeline" / "config.yaml").write_text(CONFIG, encoding="utf-8")
    convert(str(source / "pipeline"), place / "diarization")
    shutil.rmtree(source)
    return place


CONFIG = """
pipeline:
  name: pyannote.audio.pipelines.SpeakerDiarization
  params:
    clustering: AgglomerativeClustering
    embedding: $model/embedding
    embedding_exclude_overlap: true
    segmentation: $model/segmentation
    segmentation_step: 0.5
params:
  clustering:
    method: centroid
    min_cluster_size: 2
    threshold: 0.01
  segmentation:
    min_duration_off: 0.0
    threshold: 0.5
"""
