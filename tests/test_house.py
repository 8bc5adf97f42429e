"""The house: what importing costs, which way imports run, how large it is, and that every family is complete."""

from __future__ import annotations

import ast
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import mlx_speech
from mlx_speech import models
from mlx_speech.convert import families
from mlx_speech.convert.parity import measures
from mlx_speech.models.base import BaseModel, BaseModelArgs

ROOT = Path(mlx_speech.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
# from the ground up; a module imports from lower layers only
LAYERS = (
    ("errors", "version", "blas", "package_data", "steps", "waker", "sample_file"),
    ("backend",),
    ("forks", "languages", "fields", "json_objects", "samples", "sound_buffer", "whole_files"),
    ("transcript",),
    ("media", "channels"),
    ("sink",),
    ("tensors", "audio", "resampling", "hub", "features", "names"),
    ("writers",),
    ("ops",),
    ("models",),
    ("checkpoint",),
    ("folders",),
    ("stages",),
    ("convert",),
    ("voices",),
    ("options", "loading", "evaluation"),
    ("request", "environment"),
    ("engine", "recording", "checks"),
    ("batches", "timing", "detection", "sequential"),
    ("live",),
    ("pipeline",),
    ("whisperx", "server", "archive"),
    ("cli",),
    ("__main__", "__init__"),
)
WINGS = (
    "ops",
    "models",
    "convert",
    "stages",
    "writers",
    "evaluation",
    "voices",
    "live",
    "server",
    "archive",
    "cli",
)  # whose files may import each other; the stages only their parts, below
FRAMEWORKS = {"torch", "torchaudio", "transformers", "whisper", "silero_vad", "pyannote", "lightning", "omegaconf"}
FRAMEWORKS |= {"speakerlab"}


@dataclass(frozen=True)
class Import:
    file: Path
    name: str  # of a module, in full
    lazy: bool  # inside a function

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)} imports {self.name}{' lazily' if self.lazy else ''}"


def imports_of(file: Path) -> Iterator[Import]:
    """All but those for type checkers."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (Import(file, alias.name, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0 and child.module, f"{file}: a relative import"
                yield from (Import(file, submodule(child.module, alias.name), lazy) for alias in child.names)
            yield from walk(child, lazy or isinstance(child, (ast.FunctionDef, ast.Lambda)))

    yield from walk(ast.parse(file.read_text(encoding="utf-8")), False)


def submodule(module: str, name: str) -> str:
    """What `from module import name` imports: the submodule of that name if there is one, else the module."""
    place = ROOT.parent.joinpath(*module.split("."), name)
    return f"{module}.{name}" if place.with_suffix(".py").is_file() or (place / "__init__.py").is_file() else module


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part(module: str) -> str:
    """The top-level part of the package that a module of it belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def layer(module: str) -> int:
    name = "__main__" if module.endswith(".__main__") else part(module)
    found = [k for k, names in enumerate(LAYERS) if name in names]
    assert found, f"{module} is in no layer: say where it belongs"
    return found[0]


IMPORTS = [found for file in MODULES for found in imports_of(file)]
EAGER: dict[str, list[str]] = {}  # module → what it imports when it is imported, in order
for eager in IMPORTS:
    if not eager.lazy:
        EAGER.setdefault(module_of(eager.file), []).append(eager.name)
OURS = [found for found in IMPORTS if found.name.partition(".")[0] == "mlx_speech"]


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, cwd=ROOT.parent, check=False
    )


# --- importing -------------------------------------------------------------------------------------------------------


