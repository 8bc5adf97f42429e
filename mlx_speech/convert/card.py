"""The model card: where the weights come from, under which licence, how they were converted, and what was verified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from mlx_speech.convert.port import Plan, converter
from mlx_speech.hub import readme_licence
from mlx_speech.models import FAMILIES


@dataclass(frozen=True)
class Credit:
    """Who made a set of weights, and under which licence."""

    repo: str
    licence: str
    attribution: str


_SILERO = Credit("snakers4/silero-vad", "mit", "Silero VAD by the Silero Team, MIT licence")
_COMMUNITY = "pyannote/speaker-diarization-community-1"
_PLDA = Credit(_COMMUNITY, "cc-by-4.0", "PLDA by BUT Speech@FIT, distributed by pyannote, CC BY 4.0")
_SEGMENTATION = Credit("pyannote/segmentation", "mit", "pyannote segmentation (2022.07) by Hervé Bredin, MIT licence")

# sha256 of published files that carry no card of their own → who made them
KNOWN = {
    "e1122837f4154c511485fe0b9c64455f7b929c96fbb8d79fbdb336383ebd3720": _SILERO,
    "0b5b3216d60a2d32fc086b47ea8c67589aaeb26b7e07fcbe620d6d0b83e209ea": _SEGMENTATION,
    "9b77bcd840692710dd3496f62ecfeed8d8e5f002fd991b785079b244eab7d255": _PLDA,
    "325f1ce8e48f7e55e9c8aa47e05d2766b7c48c4b25b8de8dd751e7a4cc5fbe8f": _PLDA,
}
# openai/whisper publishes the sha256 of its files as part of their addresses
for _name, _sha256 in {
    "tiny.en": "d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03",
    "tiny": "65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9",
    "base.en": "25a8566e1d0c1e2231d1c762132cd20e0f96a85d16145c3a00adf5d1ac670ead",
    "base": "ed3a0b6b1c0edf879ad9b11b1af5a0e6ab5db9205f891f668f8b0e6c6326e34e",
    "small.en": "f953ad0fd29cacd07d5a9eda5624af0f6bcf2258be67c92b79389873d91e0872",
    "small": "9ecf779972d90ba49c06d968637d720dd632c55bbf19d441fb42bf17a411e794",
    "medium.en": "d7440d1dc186f76616474e0ff0b3b6b879abc9d1a4926b7adfa41db2d497ab4f",
    "medium": "345ae4da62f9b3d59415adc60127b97c714f32e89e936602e85993674d08dcb1",
    "large-v1": "e4b87e7e0bf463eb8e6956e646f1e277e901512310def2c24bf0e11bd3c28e9a",
    "large-v2": "81f7c96c852ee8fc832187b0132e569d6c3065a3252ed18e56effd0b6a73e524",
    "large-v3": "e5b1a55b89c1367dacf97e3e19bfd829a01529dbfdeefa8caeb59b3f1b81dadb",
    "large-v3-turbo": "aff26ae408abcba5fbf8813c21e62b0941638c5f6eebfb145be0c9839262a19a",
}.items():
    KNOWN[_sha256] = Credit(f"openai/whisper-{_name}", "mit", "Whisper by OpenAI, MIT licence")


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
