"""A page for every module of the package, and the list of them: a hook of mkdocs, called whenever it builds the site.

Nothing is imported, so that neither MLX nor a model is needed here.
"""

from __future__ import annotations

import ast
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = Path(__file__).parent.parent.parent / "mlx_speech"
LIST = "reference/index.md"


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts)


def modules() -> dict[str, Path]:
    """Name → file, a package before what it contains. What only starts the command line has no page."""
    files = [file for file in PACKAGE.rglob("*.py") if file.name != "__main__.py"]
    return dict(sorted((module_name(file), file) for file in files))


def page_of(module: str) -> str:
    return f"reference/{module}.md"


def summary(file: Path) -> str:
    """The first sentence of a module's docstring, for the list of modules."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(".:")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the modules into the navigation, behind the guides."""
    pages: list[dict[str, str]] = [{"All modules": LIST}]
    for module in modules():
        pages.append({module.removeprefix("mlx_speech."): page_of(module)})
    config.nav = [*(config.nav or []), {"Reference": pages}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Write the pages, in memory."""
    rows = ["| module | what is in it |", "|---|---|"]
    for module, file in modules().items():
        files.append(File.generated(config, page_of(module), content=f"# {module}\n\n::: {module}\n"))
        rows.append(f"| [{module}]({module}.md) | {summary(file)} |")
    head = "# Reference\n\nWhat the code says of itself, module by module.\n\n"
    files.append(File.generated(config, LIST, content=head + "\n".join(rows) + "\n"))
    return files