def test_importing_the_package_is_light() -> None:
    script = """
import json, sys, time
before, start = set(sys.modules), time.perf_counter()
import mlx_speech
elapsed = time.perf_counter() - start
print(json.dumps([elapsed, sorted(set(sys.modules) - before)]))
"""
    results = [json.loads(python("-c", script).stdout) for _ in range(5)]
    loaded = set(results[0][1])
    heavy = {"mlx.core", "mlx", "numpy", "scipy", "av", "yaml", "tqdm", "safetensors", "tokenizers", "huggingface_hub"}
    assert not loaded & (heavy | FRAMEWORKS), loaded & (heavy | FRAMEWORKS)
    assert {name for name in loaded if name.startswith("mlx_speech")} == {
        "mlx_speech",
        "mlx_speech.blas",
        "mlx_speech.errors",
        "mlx_speech.version",
    }
    assert statistics.median(elapsed for elapsed, _ in results) < 0.6


@pytest.mark.parametrize("name", mlx_speech.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(mlx_speech, name) is not None


def test_the_package_lists_its_names() -> None:
    submodules = {"archive", "audio", "convert", "features", "models", "options", "whisperx", "writers"}
    script = "import mlx_speech, sys; print(*dir(mlx_speech)); print(sorted({'mlx', 'numpy'} & set(sys.modules)))"
    listed, loaded = python("-c", script).stdout.splitlines()
    assert set(listed.split()) == {*mlx_speech.__all__, *submodules} and loaded == "[]"
    for name in listed.split():
        assert getattr(mlx_speech, name) is not None


def test_the_name_of_the_converter_stays_a_module() -> None:
    script = "import mlx_speech.convert, types; assert isinstance(mlx_speech.convert, types.ModuleType)"
    assert python("-c", script).returncode == 0
    with pytest.raises(AttributeError, match="nonsense"):
        _ = mlx_speech.nonsense


def test_running_a_model_imports_no_converter_and_no_framework(tmp_path: Path) -> None:
    script = """
import sys
import mlx_speech, mlx.core as mx
mlx_speech.load("silero_vad")(mx.zeros(16000))
print(sorted(name for name in sys.modules if name.startswith("mlx_speech.convert")))
print(sorted(set(sys.modules) & %r))
"""
    done = python("-c", script % (FRAMEWORKS | {"huggingface_hub"}))
    assert done.stdout.split("\n")[:2] == ["[]", "[]"], done.stdout + done.stderr


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["transcribe"],
        ["live"],
        ["diarize"],
        ["convert"],
        ["vad"],
        ["demo"],
        ["write"],
        ["align"],
        ["eval"],
        ["compare"],
        ["speakers"],
    ],
)
def test_help(command: list[str]) -> None:
    done = python("-m", "mlx_speech", *command, "--help")
    assert done.returncode == 0 and "usage: mlx_speech" in done.stdout and not done.stderr


def test_help_says_every_option_once() -> None:
    plain = python("-m", "mlx_speech.convert", "--help")
    assert plain.returncode == 0 and plain.stdout == python("-m", "mlx_speech", "convert", "--help").stdout
    import inspect

    from mlx_speech.convert import convert

    for name in inspect.signature(convert).parameters:
        if name != "progress":  # that is a matter of the terminal
            assert f"--{name.replace('_', '-')}" in plain.stdout


# --- imports run one way ---------------------------------------------------------------------------------------------


def test_imports_run_one_way() -> None:
    wrong = []
    for found in OURS:
        here, there = module_of(found.file), found.name
        if part(there) == "__init__" or (part(here) == part(there) and part(here) in WINGS):
            continue  # the package itself has only what blas, errors and version have
        lower = layer(there) < layer(here) or (layer(here) == layer(there) == 0)
        if not lower:
            wrong.append(str(found))
    assert not wrong, wrong


def test_no_circle_of_imports() -> None:
    """Of modules that import each other when they are imported themselves."""
    imported: dict[str, set[str]] = {}
    for found in OURS:
        if not found.lazy and found.name != "mlx_speech":
            imported.setdefault(module_of(found.file), set()).add(found.name)
    left = dict(imported)
    while True:  # take away what imports nothing that is left
        free = [module for module, names in left.items() if not names & left.keys()]
        if not free:
            break
        for module in free:
            del left[module]
    assert not left, sorted(left)


