"""Who speaks when in ten seconds: pyannote.audio's PyanNet, with two LSTM layers for four; three voices, two at once.

Windows are cut out of conversations composed on the fly; the loss is that of the best of the six orders of the voices.
`python -m demo.pyannet` trains, goes on where it stopped, and writes the file.
"""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import torch
import torch.nn.functional as F
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.models.segmentation import PyanNet
from torch import nn

from demo import ASSETS, RATE, lightning, training
from demo.augment import noise_of
from demo.conversations import Conversation, compose
from demo.corpus import Corpus

FILE = ASSETS / "diarization" / "segmentation" / "pytorch_model.bin"
STEPS = 9000
HIDDEN, LAYERS = 128, 2
SECONDS, VOICES, AT_ONCE = 10, 3, 2
FRAMES, FRAME, MIDDLE = 589, 270 / RATE, 495.5 / RATE  # of a window; seconds between them, and of the first's middle
CONVERSATIONS, EACH, LENGTH = 3, 4, 45.0  # a batch: so many windows out of each conversation of so many seconds
SPEAKERS = (1, 2, 2, 2, 3, 3, 3, 4)  # of a conversation
PAUSES = ((0.05, 0.5), (0.1, 1.2), (0.1, 1.2), (0.3, 3.0))  # seconds
OVERLAP = 0.3  # of the changes of speaker
EMPTY, CUT = 0.04, 0.06  # the share of windows without speech, and of those that end early

SETS = [voices for size in range(AT_ONCE + 1) for voices in combinations(range(VOICES), size)]
# class of the voices' bits, and of every class its class when the voices are reordered
CLASS = np.array([SETS.index(tuple(k for k in range(VOICES) if bits >> k & 1)) if bits < 7 else 4 for bits in range(8)])
ORDERS = np.array(
    [[SETS.index(tuple(sorted(order[k] for k in voices))) for voices in SETS] for order in permutations(range(VOICES))]
)


def pyannet() -> PyanNet:
    model = PyanNet(lstm={"hidden_size": HIDDEN, "num_layers": LAYERS})
    model.specifications = Specifications(
        problem=Problem.MONO_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=float(SECONDS),
        warm_up=(0.0, 0.0),
        classes=[f"speaker#{k + 1}" for k in range(VOICES)],
        powerset_max_classes=AT_ONCE,
        permutation_invariant=True,
    )
    model.build()
    return model


class Trained(nn.Module):
    """The model as it is trained: the sinc filters stay as they are, their gradient being the slowest part, and so
    does the scale of the waveform before them, of which the norm after them keeps nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.pyannet = pyannet()
        self.pyannet.sincnet.wav_norm1d.requires_grad_(False)
        self.pyannet.sincnet.conv1d[0].requires_grad_(False)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """(batch, 1, samples) → log-probabilities (batch, frames, 7)"""
        model = self.pyannet
        with torch.autocast(waveforms.device.type, torch.bfloat16):
            features = model.sincnet(waveforms)
        outputs = model.lstm(features.float().transpose(1, 2))[0]
        for linear in model.linear:
            outputs = F.leaky_relu(linear(outputs))
        return model.activation(model.classifier(outputs))


def window(conversation: Conversation, start: float) -> tuple[np.ndarray, np.ndarray]:
    """(samples,) and (frames, speakers of the conversation) of 0 and 1, of the ten seconds at `start`"""
    first, size = round(start * RATE), SECONDS * RATE
    samples = np.zeros(size, np.float32)
    heard = conversation.samples[first : first + size]
    samples[: heard.size] = heard
    middles = start + MIDDLE + FRAME * np.arange(FRAMES)
    spoken = np.zeros((FRAMES, 1 + max(placed.speaker for placed in conversation.placed)), np.int8)
    for begun, ended, speaker in conversation.turns:
        spoken[(middles >= begun) & (middles < ended), speaker] = 1
    return samples, spoken


class Data:
    """Batches out of the corpus "speakers"."""

    def __init__(self) -> None:
        self.corpus = Corpus.open("speakers")

    def batch(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveforms (windows, 1, samples), classes (windows, FRAMES)"""
        found = [one for _ in range(CONVERSATIONS) for one in self._windows(rng)]
        samples, classes = (np.stack(part) for part in zip(*found, strict=True))
        return torch.from_numpy(samples[:, None]), torch.from_numpy(classes)

    def _windows(self, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
        pause = PAUSES[rng.integers(len(PAUSES))]
        speakers = int(rng.choice(SPEAKERS))
        conversation = compose(self.corpus, rng, LENGTH, speakers, overlap=OVERLAP, pause=pause)
        found = []
        while len(found) < EACH:
            samples, spoken = window(conversation, rng.uniform(0, max(0.0, conversation.duration - SECONDS)))
            if (spoken.sum(axis=0) > 0).sum() > VOICES:
                continue
            chance = rng.random()
            if chance < EMPTY:
                samples, spoken = noise_of(samples.size, rng) * 10 ** -rng.uniform(1, 4), 0 * spoken
            elif chance < EMPTY + CUT:
                end = rng.uniform(1, SECONDS)
                samples[round(end * RATE) :] = 0
                spoken[round(end / FRAME) :] = 0
            present = np.flatnonzero(spoken.any(axis=0))
            bits = (spoken[:, present] << np.arange(present.size)).sum(axis=1)
            found.append((samples.astype(np.float32), CLASS[bits]))
        return found


def powerset_loss(scores: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """scores (batch, frames, 7), classes (batch, frames) → the loss (), the classes in the order that fits best"""
    orders = torch.from_numpy(ORDERS).to(classes.device)
    reordered = orders[:, classes].permute(1, 2, 0)  # (batch, frames, 6)
    losses = -scores.gather(2, reordered).mean(dim=1)
    best = losses.argmin(dim=1)
    chosen = reordered[torch.arange(len(best)), :, best]
    return losses.gather(1, best[:, None]).mean(), chosen


def train(steps: int = STEPS, minutes: float | None = None) -> tuple[PyanNet, bool]:
    """The model, and whether it is done."""
    data = Data()
    torch.manual_seed(0)
    model = Trained()
    to = training.device()

    def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        waveforms, classes = (part.to(to) for part in data.batch(rng))
        scores = model(waveforms)
        loss, chosen = powerset_loss(scores, classes)
        return loss, {"error": (scores.argmax(dim=2) != chosen).float().mean().item()}

    done = training.run("pyannet", model, step, cycles=[steps], rate=3e-3, clip=1.0, minutes=minutes)
    return model.pyannet.eval(), done


def main() -> None:
    model, done = train()
    if done:
        lightning.save(model, FILE)


if __name__ == "__main__":
    main()
