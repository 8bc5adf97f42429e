"""What surrounds the package says what is so: versions of tools, targets of make, links between pages."""

from __future__ import annotations

import re
import subprocess
import sys
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


@pytest.mark.parametrize(
    ("link", "is_built"),
    [
        ("other.md#a-part", True),
        ("mlx_speech/pipeline.py", True),  # of the repository: a part of README.md may stand in a guide
        ("tests", True),
        ("other.md#no-part", False),
        ("none.md", False),
        ("mlx_speech/none.py", False),
        ("reference/none.html", False),
    ],
)
def test_a_link_that_leads_nowhere_stops_the_documentation(link: str, is_built: bool, tmp_path: Path) -> None:
    """The command of `make docs`, with what the site is checked by."""
    pytest.importorskip("mkdocs")
    (built,) = re.findall(r"-m mkdocs (build.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    (checks,) = re.findall(r"^validation:\n(?: .*\n)+", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    hook = ROOT / "docs" / "hooks" / "files_of_repository.py"
    (tmp_path / "mkdocs.yml").write_text(f"site_name: a\ntheme: mkdocs\nhooks:\n  - {hook}\n{checks}", encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"[a link]({link})", encoding="utf-8")
    (tmp_path / "docs" / "other.md").write_text("# Other\n\n## A part\n", encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", *built.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == is_built, done.stderr
    if is_built:
        assert "a link" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")


def test_what_make_says_of_itself_is_complete() -> None:
    described = re.findall(r"^# make ([a-z-]+) :", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(described) == TARGETS - {"clean", "parity-full"}
