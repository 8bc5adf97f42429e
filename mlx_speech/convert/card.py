"""The model card: where the weights come from, under which licence, how they were converted, and what was verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mlx_speech.convert.families import converter
from mlx_speech.convert.port import Plan
from mlx_speech.hub import readme_licence
from mlx_speech.models import FAMILIES
from mlx_speech.package_data import table

PIPELINE_TITLE = "a speaker diarization pipeline"
PIPELINE_TAGS = ("speaker-diarization", "pyannote")
LOADING = """```python
import mlx_speech

model = mlx_speech.load("path or repository of this folder")
```"""


@dataclass(frozen=True)
class Credit:
    """Who made a set of weights, and under which licence."""

    repo: str
    licence: str
    attribution: str


# sha256 of published files → who made them; openai/whisper's are part of their addresses
KNOWN = {digest: Credit(**credit) for digest, credit in table("credits").items()}


def provenance(plan: Plan, hashes: dict[str, str]) -> dict[str, Any]:
    """The `source` entry of config.json. hashes : file name → sha256"""
    source = plan.source
    earlier = source.config.get("source")
    if isinstance(earlier, dict) and source.converted:
        # The same origin as before; but what was verified was another conversion.
        return {key: value for key, value in earlier.items() if key != "verified"}
    credit = _credit(hashes)
    repo = source.repo or (credit.repo if credit is not None else None)
    attribution = credit.attribution if credit is not None else None
    if credit is None and repo is not None:
        attribution = f"the authors of {repo}"
    return {
        "repo": repo,
        "revision": source.revision,
        "files": hashes,
        "licence": _licence(plan, credit),
        "attribution": attribution,
        "original": plan.recipe.original,
    }


def _credit(hashes: dict[str, str]) -> Credit | None:
    """Who published one of these files, where that is known."""
    for digest in hashes.values():
        if digest in KNOWN:
            return KNOWN[digest]
    return None


def _licence(plan: Plan, credit: Credit | None) -> str | None:
    """As the hub states it, else as the publisher is known to, else as a card beside the weights does."""
    if plan.source.licence:
        return plan.source.licence
    if credit is not None and credit.licence:
        return credit.licence
    readme = plan.source.beside("README.md")
    return readme_licence(readme) if readme is not None else None


def card(name: str, config: dict[str, Any], command: str, verified: str | None) -> str:
    """README.md of a converted model.

    name : of its folder
    command : that makes the conversion again
    verified : the parity table, where there is one
    """
    source: dict[str, Any] = config.get("source") or {}
    family = config["model_type"]
    title = FAMILIES[family].title if family in FAMILIES else PIPELINE_TITLE
    paragraphs = [
        f"---\n{_front_matter(family, source)}\n---",
        f"# {name}",
        f"{title}, converted to MLX from {_origin(source)} by mlx_speech:",
        f"```\n{command}\n```",
        LOADING,
        _precision(config),
    ]
    if verified:
        paragraphs += ["## Parity with the original", verified]
    licence = source.get("licence") or "not stated by the source; see there"
    attribution = source.get("attribution") or "see the source"
    paragraphs += ["## Source and licence", f"Licence: {licence}. Attribution: {attribution}."]
    return "\n\n".join(paragraphs) + "\n"


def _front_matter(family: str, source: dict[str, Any]) -> str:
    """What the hub reads of a card, in YAML; nothing is stated that is not known."""
    family_tags: Sequence[str] = PIPELINE_TAGS
    pipeline_tag = None
    if family in FAMILIES:
        family_tags = converter(family).TAGS
        pipeline_tag = converter(family).PIPELINE_TAG
    entries = {
        "library_name": "mlx",
        "tags": ["mlx", "mlx_speech", *family_tags],
        "base_model": source.get("repo"),
        "pipeline_tag": pipeline_tag,
        "license": source.get("licence"),
    }
    stated = {key: value for key, value in entries.items() if value}
    return yaml.safe_dump(stated, sort_keys=False, allow_unicode=True).strip()


def _origin(source: dict[str, Any]) -> str:
    """Where the weights come from, with a link to it."""
    origin = "a local file"
    if source.get("repo"):
        origin = f"[{source['repo']}](https://huggingface.co/{source['repo']})"
    if source.get("revision"):
        origin += f" at revision `{source['revision']}`"
    return origin


def _precision(config: dict[str, Any]) -> str:
    quantization = config.get("quantization")
    if not quantization:
        return f"Weights: {config.get('dtype', 'as in the parts')}."
    # A mixed recipe has an entry for every layer.
    bits_of_layers = sorted({entry["bits"] for entry in quantization.values() if isinstance(entry, dict)})
    bits = " and ".join(map(str, bits_of_layers)) if bits_of_layers else str(quantization["bits"])
    kind = f"{quantization['mode']}, groups of {quantization['group_size']}"
    return f"Weights: {bits} bits ({kind}), the rest {config['dtype']}."
