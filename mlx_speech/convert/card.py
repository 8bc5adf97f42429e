"""The model card: where the weights come from, under which licence, how they were converted, and what was verified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from mlx_speech.convert.port import Plan, converter
from mlx_speech.hub import readme_licence
from mlx_speech.models import FAMILIES
from mlx_speech.package_data import table


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
    source, earlier = plan.source, plan.source.config.get("source")
    if isinstance(earlier, dict) and source.config.get("format_version") is not None:
        return {key: value for key, value in earlier.items() if key != "verified"}  # converted before: the same origin
    known = next((KNOWN[digest] for digest in hashes.values() if digest in KNOWN), None)
    repo = source.repo or (known.repo if known else None)
    readme = source.beside("README.md")
    licence = source.licence or (known.licence if known else None) or (readme_licence(readme) if readme else None)
    attribution = known.attribution if known else (f"the authors of {repo}" if repo else None)
    said = {"repo": repo, "revision": source.revision, "files": hashes, "licence": licence}
    return {**said, "attribution": attribution, "original": plan.recipe.original}


def card(name: str, config: dict[str, Any], command: str, verified: str | None) -> str:
    """README.md of a converted model. verified : the parity table, where there is one."""
    family = config["model_type"]
    source: dict[str, Any] = config.get("source") or {}
    module = converter(family) if family in FAMILIES else None
    tags = ["mlx", "mlx_speech", *(module.TAGS if module else ["speaker-diarization", "pyannote"])]
    front: dict[str, Any] = {"library_name": "mlx", "tags": tags, "base_model": source.get("repo")}
    front |= {"pipeline_tag": module.PIPELINE_TAG if module else None, "license": source.get("licence")}
    front = {key: value for key, value in front.items() if value}
    origin = f"[{source['repo']}](https://huggingface.co/{source['repo']})" if source.get("repo") else "a local file"
    if source.get("revision"):
        origin += f" at revision `{source['revision']}`"
    what = FAMILIES.get(family, "a speaker diarization pipeline")
    lines = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()}\n---",
        f"# {name}",
        f"{what}, converted to MLX from {origin} by mlx_speech:",
        f"```\n{command}\n```",
        '```python\nimport mlx_speech\n\nmodel = mlx_speech.load("path or repository of this folder")\n```',
        _precision(config),
        *(["## Parity with the original", verified] if verified else []),
        "## Source and licence",
        f"Licence: {source.get('licence') or 'not stated by the source; see there'}. "
        f"Attribution: {source.get('attribution') or 'see the source'}.",
    ]
    return "\n\n".join(lines) + "\n"


def _precision(config: dict[str, Any]) -> str:
    quantization = config.get("quantization")
    if not quantization:
        return f"Weights: {config.get('dtype', 'as in the parts')}."
    layers = sorted({entry["bits"] for entry in quantization.values() if isinstance(entry, dict)})
    bits = " and ".join(map(str, layers)) if layers else str(quantization["bits"])
    kind = f"{quantization['mode']}, groups of {quantization['group_size']}"
    return f"Weights: {bits} bits ({kind}), the rest {config['dtype']}."
