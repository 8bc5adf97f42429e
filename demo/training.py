"""One way to train all models: Adam, warm-up, a plateau, a cosine to zero; stops and goes on at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from demo import WORK

Step = Callable[[int, np.random.Generator], tuple[torch.Tensor, dict[str, float]]]
EVERY = 180  # seconds between checkpoints
PLATEAU = 0.4  # the share of the steps at full rate


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rate_at(step: int, cycles: Sequence[int], warmup: int) -> float:
    """The share of the full rate at a step. cycles : steps of each; each begins anew (Loshchilov & Hutter 2017)"""
    steps, *others = cycles
    if step >= steps and others:
        return rate_at(step - steps, others, warmup)
    if step < warmup:
        return (step + 1) / warmup
    start = max(warmup, PLATEAU * steps)
    return 1.0 if step < start else 0.5 * (1 + math.cos(math.pi * (step - start) / (steps - start)))


def run(
    name: str,
    model: torch.nn.Module,
    step: Step,
    *,
    cycles: Sequence[int],
    rate: float,
    warmup: int = 200,
    clip: float = 1.0,
    decay: float = 0.01,
    seed: int = 0,
    minutes: float | None = None,
    report: int = 50,
) -> bool:
    """Train, or go on with, `model`, which holds all that is learned; says whether all steps are done.

    cycles : how many steps, in how many cycles
    step : of its number and a generator of random numbers that depends on nothing else, gives the loss and figures
        for the log, WORK/train/<name>.log; WORK/train/<name>.pt is the checkpoint
    minutes : stop after that long; a later call goes on
    """
    folder = WORK / "train"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{name}.pt"
    torch.set_num_threads(1)
    model.to(device()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=decay, eps=1e-8)
    first, steps = 0, sum(cycles)
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device(), weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]

    def save(done: int) -> None:
        part = checkpoint.with_suffix(".part")
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}, part)
        part.rename(checkpoint)

    begun = saved = time.perf_counter()
    sums: dict[str, float] = {}
    for number in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_at(number, cycles, warmup)
        loss, figures = step(number, np.random.default_rng([seed, number]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        if torch.isfinite(norm):
            optimizer.step()
        for key, value in {"loss": loss.item(), **figures}.items():
            sums[key] = sums.get(key, 0.0) + value / report
        now = time.perf_counter()
        if (number + 1) % report == 0:
            line = "  ".join(f"{key} {value:.4g}" for key, value in sums.items())
            with (folder / f"{name}.log").open("a") as log:
                log.write(f"{number + 1:6d}/{steps}  {now - begun:6.0f} s  {line}\n")
            sums = {}
        if now - saved > EVERY or number + 1 == steps:
            save(number + 1)
            saved = now
        if minutes is not None and now - begun > 60 * minutes:
            save(number + 1)
            return number + 1 == steps
    model.eval()
    return True