def test_nothing_takes_lazy_names_of_the_package() -> None:
    """`from mlx_speech import x` is for submodules; a lazy name would hide which way the import runs."""
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "mlx_speech":
                for alias in node.names:
                    assert submodule("mlx_speech", alias.name) != "mlx_speech", f"{file}: {alias.name}"


# what a stage may import of its own wing: the parts it is made of
PARTS = {
    "align": {"spelling", "viterbi"},
    "diarize": {"cluster", "window_cache", "windows"},
    "growing": {"cluster", "diarize", "window_cache", "windows"},
    "cluster": {"linkage", "windows"},
    "chunks_online": {"chunks"},
    "vad": {"vad_options"},
    "vad_online": {"vad"},
    "vad_pyannet": {"windows"},
    "voiceprints": {"diarize"},
    "window_cache": {"windows"},
}


def test_stages_do_not_import_each_other() -> None:
    def stage(module: str) -> str:
        """A module of the wing, or the folder of Whisper's, whose files make one stage."""
        return module.split(".")[2] if module.count(".") > 1 else ""

    found = [(stage(module_of(f.file)), stage(f.name)) for f in OURS if part(f.name) == "stages"]
    within = [
        (here, there)
        for (here, there), f in zip(found, [f for f in OURS if part(f.name) == "stages"], strict=True)
        if part(module_of(f.file)) == "stages"
    ]
    assert not [(here, there) for here, there in within if here != there and there not in PARTS.get(here, set())]
    above = {part(module_of(f.file)) for f in OURS if part(f.name) == "stages"} - {"stages"}
    assert above == {
        "batches",
        "checks",
        "cli",
        "convert",
        "detection",
        "loading",
        "options",
        "live",
        "pipeline",
        "sequential",
        "server",
        "timing",
        "voices",
        "whisperx",
    }


def first_loaded(module: str, seen: set[str]) -> str | None:
    """Which comes first when `module` is imported: "mlx" or "mlx_speech.backend", or None where neither does."""
    parents = module.split(".")
    names = [".".join(parents[:k]) for k in range(1, len(parents) + 1)]
    for name in names:
        if name == "mlx_speech.backend" or name == "mlx":
            return name
        if name in seen or parents[0] != "mlx_speech":
            continue
        seen.add(name)
        for imported in EAGER.get(name, []):
            result = first_loaded(imported, seen)
            if result is not None:
                return result
    return None


def test_openblas_is_loaded_before_mlx_whichever_module_is_imported_first() -> None:
    first = {module_of(file): first_loaded(module_of(file), set()) for file in MODULES}
    assert not [module for module, found in first.items() if found == "mlx"]
    assert first["mlx_speech.pipeline"] == first["mlx_speech.convert.run"] == "mlx_speech.backend"
    assert first["mlx_speech"] is None


def test_models_touch_no_files() -> None:
    banned = {"pathlib", "os", "io", "json", "shutil", "urllib", "huggingface_hub", *FRAMEWORKS}
    found = [str(f) for f in IMPORTS if f.file.parent.name == "models" and f.name.partition(".")[0] in banned]
    assert not found, found
    reach = {part(f.name) for f in OURS if f.file.parent.name == "models"} - {"__init__"}
    assert reach <= {"backend", "blas", "errors", "features", "models", "ops"}, reach  # blas: which device it is


def test_writers_know_only_transcripts() -> None:
    reach = {part(f.name) for f in OURS if part(module_of(f.file)) == "writers"}
    assert reach <= {"transcript", "languages", "errors", "fields", "json_objects", "package_data", "writers"}


def test_only_two_functions_reach_for_the_converter() -> None:
    found = [f for f in OURS if part(f.name) == "convert" and part(module_of(f.file)) != "convert"]
    assert {part(module_of(f.file)) for f in found} == {"loading", "cli"}
    assert all(f.lazy for f in found), [str(f) for f in found if not f.lazy]


