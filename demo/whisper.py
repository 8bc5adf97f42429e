"""The demo Whisper: transformers' own class, 128 wide, for windows of 7 s, trained in one run of a few hours.

`python -m demo.whisper` trains it, or goes on, and exports it; `--evaluate` scores the last checkpoint instead.

Besides Whisper's own loss there are three that fall away: the encoder names the phone of every frame after its second
layer and the word of every frame at its end, and head 0 of each decoder layer listens where the word that comes next is
said (Tachibana et al. 2017, "guided attention", with the synthesizer's true times). Windows are single sentences at
first, then more and more such as the pipeline cuts from conversations.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from demo import ASSETS, RATE, WORK, training, vocabulary
from demo.conversations import compose
from demo.corpus import PHONES, Corpus
from demo.grammar import WORDS
from demo.whisper_windows import (
    FRAME,
    LENGTH,
    UNKNOWN,
    Part,
    Window,
    composed,
    frame_labels,
    prompt,
    silent,
    single,
    target,
)
from mlx_speech.features import mel_filters

NAME = "whisper"
SEED = 4
STEPS = (15_500, 20_000)  # in two cycles: the help falls away, and composed windows come in, during the first
RATE_OF_LEARNING = 1.5e-3
SECONDS = 49.0  # of audio in a batch
ENCODER_ONLY = 300  # steps before the decoder is trained
WINDOWS = (0.15, 0.4)  # parts of the run: before the first, single sentences; after the second, composed windows
FRAMES = round(LENGTH / FRAME)
HEADS, WIDTH, CONTEXT = 2, 128, 128
HALF = torch.bfloat16


def new_model() -> WhisperForConditionalGeneration:
    token = vocabulary.ids()
    end = token["<|endoftext|>"]
    config = WhisperConfig(
        vocab_size=len(token),
        d_model=WIDTH,
        encoder_layers=4,
        decoder_layers=2,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * WIDTH,
        decoder_ffn_dim=4 * WIDTH,
        max_source_positions=FRAMES,
        max_target_positions=CONTEXT,
        dropout=0.0,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=token["<|startoftranscript|>"],
    )
    return WhisperForConditionalGeneration(config)


class Trained(nn.Module):
    """A Whisper, and what names phones and words while it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.whisper = new_model()
        self.phones = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(PHONES)))
        self.words = nn.Linear(WIDTH, len(WORDS) + 1)


def linear(x: Tensor, *layers: nn.Linear) -> Tensor:
    """Side by side what each layer makes of x, in half precision; without a bias where the first has none."""
    weight = torch.cat([layer.weight for layer in layers]).to(HALF)
    zeros = torch.zeros(WIDTH, device=x.device)
    biases = [zeros if layer.bias is None else layer.bias for layer in layers]
    return F.linear(x.to(HALF), weight, None if layers[0].bias is None else torch.cat(biases).to(HALF))


