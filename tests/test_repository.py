"""What surrounds the package says what is so: versions of tools, targets of make, links between pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))  # none in an sdist
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_hooks_have_the_versions_of_the_tests() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = config["repos"][0]["hooks"]
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "basedpyright"}
    for hook in hooks:
        for requirement in hook["additional_dependencies"]:
            assert f'    "{requirement}",\n' in PYPROJECT


@pytest.mark.parametrize("page", [*PAGES, *WORKFLOWS], ids=lambda path: path.name)
def test_targets_of_make_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page in WORKFLOWS:
        assert yaml.safe_load(text)["jobs"]
    named = re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)|(?:run: |CI )make ([a-z-]+)", text, re.MULTILINE)
    for groups in named:
        assert "".join(groups) in TARGETS


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    """Pages of the reference are made when the site is built, which checks the links to them."""
    for target in re.findall(r"\[[^\]\"]+\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http:", "https:", "reference/", "../reference/")):
            continue
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_what_make_says_of_itself_is_complete() -> None:
    described = re.findall(r"^# make ([a-z-]+) :", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(described) == TARGETS - {"clean", "parity-full"}
