"""What is installed: the sdist and the wheel, what they say of themselves, and the demo from an installed wheel.

Both are built from a copy of the files that git tracks, so that nothing else in the working tree gets into them or is
left behind there.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import pytest
from conftest import absent
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mlx_speech.blas import MIXED
from mlx_speech.version import __version__

ROOT = Path(__file__).parent.parent
NAME = "mlx-speech-toolkit"
STEM = f"mlx_speech_toolkit-{__version__}"
DIST_INFO = f"{STEM}.dist-info"
EXTRAS = {"cpu", "cuda12", "cuda13", "demo", "eval", "server", "live", "ray", "quick", "test", "docs", "bench"}
SDIST_LIMIT = 40_000_000  # bytes, of which the diarization that comes with the package is 19 million
# of the repository, not of the project
NOT_IN_SDIST = (".ci/", ".github/", ".gitignore")
MADE_FOR_SDIST = {"PKG-INFO", "setup.cfg"}  # and the egg-info folder
# modules, or folders of them, that may import what an extra brings
MAY_NEED = {"evaluation/": "eval", "server/": "server", "live/": "live", "archive/": "ray", "convert/parity/": "test"}
# what `make test` installs without its dependencies, which no extra can say: original of a family → its parity file
WITHOUT_DEPENDENCIES = {"speakerlab": "convert/parity/campplus.py"}


def run(*command: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A command in an environment where no variable tells Python where to import from."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done


# --- building --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracked() -> dict[str, bytes]:
    """The files that git tracks: path from the root of the repository → content."""
    # CI may check out as another user than the one that runs the tests
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        absent("git cannot list the files of this folder, which may be no clone")
    paths = [path for path in listed.split("\0") if path]
    return {path: (ROOT / path).read_bytes() for path in paths if (ROOT / path).is_file()}


@dataclass(frozen=True)
class Built:
    """What the build makes, each read into a dict: path → content."""

    wheel_file: Path  # made from the sdist
    sdist_size: int  # bytes
    sdist: dict[str, bytes]
    wheel: dict[str, bytes]
    direct_wheel: dict[str, bytes]  # made from the source tree, as `pip install .` does

    @property
    def metadata(self) -> Message:
        return BytesParser().parsebytes(self.wheel[f"{DIST_INFO}/METADATA"])


@pytest.fixture(scope="module")
def built(tracked: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Built:
    source = tmp_path_factory.mktemp("source")
    for path, content in tracked.items():
        copy = source / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
    output = tmp_path_factory.mktemp("dist")
    direct_output = tmp_path_factory.mktemp("direct")
    # with the setuptools of the test extra, so that nothing is downloaded
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", output, source, cwd=output)
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", direct_output, source, cwd=output)
    names = sorted(file.name for file in output.iterdir())
    assert names == [f"{STEM}-py3-none-any.whl", f"{STEM}.tar.gz"]
    sdist_file = output / f"{STEM}.tar.gz"
    wheel_file = output / f"{STEM}-py3-none-any.whl"
    return Built(
        wheel_file,
        sdist_file.stat().st_size,
        read_sdist(sdist_file),
        read_wheel(wheel_file),
        read_wheel(direct_output / wheel_file.name),
    )


def read_wheel(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_sdist(file: Path) -> dict[str, bytes]:
    """Its files, without the folder that they all stand in."""
    files = {}
    with tarfile.open(file) as archive:
        for member in archive:
            if not member.isfile():
                continue
            folder, _, path = member.name.partition("/")
            assert folder == STEM
            content = archive.extractfile(member)
            assert content is not None
            files[path] = content.read()
    return files


# --- what is in them -------------------------------------------------------------------------------------------------


def test_the_wheel_is_the_package_and_nothing_else(tracked: dict[str, bytes], built: Built) -> None:
    package = {path: content for path, content in tracked.items() if path.startswith("mlx_speech/")}
    assert "mlx_speech/py.typed" in package and "mlx_speech/assets/silero_vad/model.safetensors" in package
    assert any(path.startswith("mlx_speech/assets/demo/whisper/") for path in package)
    installed = {path: content for path, content in built.wheel.items() if not path.startswith(f"{DIST_INFO}/")}
    missing = sorted(set(package) - set(installed))
    assert not missing, f"say in pyproject.toml's package-data that these belong to the package: {missing}"
    assert installed == package


def test_the_sdist_has_all_that_the_tests_need(tracked: dict[str, bytes], built: Built) -> None:
    wanted = {path: content for path, content in tracked.items() if not path.startswith(NOT_IN_SDIST)}
    made = {path for path in built.sdist if path in MADE_FOR_SDIST or path.partition("/")[0].endswith(".egg-info")}
    sources = {path: content for path, content in built.sdist.items() if path not in made}
    missing = sorted(set(wanted) - set(sources))
    assert not missing, f"say in MANIFEST.in that these belong to the sdist: {missing}"
    assert sources == wanted
    assert built.sdist_size < SDIST_LIMIT


def test_sdist_and_source_tree_give_the_same_wheel(built: Built) -> None:
    assert set(built.wheel) == set(built.direct_wheel)
    assert [path for path in built.wheel if built.wheel[path] != built.direct_wheel[path]] == []


# --- what they say of themselves -------------------------------------------------------------------------------------


def test_metadata(tracked: dict[str, bytes], built: Built) -> None:
    metadata = built.metadata
    assert metadata["Name"] == NAME and metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.10" and metadata["License-Expression"] == "MIT"
    assert set(metadata.get_all("Provides-Extra", [])) == EXTRAS
    assert metadata["Description-Content-Type"] == "text/markdown"
    entry_points = built.wheel[f"{DIST_INFO}/entry_points.txt"].decode()
    assert entry_points.split() == ["[console_scripts]", "mlx_speech", "=", "mlx_speech.cli:main"]


def test_licences_go_with_the_wheel(tracked: dict[str, bytes], built: Built) -> None:
    package_or_root = [path for path in tracked if path.startswith("mlx_speech/") or "/" not in path]
    licences = {path for path in package_or_root if Path(path).name.startswith(("LICENSE", "LICENCE", "NOTICE"))}
    assert {"LICENSE", "mlx_speech/assets/silero_vad/NOTICE"} <= licences
    assert set(built.metadata.get_all("License-File", [])) == licences
    for path in licences:
        assert built.wheel[f"{DIST_INFO}/licenses/{path}"] == tracked[path]


def test_everything_imported_is_a_dependency(built: Built) -> None:
    """A bare environment gets what the package declares and nothing else."""
    always: set[str] = set()
    of_extra: dict[str, set[str]] = {extra: set() for extra in EXTRAS}
    for line in built.metadata.get_all("Requires-Dist", []):
        requirement = Requirement(line)
        if requirement.marker is None:
            always.add(canonicalize_name(requirement.name))
            continue
        for extra, names in of_extra.items():
            if requirement.marker.evaluate({"extra": extra}):
                names.add(canonicalize_name(requirement.name))

    providers = importlib.metadata.packages_distributions()
    undeclared = []
    for path, content in built.wheel.items():
        if not path.endswith(".py"):
            continue
        module = path.removeprefix("mlx_speech/")
        extras = [extra for place, extra in MAY_NEED.items() if module.startswith(place)]
        declared = always.union(*(of_extra[extra] for extra in extras))
        declared |= {name for name, place in WITHOUT_DEPENDENCIES.items() if place == module}
        for name in sorted(imported(content)):
            distributions = {canonicalize_name(provider) for provider in providers.get(name, [name])}
            if not distributions & declared:
                undeclared.append(f"{module} imports {name}, of {sorted(distributions)}")
    assert not undeclared
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in WITHOUT_DEPENDENCIES:
        assert re.search(rf"install .*--no-deps .*\b{name}==", makefile), f"make test does not install {name}"


def imported(source: bytes) -> set[str]:
    """Top-level names of the third-party modules that a module imports, wherever in it. Type checkers bring their own
    typing_extensions, which counts where it is imported for anything else."""
    names: set[str] = set()
    tree = ast.parse(source)
    checking = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    for_checkers = {inner for node in checking for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if node in for_checkers and isinstance(node, ast.ImportFrom) and node.module == "typing_extensions":
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"mlx_speech"}


# --- installed -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Installed:
    """A virtual environment that has the package from the wheel, and all else from the environment of the tests."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def command(self) -> Path:
        return self.folder / "bin" / "mlx_speech"

    def site_packages(self) -> Path:
        script = "import sysconfig; print(sysconfig.get_path('purelib'))"
        return Path(run(self.python, "-c", script, cwd=self.folder).stdout.strip())

    def pip_install(self, wheel: Path) -> None:
        pip = (sys.executable, "-m", "pip", "--python", self.python)
        run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=self.folder)


