"""`python -m demo.wav2vec2`: a small wav2vec2 CTC model for word times, trained and exported.

The architecture and the labels are those of facebook/wav2vec2-base-960h (Baevski et al. 2020, transformers'
`Wav2Vec2ForCTC`), narrower. There is no pretraining on unlabelled speech: the convolutions first learn to tell the
log-mel spectrum, then everything learns CTC. Throw-away layers help, all of them left out of the export.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC
from transformers.audio_utils import mel_filter_bank

from demo import ASSETS, RATE
from demo.augment import augment
from demo.corpus import PHONES, Corpus, Utterance
from demo.training import device, run
from mlx_speech import Segment, load
from mlx_speech.convert import convert
from mlx_speech.stages.align import align, log_probabilities

LABELS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")
BLANK, DELIMITER, SILENCE = 0, 4, PHONES.index("_")
INDEX = {label.lower(): index for index, label in enumerate(LABELS)}
FIELD, HOP = 400, 320  # samples that a frame hears, and from one frame to the next
TAIL = 3  # frames that the aligner lets a word sound on after its last label

STEPS, RATE_OF_LEARNING, SEED = 14_000, 1.5e-3, 0
FRONT_STEPS, FRONT_RATE = 700, 3e-3
SECONDS = 16.0  # of sound in a batch
BUCKET = 0.5  # seconds that the lengths in a batch differ at most; few shapes are faster than many
JOINED = 0.15  # of the batches: two utterances per row, as the pipeline aligns over whole chunks
LONGEST_PAUSE = 0.8  # seconds
AUGMENTED = 0.65  # of the rows
GUIDED = 0.05  # of the steps: with the frame losses at full weight, then at a tenth
BANDS = 40


def configuration() -> Wav2Vec2Config:
    """1.33 million parameters."""
    return Wav2Vec2Config(
        vocab_size=len(LABELS),
        hidden_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        conv_dim=(24, 32, 64, 96, 128, 128, 128),
        num_conv_pos_embeddings=64,
        num_conv_pos_embedding_groups=16,
        feat_extract_norm="group",
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
        pad_token_id=BLANK,
        bos_token_id=1,
        eos_token_id=2,
    )


class Trainee(nn.Module):
    """The model and the layers that only training needs: one for the spectrum, one for phones."""

    def __init__(self) -> None:
        super().__init__()
        self.ctc = Wav2Vec2ForCTC(configuration())
        config = self.ctc.config
        self.spectrum = nn.Linear(config.conv_dim[-1], 3 * BANDS)
        self.phones = nn.Linear(config.hidden_size, len(PHONES))


class Batch:
    """Rows of equally long sound with what is said in each frame.

    sound : (rows, samples) normalised; letters, phones : (rows, frames), -100 where unknown; text : labels of each row
    Silence fills up the rows, so that noise and room go on in it and no mask is needed (`feat_extract_norm="group"`
    would see padding anyway).
    """

    def __init__(self, rows: list[list[Utterance]], seconds: float, rng: np.random.Generator) -> None:
        pauses = [[0.0, *rng.uniform(0.1, LONGEST_PAUSE, len(row) - 1)] for row in rows]
        size = int(seconds * RATE)
        lengths = [
            sum(int(pause * RATE) + own.samples.size for pause, own in zip(*pair, strict=True))
            for pair in zip(pauses, rows, strict=True)
        ]
        self.frames = (size - FIELD) // HOP + 1
        sound = np.zeros((len(rows), size), np.float32)
        letters = np.full((len(rows), self.frames), BLANK)
        phones = np.full((len(rows), self.frames), SILENCE)
        text: list[list[int]] = []
        for k, row in enumerate(rows):
            place = int(rng.integers(size - lengths[k] + 1))
            text.append([INDEX[c] for c in "|".join(word for own in row for word in own.words)])
            for pause, own in zip(pauses[k], row, strict=True):
                place += int(pause * RATE)
                gain = 10 ** (rng.uniform(-5, 5) / 20) if len(row) > 1 else 1.0
                sound[k, place : place + own.samples.size] = gain * own.samples
                label(own, place / RATE, letters[k], phones[k])
                place += own.samples.size
            if rng.random() < AUGMENTED:
                sound[k] = augment(sound[k], rng)
        sound -= sound.mean(axis=1, keepdims=True)
        sound /= np.sqrt(sound.var(axis=1, keepdims=True) + 1e-7)
        to = device()
        self.sound = torch.from_numpy(sound).to(to)
        self.letters, self.phones = torch.from_numpy(letters).to(to), torch.from_numpy(phones).to(to)
        self.text = torch.tensor([label for row in text for label in row], device=to)
        self.text_lengths = torch.tensor([len(row) for row in text])


def frame(times: np.ndarray | float) -> np.ndarray:
    """The first frame whose middle is not before each time in seconds."""
    return np.ceil((np.asarray(times) * RATE - FIELD / 2) / HOP - 1e-6).astype(int)


def label(utterance: Utterance, offset: float, letters: np.ndarray, phones: np.ndarray) -> None:
    """Write the labels of an utterance that begins at `offset` seconds into the frames of its row, in place.

    A word's letters share its phones evenly, or its time where there are none. What the aligner adds to a word is left
    out of its last letter, and a delimiter stands where the word ends, so that it finds ends where they are.
    """
    at = utterance.phone_starts.astype(np.float64)
    limits = np.append(frame(utterance.starts + offset), len(letters))
    for k, (word, start, end) in enumerate(zip(utterance.words, utterance.starts, utterance.ends, strict=True)):
        inside = at[(at > start + 1e-3) & (at < end - 1e-3)]
        bounds = np.array([start, *inside, end]) + offset
        shares = np.linspace(0, len(bounds) - 1, len(word) + 1)
        edges = frame(np.interp(shares, np.arange(len(bounds)), bounds))
        edges[-1] = max(edges[-2] + 1, edges[-1] - TAIL)
        for i, letter in enumerate(word):
            letters[edges[i] : edges[i + 1]] = INDEX[letter]
            if i and letter == word[i - 1]:
                letters[max(edges[i] - 1, 0) : edges[i]] = BLANK
        last = int(frame(end + offset))
        if at.size:
            first = int(limits[k])
            middles = (np.arange(first, last) * HOP + FIELD / 2) / RATE - offset
            found = utterance.phones[np.clip(np.searchsorted(at, middles, "right") - 1, 0, None)]
            phones[first : min(last, len(phones))] = found[: max(0, len(phones) - first)]
        if k + 1 < len(utterance.words):
            letters[min(last, limits[k + 1] - 1)] = DELIMITER
    if not at.size:
        phones[limits[0] : int(frame(utterance.ends[-1] + offset))] = -100


def draw(corpus: Corpus, rng: np.random.Generator) -> Batch:
    """A batch of about `SECONDS`, of utterances of about one length."""
    buckets = np.ceil(corpus.durations / BUCKET)
    bucket, per_row = buckets[rng.integers(len(corpus))], 2 if rng.random() < JOINED else 1
    seconds = per_row * bucket * BUCKET + (per_row - 1) * LONGEST_PAUSE
    count = per_row * max(1, round(SECONDS / seconds))
    members = np.flatnonzero(buckets == bucket)
    chosen = [corpus[int(i)] for i in rng.choice(members, count, replace=len(members) < count)]
    return Batch([chosen[k : k + per_row] for k in range(0, count, per_row)], seconds, rng)


def log_mel(sound: torch.Tensor) -> torch.Tensor:
    """(rows, samples) → (rows, frames, 120): of each frame all its 25 ms, and two parts of 10 ms; standardised."""
    filters = torch.from_numpy(mel_filter_bank(257, BANDS, 50.0, 8000.0, RATE, norm=None, mel_scale="htk"))
    frames = sound.unfold(-1, FIELD, HOP)
    parts = [frames, frames[..., 40:200], frames[..., 200:360]]
    powers = [torch.fft.rfft(part * torch.hann_window(part.shape[-1]).to(part), n=512).abs() ** 2 for part in parts]
    mel = torch.cat([torch.log(power @ filters.to(power) + 1e-2) for power in powers], dim=-1)
    return (mel - mel.mean((0, 1))) / (mel.std((0, 1)) + 1e-3)


def autocast() -> contextlib.AbstractContextManager[Any]:
    """bfloat16 where the machine computes in it: 1.5 times as fast on one core, at the same loss."""
    kind = device().type
    able = kind == "cuda" or any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    return torch.autocast(kind, torch.bfloat16, enabled=bool(able))


def spectrum_loss(model: Trainee, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    with autocast():
        heard = model.spectrum(model.ctc.wav2vec2.feature_extractor(batch.sound).transpose(1, 2))
    loss = F.mse_loss(heard.float(), log_mel(batch.sound))
    return loss, {"mel": loss.item()}


def speech_loss(model: Trainee, batch: Batch, weight: float) -> tuple[torch.Tensor, dict[str, float]]:
    """CTC per label, and `weight` times the cross-entropies of letters and of phones per frame."""
    with autocast():
        hidden = model.ctc.wav2vec2(batch.sound).last_hidden_state
        logits, phones = model.ctc.lm_head(hidden).float(), model.phones(hidden).float()
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    frames = torch.full((len(batch.sound),), batch.frames)
    ctc = F.ctc_loss(log_probs, batch.text, frames, batch.text_lengths, reduction="sum", zero_infinity=True)
    ctc = ctc / batch.text_lengths.sum()
    letter = F.cross_entropy(logits.flatten(0, 1), batch.letters.flatten())
    phone = F.cross_entropy(phones.flatten(0, 1), batch.phones.flatten())
    loss = ctc + weight * (letter + phone)
    return loss, {"ctc": ctc.item(), "letter": letter.item(), "phone": phone.item()}


def train(corpus: Corpus) -> Wav2Vec2ForCTC:
    """Trains, or goes on where it stopped."""
    torch.manual_seed(SEED)
    model = Trainee()

    def front(i: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        return spectrum_loss(model, draw(corpus, rng))

    def whole(i: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        return speech_loss(model, draw(corpus, rng), 1.0 if i < GUIDED * STEPS else 0.1)

    run("wav2vec2-front", model, front, cycles=[FRONT_STEPS], rate=FRONT_RATE, clip=5.0, seed=SEED + 1)
    run("wav2vec2", model, whole, cycles=[STEPS], rate=RATE_OF_LEARNING, clip=5.0, seed=SEED)
    return model.ctc.cpu().eval()


def export(model: Wav2Vec2ForCTC, folder: Path, training: dict[str, Any]) -> None:
    """float16, as `Wav2Vec2Processor` and `Wav2Vec2ForCTC` are saved; `training` goes into config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        vocabulary = Path(temporary, "vocab.json")
        vocabulary.write_text(json.dumps({name: index for index, name in enumerate(LABELS)}))
        Wav2Vec2CTCTokenizer(str(vocabulary)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True).save_pretrained(folder)
    model.config.training = training
    model.half().save_pretrained(folder)


