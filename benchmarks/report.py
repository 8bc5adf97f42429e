"""Results as Markdown: a table for each row, one line for each contender."""

from __future__ import annotations

import hashlib
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import roofline
from benchmarks.suite import OURS, ratios

PACKAGES = "mlx mlx-speech-toolkit numpy scipy torch transformers openai-whisper mlx-whisper mlx-audio faster-whisper"
PACKAGES += " ctranslate2 pywhispercpp silero-vad onnxruntime pyannote.audio whisperx safetensors"
HEAD = (
    "| contender | time, median | range | × real time, rate | peak memory | {ours} is so many times as fast | target |"
)


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES.split():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def write(path: Path, text: str) -> None:
    """Whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def commit() -> str:
    """The last that changed the package; with a plus and a hash of what has changed in it since.

    A row that has changed itself has to be measured `--again`.
    """
    root = Path(__file__).parents[1]
    code = ["--", "mlx_speech"]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout

    try:
        head, changed = git("log", "-1", "--format=%h", *code).strip(), git("diff", "HEAD", *code)
        new = git("ls-files", "--others", "--exclude-standard", *code).splitlines()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    changes = changed.encode() + b"".join((root / path).read_bytes() for path in new)
    return f"{head}+{hashlib.sha256(changes).hexdigest()[:7]}" if changes else head


def threads() -> dict[str, str]:
    """What the environment says of them."""
    return {name: value for name, value in os.environ.items() if name.endswith("_NUM_THREADS")}


def machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{_processor()}, {cores} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}"


def _processor() -> str:
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def row(name: str, found: dict[str, Any]) -> str:
    """The table of one row."""
    parts = [f"### {name}", "", f"{found['title']}.", ""]
    if "failed" in found:
        return "\n".join([*parts, f"**{found['failed']}**", ""])
    parts += [HEAD.format(ours=OURS), "|---|---|---|---|---|---|---|"]
    parts += [_contender(other, found) for other in found["contenders"]]
    parts.append("")
    notes = [found["agree"]] if found["agree"] else []
    times = found["contenders"].get(OURS, {}).get("times")
    if found.get("work") and times:
        notes.append(roofline.line(found["work"], statistics.median(times), found["peaks"]))
    turns = max((len(one.get("times", ())) for one in found["contenders"].values()), default=0)
    notes.append(f"{turns} turn{'s' * (turns != 1)}; load of the machine {found['load']:.1f}.")
    return "\n".join([*parts, *("- " + note for note in notes), ""])


def _contender(name: str, found: dict[str, Any]) -> str:
    one = found["contenders"][name]
    if "problem" in one:
        return f"| {name} | {one['problem']} | | | | | {_target(name, found)} |"
    middle = statistics.median(one["times"])
    speed = []
    if found["seconds"] is not None:
        speed.append(f"{found['seconds'] / middle:.3g}")
    if found["count"] is not None:
        speed.append(f"{found['count'] / middle:.3g}/s")
    ratio = _ratio(name, found)
    faster = "" if ratio is None else "{:.2f} ({:.2f}–{:.2f})".format(*ratio)
    cells = [name, _seconds(middle), f"{_seconds(min(one['times']))} – {_seconds(max(one['times']))}"]
    cells += [", ".join(speed), f"{one['peak'] / 1e6:.0f} MB", faster, _target(name, found)]
    return f"| {' | '.join(cells)} |"


def _ratio(name: str, found: dict[str, Any]) -> tuple[float, float, float] | None:
    return None if name == OURS else ratios(found, name)


def _target(name: str, found: dict[str, Any]) -> str:
    """Of ours, at most so many seconds; of others, at least so many times as fast."""
    target = found["targets"].get(name)
    if target is None:
        return ""
    if name == OURS:
        return f"< {target:g} s: {_verdict(statistics.median(found['contenders'][OURS]['times']) < target)}"
    ratio = _ratio(name, found)
    return f"≥ {target:.3g} ×: {'not measured' if ratio is None else _verdict(ratio[0] >= target)}"


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def _summary(rows: dict[str, dict[str, Any]]) -> list[str]:
    """All targets in one table."""
    lines = ["## Targets", "", "| row | against | reached | target |", "|---|---|---|---|"]
    for found in rows.values():
        for name, one in found.items():
            for other in one.get("targets", {}):
                ratio = _ratio(other, one)
                reached = "" if ratio is None else "{:.2f} × ({:.2f}–{:.2f})".format(*ratio)
                if other == OURS:
                    reached = _seconds(statistics.median(one["contenders"][OURS]["times"]))
                lines.append(f"| {name} | {'' if other == OURS else other} | {reached} | {_target(other, one)} |")
    return lines


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


INTRODUCTION = """# Results

Written by `make bench`. Contenders of a row work in turns within one run, each in a process of its own, with the same
weights and the same audio; their outputs were compared before anything was timed. Whisper base and tiny.en and
segmentation-3.0 have their published weights, hear real speech and end where they end; what has random weights says so
or takes the same time with any.
Times of a shared machine are noise: what counts is the ratio within a turn; its median is given, and its range. Peak
memory is the largest resident set of the process, with everything that it has imported.
"""


def document(content: dict[str, Any]) -> str:
    """Everything measured. content : as in `--json`"""
    here = content["where"]
    parts = [INTRODUCTION, f"- Machine: {here['machine']}", f"- Device: {here['device']} {here['chip']}".rstrip()]
    parts.append(f"- OpenBLAS serves MLX: {'yes' if here['blas'] else 'no'}")
    threads = ", ".join(f"{name}={value}" for name, value in here["threads"].items())
    parts.append(f"- Threads: {threads or 'as the packages choose'}")
    parts.append(f"- Commit {here['commit']}; Python {here['python']}")
    parts.append("- " + ", ".join(f"{name} {number}" for name, number in here["versions"].items()))
    took = sum(one.get("took", 0) for rows in content["rows"].values() for one in rows.values())
    parts.append(f"- All rows together took {took / 60:.0f} minutes, beside the making of the models, which are kept")
    parts += ["", *_summary(content["rows"])]
    for module, rows in content["rows"].items():
        parts += ["", f"## {module}", "", *([row(name, found) for name, found in rows.items()] or ["Not measured."])]
    return "\n".join(parts).rstrip() + "\n"
