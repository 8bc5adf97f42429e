"""Speaker embeddings: pyannote.audio's WeSpeaker ResNet34, with 8 base channels for 32 and 128 numbers for 256.

Trained to tell the speakers of the corpus "identities" apart (additive angular margin, Deng et al. 2019), first on
crops of one speaker, then on windows of conversations as well, pooled over the frames of each speaker as the
diarization pipeline does. `python -m demo.wespeaker` trains, goes on where it stopped, and writes the file.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pyannote.audio.core.task import Problem, Resolution, Specifications, Task
from pyannote.audio.models.embedding.wespeaker import BaseWeSpeakerResNet
from pyannote.audio.models.embedding.wespeaker.resnet import BasicBlock, ResNet
from torch import nn

from demo import ASSETS, RATE, lightning, training
from demo.augment import augment
from demo.conversations import Conversation, by_speaker, compose
from demo.corpus import Corpus

FILE = ASSETS / "diarization" / "embedding" / "pytorch_model.bin"
CHANNELS, SIZE = 8, 128
STEPS = 3000
CROPS, CROP = 32, (1.5, 3.0)  # a batch; seconds
WINDOWS, WINDOW = 8, (5.0, 10.0)  # a batch of conversations' windows; seconds
SINGLE = 0.4  # the share of the steps that sees crops alone; windows take every other step after it
ALONE = 0.5  # seconds: who speaks less in a window is not embedded
MASK = 50  # mask frames per second
SCALE, MARGIN, RISE = 30.0, 0.2, 0.001  # radians; radians per step, once over half of the batch is recognised


class NarrowResNet34(BaseWeSpeakerResNet):
    """As `WeSpeakerResNet34`, whose widths cannot be chosen; keyword arguments are its filterbank's."""

    def __init__(self, task: Task | None = None, **filterbank: Any) -> None:
        super().__init__(task=task, **filterbank)
        bins = self.hparams.num_mel_bins
        self.resnet = ResNet(BasicBlock, [3, 4, 6, 3], CHANNELS, feat_dim=bins, embed_dim=SIZE, two_emb_layer=False)
        self.specifications = Specifications(
            problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=CROP[1], classes=[]
        )