def attend(
    layer: nn.Module, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(batch, steps, width) → the same, and the weights (batch, heads, steps, steps of the memory).

    memory : what it attends to, by default x itself

    In half precision and without a fused kernel: with bfloat16 on a CPU three times as fast as with one.
    """
    if memory is None:
        parts = linear(x, layer.q_proj, layer.k_proj, layer.v_proj).chunk(3, -1)
    else:
        parts = (linear(x, layer.q_proj), *linear(memory, layer.v_proj, layer.k_proj).chunk(2, -1)[::-1])
    queries, keys, values = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
    scores = (queries * (WIDTH // HEADS) ** -0.5) @ keys.transpose(-1, -2)
    weights = (scores if mask is None else scores + mask).softmax(-1)
    return linear((weights @ values).transpose(1, 2).flatten(2), layer.out_proj), weights


def feed(layer: nn.Module, x: Tensor) -> Tensor:
    return x + linear(F.gelu(linear(layer.final_layer_norm(x), layer.fc1)), layer.fc2)


def encode(whisper: WhisperForConditionalGeneration, mel: Tensor, first: int = 0) -> list[Tensor]:
    """mel (batch, 80, frames) → what each layer gives, (batch, frames / 2, width), the last normalised.

    first : row of the table of positions at which they begin
    """
    encoder = whisper.model.encoder
    x = mel.to(HALF)
    for conv in (encoder.conv1, encoder.conv2):
        x = F.gelu(F.conv1d(x, conv.weight.to(HALF), conv.bias.to(HALF), conv.stride, conv.padding))
    x = x.transpose(1, 2) + encoder.embed_positions.weight[first : first + x.shape[2]]
    outputs = []
    for layer in encoder.layers:
        x = feed(layer, x + attend(layer.self_attn, layer.self_attn_layer_norm(x))[0])
        outputs.append(x)
    return [*outputs[:-1], encoder.layer_norm(x)]


def decode(whisper: WhisperForConditionalGeneration, tokens: Tensor, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
    """tokens (batch, n), audio (batch, frames, width) → hidden (batch, n, width), the layers' cross-attention."""
    decoder = whisper.model.decoder
    count = tokens.shape[1]
    x = decoder.embed_tokens(tokens) + decoder.embed_positions.weight[:count]
    mask = torch.full((count, count), -1e9, dtype=HALF, device=x.device).triu(1)
    weights = []
    for layer in decoder.layers:
        x = x + attend(layer.self_attn, layer.self_attn_layer_norm(x), mask=mask)[0]
        y, seen = attend(layer.encoder_attn, layer.encoder_attn_layer_norm(x), audio)
        x = feed(layer, x + y)
        weights.append(seen)
    return decoder.layer_norm(x), weights


_HANN, _MEL = torch.hann_window(400), torch.from_numpy(mel_filters(80))


def log_mel(audio: Tensor) -> Tensor:
    """(batch, samples) → (batch, 80, frames of 10 ms), as openai/whisper's `log_mel_spectrogram`."""
    spectrum = torch.stft(audio, 400, 160, window=_HANN.to(audio.device), return_complex=True)[..., :-1]
    power = spectrum.real.square() + spectrum.imag.square()
    mel = (_MEL.to(audio.device) @ power).clamp(min=1e-10).log10()
    return (torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8) + 4) / 4


def stacked(windows: list[Window], frames: int) -> Tensor:
    """Their samples, padded with zeros."""
    audio = np.zeros((len(windows), round(frames * FRAME * RATE)), np.float32)
    for row, window in zip(audio, windows, strict=True):
        row[: window.samples.size] = window.samples[: row.size]
    return torch.from_numpy(audio)


def guided(weights: list[Tensor], spans: Tensor) -> Tensor:
    """How far head 0 is from the true spans (batch, n, 2), in frames: the mean of -log(mass within)."""
    known = spans[..., 1] > 0
    at = torch.arange(weights[0].shape[-1], device=spans.device)
    inside = (at >= spans[..., :1]) & (at <= spans[..., 1:])
    mass = torch.stack([(seen[:, 0].float() * inside).sum(-1) for seen in weights])
    return -(mass[:, known] + 1e-4).log().mean()