def test_frameworks_are_only_for_verification() -> None:
    counted = ("pyannote.core", "pyannote.metrics")  # no framework: they count errors
    found = [f for f in IMPORTS if f.name.partition(".")[0] in FRAMEWORKS and not f.name.startswith(counted)]
    assert {f.file.relative_to(ROOT).parent.as_posix() for f in found} == {"convert/parity"}
    assert all(f.lazy for f in found)
    # what runs an original is for the conversion's end, and otherwise reached through the registry of families
    users = [f for f in OURS if f.name.startswith("mlx_speech.convert.parity") and "parity" not in f.file.parts]
    assert {(f.file.name, f.name) for f in users} == {("run.py", "mlx_speech.convert.parity.measures")}


# --- size and completeness -------------------------------------------------------------------------------------------


def test_a_file_holds_one_idea() -> None:
    assert not {file.name for file in MODULES if len(file.read_text(encoding="utf-8").splitlines()) > 600}


def test_the_version_stands_in_one_place() -> None:
    from mlx_speech.version import __version__

    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__) and mlx_speech.__version__ == __version__
    holders = [file.name for file in MODULES if f'"{__version__}"' in file.read_text(encoding="utf-8")]
    assert holders == ["version.py"]
    assert not re.search(
        r'^version\s*=\s*"', (ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert python("-m", "mlx_speech", "--version").stdout == f"mlx_speech {__version__}\n"


def test_no_work_at_import_and_no_broad_excepts() -> None:
    broad = []
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                broad += [file.name] if caught in ("everything", "Exception", "BaseException") else []
            assert not isinstance(node, (ast.Assert, ast.Global)), f"{file}:{node.lineno}"
    assert broad == ["engine.py"]  # `attempt`: where one bad recording must not stop the others


@pytest.mark.parametrize("family", models.FAMILIES)
def test_every_family_is_complete(family: str) -> None:
    assert (ROOT / "models" / f"{family}.py").is_file() and (ROOT / "convert" / "families" / f"{family}.py").is_file()
    assert (ROOT / "convert" / "parity" / f"{family}.py").is_file() and models.FAMILIES[family].title
    module, converter, case = models.module(family), families.converter(family), measures.parity_case(family)
    assert issubclass(module.Model, BaseModel) and issubclass(module.ModelArgs, BaseModelArgs)
    assert callable(converter.recognise) and callable(converter.recipe)
    assert converter.TAGS and all(isinstance(tag, str) for tag in converter.TAGS)
    assert converter.PIPELINE_TAG is None or isinstance(converter.PIPELINE_TAG, str)
    assert all(isinstance(name, str) for name in converter.COMPANIONS) and isinstance(converter.TAKES_LANGUAGE, bool)
    assert case.ORIGINALS and callable(case.build) and callable(case.measure)
    assert module.__doc__ and converter.__doc__ and module.Model.__call__.__doc__ and case.__doc__


def test_every_file_of_a_family_is_registered() -> None:
    here = {file.stem for file in (ROOT / "models").glob("*.py")}
    shared_or_parts = {"__init__", "base", "layers", "diarization_pipeline", "whisper_cache"}
    assert here - shared_or_parts == set(models.FAMILIES)


def test_every_public_function_is_described() -> None:
    missing = []
    for file in MODULES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), file
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                missing += [] if ast.get_docstring(node) else [f"{file.name}: {node.name}"]
    assert not missing, missing


def test_every_call_of_a_model_has_shapes() -> None:
    """Of every layer and model, what it takes and gives, such as `x (batch, frames, hidden) → (batch, frames, 256)`."""
    missing = []
    for file in sorted((ROOT / "models").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            for method in node.body:
                is_call = isinstance(method, ast.FunctionDef) and method.name == "__call__"
                if is_call and "(" not in (ast.get_docstring(method) or ""):
                    missing.append(f"{file.name}: {node.name}")
    assert not missing, missing