@pytest.fixture
def installed(built: Built, tmp_path: Path) -> Installed:
    environment = Installed(tmp_path / "venv")
    run(sys.executable, "-m", "venv", "--without-pip", environment.folder, cwd=tmp_path)
    environment.pip_install(built.wheel_file)
    # Paths in a .pth file are searched after the environment's own, and .pth files in those folders are not read: an
    # editable install of this repository in the environment of the tests is not seen.
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (environment.site_packages() / "shared.pth").write_text("\n".join(shared) + "\n", encoding="utf-8")
    return environment


def test_the_demo_runs_from_an_installed_wheel(installed: Installed, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    where = run(installed.python, "-c", "import mlx_speech; print(mlx_speech.__file__)", cwd=empty).stdout.strip()
    assert Path(where).is_relative_to(installed.folder)
    assert run(installed.command, "--version", cwd=empty).stdout == f"mlx_speech {__version__}\n"

    demo = run(installed.command, "demo", cwd=empty)
    assert "SPEAKER_00: " in demo.stdout and "(WER)" in demo.stdout
    assert MIXED not in demo.stderr
    assert {file.name for file in empty.iterdir()} == {f"conversation.{kind}" for kind in ("srt", "json", "rttm")}


def test_two_distributions_in_one_folder_are_noticed(installed: Installed, tmp_path: Path) -> None:
    installed.pip_install(other_distribution(tmp_path))
    assert (installed.site_packages() / "mlx_speech" / "theirs.py").is_file()

    recording = installed.site_packages() / "mlx_speech" / "assets" / "demo" / "pauses.flac"
    command = run(installed.command, "vad", recording, cwd=tmp_path, code=2)
    assert command.stderr == f"mlx_speech: {MIXED}\n" and not command.stdout
    script = """
import mlx_speech
try:
    mlx_speech.load
except mlx_speech.MLXSpeechError as error:
    print(type(error).__name__, error)
"""
    assert run(installed.python, "-c", script, cwd=tmp_path).stdout == f"InstallationError {MIXED}\n"

    pip = (sys.executable, "-m", "pip", "--python", installed.python)
    run(*pip, "uninstall", "--quiet", "--yes", "mlx-speech", cwd=tmp_path)
    assert run(installed.command, "vad", recording, cwd=tmp_path).stdout


def other_distribution(folder: Path) -> Path:
    """A wheel named mlx-speech, with a module in a package of this name."""
    file = folder / "mlx_speech-9.9-py3-none-any.whl"
    dist_info = "mlx_speech-9.9.dist-info"
    members = {
        "mlx_speech/theirs.py": "",
        f"{dist_info}/METADATA": "Metadata-Version: 2.1\nName: mlx-speech\nVersion: 9.9\n",
        f"{dist_info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{dist_info}/RECORD"
    members[record] = "".join(f"{name},,\n" for name in (*members, record))
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file