def load_converted(folder: Path) -> Any:
    """The exported model as the package runs it, converted afresh."""
    with tempfile.TemporaryDirectory() as temporary:
        convert(str(folder), Path(temporary, "wav2vec2"))
        return load(Path(temporary, "wav2vec2"))


def evaluate(model: Any, corpus: Corpus, n: int = 300, seed: int = 0) -> dict[str, float]:
    """Character error of greedy CTC, and how well the package's own aligner finds the words of the true text.

    model : the exported model, converted and loaded by `mlx_speech`
    Of the first n utterances, augmented; words whose times the synthesizer does not tell exactly count only as text.
    Errors in milliseconds, biases positive where the model is late; rates in percent.
    """
    truths, heard, errors = [], [], []
    for i in range(min(n, len(corpus))):
        own = corpus[i]
        samples = augment(own.samples, np.random.default_rng((seed, i)))
        log_probs = np.array(log_probabilities([samples], model)[0][0])[: model.num_frames(samples.size)]
        labels = log_probs.argmax(axis=1)
        kept = labels[np.append(True, labels[1:] != labels[:-1]) & (labels != BLANK)]
        heard.append("".join(LABELS[k] for k in kept).replace("|", " ").lower())
        truths.append(" ".join(own.words))
        (found,) = align([Segment(0.0, own.duration, truths[-1])], samples, model, language="en")
        times = np.array([(word.start, word.end) for word in found.words])
        errors.append((times - np.stack([own.starts, own.ends], axis=1))[own.exact])
    starts, ends = np.concatenate(errors).T * 1000
    return {
        "character error %": 100 * jiwer.cer(truths, heard),
        "word error %": 100 * jiwer.wer(truths, heard),
        "starts within 50 ms %": 100 * float(np.mean(np.abs(starts) <= 50)),
        "ends within 50 ms %": 100 * float(np.mean(np.abs(ends) <= 50)),
        "start error, median ms": float(np.median(np.abs(starts))),
        "end error, median ms": float(np.median(np.abs(ends))),
        "start bias, median ms": float(np.median(starts)),
        "end bias, median ms": float(np.median(ends)),
    }


def main() -> None:
    corpus = Corpus.open("recognition")
    model = train(corpus)
    recipe = {
        "steps": STEPS,
        "rate": RATE_OF_LEARNING,
        "front_steps": FRONT_STEPS,
        "front_rate": FRONT_RATE,
        "seconds_per_batch": SECONDS,
        "seed": SEED,
        "corpus": corpus.digest,
    }
    export(model, ASSETS / "wav2vec2", recipe)
    ported = load_converted(ASSETS / "wav2vec2")
    for name in ("recognition-test", "flite"):
        figures = evaluate(ported, Corpus.open(name))
        print(f"{name}: " + ", ".join(f"{key} {value:.1f}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