class Step:
    """One step of training: a batch of windows and what is wrong with what the model makes of them."""

    def __init__(self, model: Trained, corpus: Corpus, steps: int) -> None:
        self.model, self.corpus, self.steps = model, corpus, steps
        self.lengths = np.argsort(corpus.durations, kind="stable")
        self.lengths = self.lengths[corpus.durations[self.lengths] < LENGTH - 0.5]
        self.text_end = vocabulary.ids()["<|endoftext|>"]

    def windows(self, i: int, rng: np.random.Generator) -> tuple[list[Window], int]:
        """And how many frames they have."""
        start, full = WINDOWS
        if rng.random() >= (i / self.steps - start) / (full - start):
            windows = single(self.corpus, rng, SECONDS, self.lengths)
            longest = max(window.samples.size for window in windows)
            return windows, min(FRAMES, -(-longest // round(FRAME * RATE)))
        count = round(SECONDS / LENGTH)
        return [silent(rng) if rng.random() < 0.02 else composed(self.corpus, rng) for _ in range(count)], FRAMES

    def __call__(self, i: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        device, model = training.device(), self.model
        windows, frames = self.windows(i, rng)
        first = int(rng.integers(FRAMES - frames + 1))
        outputs = encode(model.whisper, log_mel(stacked(windows, frames).to(device)), first)
        labels = np.stack([frame_labels(window, frames) for window in windows])
        phones, words = torch.from_numpy(labels).to(device).unbind(1)
        named = F.cross_entropy(model.phones(outputs[1]).flatten(0, 1), phones.flatten(), ignore_index=UNKNOWN)
        known = words > 0
        scores = model.words(outputs[-1])
        spotted = F.cross_entropy(scores.flatten(0, 1), words.flatten(), ignore_index=UNKNOWN)
        figures = {"phones": named.item(), "frames": (scores[known].argmax(-1) == words[known]).float().mean().item()}
        helping = 1.0 - 0.8 * min(1.0, i / self.steps / 0.8)  # the weight of all but Whisper's own loss
        loss = helping * (named + spotted)
        if i >= ENCODER_ONLY:
            own, led, right = self.decoder(windows, outputs[-1], first, rng)
            loss = loss + own + helping * led
            figures |= {"text": own.item(), "led": led.item(), "right": right}
        return loss, figures

    def decoder(
        self, windows: list[Window], audio: Tensor, first: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, float]:
        """Whisper's loss, that of guided attention, the share of words that are right."""
        before = prompt(self.corpus, rng) if rng.random() < 0.1 else []
        rows = [target(window, rng, rng.random() < 0.4, first * FRAME) for window in windows]
        length = max(len(given) for given, _, _ in rows)
        given = np.full((len(rows), len(before) + length), self.text_end)
        said = np.full((len(rows), length), UNKNOWN)
        spans = np.full((len(rows), length, 2), -1.0, np.float32)
        for k, (tokens, following, where) in enumerate(rows):
            given[k, : len(before) + len(tokens)] = [*before, *tokens]
            said[k, : len(tokens)] = following
            spans[k, : len(tokens)] = where / FRAME
        # what it said itself may be wrong
        wrong = (rng.random(given.shape) < 0.04) & (given < self.text_end)
        given[wrong] = rng.choice(vocabulary.spoken(), int(wrong.sum()))
        given, said, spans = (torch.from_numpy(array).to(audio.device) for array in (given, said, spans))
        hidden, weights = decode(self.model.whisper, given[:, :CONTEXT], audio)
        hidden, weights = hidden[:, len(before) :], [seen[:, :, len(before) :] for seen in weights]
        known = said != UNKNOWN
        logits = linear(hidden[known], self.model.whisper.proj_out).float()
        spoken = said[known] < self.text_end
        right = (logits[spoken].argmax(-1) == said[known][spoken]).float().mean().item()
        return F.cross_entropy(logits, said[known]), guided(weights, spans), right


def chunks(corpus: Corpus, count: int) -> list[Window]:
    """Of conversations of `corpus`: utterance after utterance, as long as they fit in a window."""
    rng = np.random.default_rng(SEED)
    found: list[Window] = []
    while len(found) < count:
        conversation = compose(corpus, rng, 60.0, int(rng.integers(2, 5)))
        groups: list[list[Part]] = [[]]
        for placed in conversation.placed:
            if groups[-1] and placed.start + placed.utterance.duration - groups[-1][0].at > LENGTH:
                groups.append([])
            groups[-1].append(Part(placed.utterance, placed.start))
        for group in groups:
            start = max(0.0, group[0].at - 0.1)
            stop = max(part.at + part.utterance.duration for part in group) + 0.1
            samples = conversation.samples[round(start * RATE) : round(stop * RATE)]
            found.append(Window(samples, [Part(part.utterance, part.at - start) for part in group]))
    return found[:count]


@torch.no_grad()
def transcribe(whisper: WhisperForConditionalGeneration, windows: list[Window]) -> list[str]:
    """The likeliest token after the other, without timestamps, in full precision."""
    token = vocabulary.ids()
    audio = whisper.model.encoder(log_mel(stacked(windows, FRAMES))).last_hidden_state
    start = [token[f"<|{name}|>"] for name in ("startoftranscript", "en", "transcribe", "notimestamps")]
    tokens = torch.tensor([start] * len(windows))
    end = token["<|endoftext|>"]
    for _ in range(CONTEXT // 2):
        logits = whisper(decoder_input_ids=tokens, encoder_outputs=(audio,)).logits[:, -1, : end + 1]
        chosen = torch.where((tokens == end).any(1), end, logits.argmax(-1))
        tokens = torch.cat([tokens, chosen[:, None]], 1)
        if (chosen == end).all():
            break
    names = {number: name for name, number in token.items() if number < end}
    texts = ["".join(names[number] for number in row if number < end) for row in tokens[:, 4:].tolist()]
    return [text.replace("Ġ", " ") for text in texts]


def evaluate(whisper: WhisperForConditionalGeneration, show: int = 0) -> dict[str, float]:
    """Word error rate on unheard voices and sentences, single (60) and in conversations (40 windows)."""
    from jiwer import wer

    from demo.augment import augment

    corpus = Corpus.open("recognition-test")
    alone = [Window(augment(corpus[i].samples, np.random.default_rng(i)), [Part(corpus[i], 0.0)]) for i in range(60)]
    scores = {}
    for name, windows in (("sentences", alone), ("conversations", chunks(corpus, 40))):
        said = ["".join(part.text for part in window.parts) for window in windows]
        heard = [text for k in range(0, len(windows), 20) for text in transcribe(whisper, windows[k : k + 20])]
        for pair in list(zip(said, heard, strict=True))[:show]:
            print(*pair, sep="\n ", end="\n\n")
        plain = [[text.lower().replace(".", "").strip() for text in texts] for texts in (said, heard)]
        scores[name] = wer(*plain)
    return scores


def export(model: Trained, corpus: Corpus, folder=ASSETS / NAME) -> None:
    """In half precision, as transformers saves it, with all that goes with it."""
    token = vocabulary.ids()
    end = token["<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    whisper = model.whisper
    recipe = {"command": "python -m demo.whisper", "seed": SEED, "steps": STEPS, "rate": RATE_OF_LEARNING}
    whisper.config.training = {**recipe, "seconds in a batch": SECONDS, "corpus": corpus.digest}
    whisper.config.silent_padding = True  # the recordings of the training are padded with digital silence
    whisper.generation_config = GenerationConfig(
        alignment_heads=[[layer, 0] for layer in range(whisper.config.decoder_layers)],
        begin_suppress_tokens=[token["Ġ"], end],
        bos_token_id=end,
        decoder_start_token_id=token["<|startoftranscript|>"],
        eos_token_id=end,
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": token[f"<|{code}|>"] for code in vocabulary.languages()},
        max_initial_timestamp_index=50,
        max_length=CONTEXT,
        no_timestamps_token_id=token["<|notimestamps|>"],
        pad_token_id=end,
        prev_sot_token_id=token["<|startofprev|>"],
        return_timestamps=False,
        suppress_tokens=[],
        task_to_id={name: token[f"<|{name}|>"] for name in ("transcribe", "translate")},
    )
    whisper.half().save_pretrained(folder)
    whisper.float()
    WhisperFeatureExtractor(feature_size=80, chunk_length=round(LENGTH)).save_pretrained(folder)
    vocabulary.write(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluate", action="store_true", help="score the last checkpoint")
    parser.add_argument("--minutes", type=float, help="stop after that long; the next call goes on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = Trained()
    if options.evaluate:
        state = torch.load(WORK / "train" / f"{NAME}.pt", map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        print(f"step {state['step']}", evaluate(model.whisper.eval(), show=5))
        return
    corpus = Corpus.open("recognition")
    recipe = {"cycles": STEPS, "rate": RATE_OF_LEARNING, "clip": 2.0, "seed": SEED, "minutes": options.minutes}
    if training.run(NAME, model, Step(model, corpus, STEPS[0]), **recipe, warmup=300):
        export(model.cpu(), corpus)
        print(evaluate(WhisperForConditionalGeneration.from_pretrained(ASSETS / NAME, dtype=torch.float32).eval()))


if __name__ == "__main__":
    main()
