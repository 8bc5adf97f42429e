"""What the model is made of: a PyTorch checkpoint whose layers are called otherwise."""

from __future__ import annotations

from mlx_speech.convert.read import Source
from mlx_speech.convert.recipe import Drop, Recipe, Table
from mlx_speech.errors import WeightsMismatch

PIPELINE_TAG = None
TAGS = ("tones",)
COMPANIONS = ("tones.json",)
TAKES_LANGUAGE = False

TABLE: Table = {
    "encoder.conv": "front",
    "classifier": "head",
    "steps": Drop("a counter of training"),
}


def recognise(source: Source) -> bool:
    """Its two layers."""
    return {"encoder.conv.weight", "classifier.weight"} <= set(source.tensors)


def recipe(source: Source, language: str | None = None) -> Recipe:
    """The sizes, which the tensors show."""
    kernel = source.tensors["encoder.conv.weight"].shape
    head = source.tensors["classifier.weight"].shape
    if len(kernel) != 3 or len(head) != 2:
        raise WeightsMismatch(f"no layers of this family: {list(kernel)} and {list(head)}")
    config = {"channels": kernel[0], "kernel": kernel[2], "num_tones": head[0]}
    return Recipe(config, dict(source.tensors), TABLE, "torch", companions=COMPANIONS)