class Margin(nn.Module):
    """The model, a direction per speaker of the corpus, and how far the margin has risen."""

    def __init__(self, speakers: int) -> None:
        super().__init__()
        self.embedding = NarrowResNet34()
        self.centres = nn.Parameter(torch.randn(speakers, SIZE))
        self.register_buffer("accuracy", torch.zeros(()))
        self.register_buffer("margin", torch.zeros(()))

    def forward(self, vectors: torch.Tensor, speakers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """vectors (n, SIZE), speakers (n,) → the loss and the part that is recognised"""
        cosine = F.normalize(vectors) @ F.normalize(self.centres).T
        right = (cosine.argmax(dim=1) == speakers).float().mean()
        self.accuracy.lerp_(right, 0.02)
        if self.accuracy > 0.5:
            self.margin.add_(RISE).clamp_(max=MARGIN)
        own = cosine[torch.arange(len(speakers)), speakers].clamp(-1 + 1e-6, 1 - 1e-6)
        further = torch.where(
            own > -math.cos(float(self.margin)), torch.cos(torch.acos(own) + self.margin), own - self.margin**2
        )
        logits = SCALE * cosine.scatter(1, speakers[:, None], further[:, None])
        return F.cross_entropy(logits, speakers), right


def crop(corpus: Corpus, numbers: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """(size,) of one speaker's utterances, joined where one is too short; augmented"""
    found = np.zeros(0, np.float32)
    while found.size < size:
        utterance = corpus[int(rng.choice(numbers))].samples
        pause = np.zeros(int(rng.uniform(0, 0.3) * RATE), np.float32)
        # in a third of the cases a crop reaches from one utterance into the next
        begun = utterance[rng.integers(utterance.size // 2) :] if not found.size and rng.random() < 0.33 else utterance
        found = np.concatenate([found, pause, begun]) if found.size else begun
    start = rng.integers(found.size - size + 1)
    return augment(found[start : start + size], rng)


def masks(conversation: Conversation, start: float, seconds: float, speakers: int) -> np.ndarray:
    """(speakers, frames) of 0 and 1: where in a window each speaks alone"""
    grid = np.zeros((speakers, round(seconds * MASK)), np.float32)
    for begun, ended, speaker in conversation.turns:
        a, b = round((begun - start) * MASK), round((ended - start) * MASK)
        grid[speaker, max(a, 0) : max(b, 0)] = 1
    return grid * (grid.sum(axis=0) < 2)


class Data:
    """Batches of the speakers of a corpus."""

    def __init__(self, corpus: Corpus, names: list[str] | None = None) -> None:
        self.corpus = corpus
        self.numbers = by_speaker(corpus)
        self.names = names or list(self.numbers)
        self.index = {name: i for i, name in enumerate(self.names)}

    def crops(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(CROPS, 1, samples) and the speaker of each"""
        size = round(rng.uniform(*CROP) * RATE)
        chosen = rng.choice(len(self.names), CROPS, replace=False)
        found = [crop(self.corpus, self.numbers[self.names[k]], rng, size) for k in chosen]
        return torch.from_numpy(np.stack(found)[:, None]), torch.from_numpy(chosen)

    def windows(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(WINDOWS, 1, samples), (WINDOWS, 3, frames) where each speaks alone, (WINDOWS, 3) who: -1 nobody"""
        seconds = round(float(rng.uniform(*WINDOW)), 2)
        size = round(seconds * RATE)
        samples, alone = np.zeros((WINDOWS, 1, size), np.float32), np.zeros((WINDOWS, 3, round(seconds * MASK)))
        who = np.full((WINDOWS, 3), -1)
        for i in range(WINDOWS):
            conversation = compose(self.corpus, rng, seconds + 8, int(rng.integers(2, 4)), names=self.names)
            start = round(float(rng.uniform(0, max(0.0, conversation.duration - seconds))), 2)
            first = round(start * RATE)
            heard = conversation.samples[first : first + size]
            samples[i, 0, : heard.size] = heard
            alone[i] = masks(conversation, start, seconds, 3)
            for placed in conversation.placed:
                if alone[i, placed.speaker].sum() >= ALONE * MASK:
                    who[i, placed.speaker] = self.index[placed.utterance.speaker]
        return torch.from_numpy(samples), torch.from_numpy(alone.astype(np.float32)), torch.from_numpy(who)


def train(steps: int = STEPS, minutes: float | None = None) -> tuple[NarrowResNet34, bool]:
    """The model, and whether it is done."""
    data = Data(Corpus.open("identities"))
    torch.manual_seed(0)
    model = Margin(len(data.names))
    to = training.device()

    def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        both = number >= SINGLE * steps
        alone: torch.Tensor | None
        if both and number % 2:
            waveforms, alone, who = (part.to(to) for part in data.windows(rng))
        else:
            waveforms, who = (part.to(to) for part in data.crops(rng))
            alone = None
        features = model.embedding.compute_fbank(waveforms)
        with torch.autocast(to.type, torch.bfloat16):  # takes two thirds of the time
            frames = model.embedding.resnet.forward_frames(features)
        vectors = model.embedding.forward_embedding(frames.float(), weights=alone)
        loss, right = model(vectors[who >= 0], who[who >= 0])
        kind = "crops" if alone is None else "windows"
        return loss, {kind: (2 if both else 1) * right.item(), "margin": model.margin.item()}

    done = training.run("wespeaker", model, step, cycles=[steps], rate=3e-3, clip=1.0, minutes=minutes)
    return model.embedding.eval(), done


def main() -> None:
    model, done = train()
    if done:
        lightning.save(model, FILE)


if __name__ == "__main__":
    from demo import wespeaker  # under its own name, which the file states

    wespeaker.main()
