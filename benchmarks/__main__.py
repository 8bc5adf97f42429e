"""python -m benchmarks [--only NAME]: measures row by row, goes on where it stopped, writes RESULTS.md."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks import models, report, roofline
from benchmarks.rows import MODULES
from benchmarks.suite import OURS, Row, measure

RESULTS = Path(__file__).parent / "RESULTS.md"


def asked_for(names: list[str], name: str) -> bool:
    """Whether "whisper" or "whisper/encoder" asks for a module, or for a row of it."""
    return not names or any(f"{name}/".startswith(f"{one}/") or f"{one}/".startswith(f"{name}/") for one in names)


def run(row: Row, peaks: dict[str, Any]) -> dict[str, Any]:
    """`measure`, or {"title", "failed"} where contenders disagree or ours fails."""
    try:
        found = measure(row)
    except AssertionError as error:
        return {"title": row.title, "failed": f"outputs disagree: {error}"}
    except Exception as error:
        traceback.print_exc()
        return {"title": row.title, "failed": f"failed: {type(error).__name__}: {error}"}
    ours = found["contenders"].get(OURS, {})
    if "problem" in ours:
        return {"title": row.title, "failed": f"{OURS}: {ours['problem']}"}
    return {**found, "peaks": {kind: peaks[kind] for kind in ("operations", "bytes")}}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, beside what else there is.")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help=f"of: {', '.join(MODULES)}")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything measured there")
    parser.add_argument("--again", action="store_true", help="measure what has been measured, too")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the suite; nothing is kept")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no row after as many minutes")
    options = parser.parse_args()
    if unknown := [name for name in options.only if name.partition("/")[0] not in MODULES]:
        parser.error(f"--only {unknown[0]}: choose of {', '.join(MODULES)}")

    peaks = roofline.measure(options.quick)
    if peaks["core"]:
        os.environ[models.CORE] = peaks["core"]
    where = {"machine": report.machine(), "commit": report.commit(), "python": platform.python_version()}
    where |= {"versions": report.versions(), "threads": report.threads()}
    where |= {key: peaks[key] for key in ("device", "chip", "blas")}
    kept = models.cache_folder() / "measured.json"
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() and not options.quick else {}
    mine = known.setdefault(json.dumps(where, sort_keys=True), {})  # elsewhere, or before a change, does not count
    rows: dict[str, dict[str, Any]] = {module: {} for module in MODULES}
    failed = False
    start = time.perf_counter()
    for module in MODULES:
        if not asked_for(options.only, module):
            rows[module] = mine.get(module, {})
            continue
        try:
            found = importlib.import_module(f"benchmarks.rows.{module}").rows(peaks["device"], options.quick)
        except Exception as error:
            traceback.print_exc()
            rows[module][module] = {"title": module, "failed": f"failed: {type(error).__name__}: {error}"}
            failed = True
            continue
        for row in found:
            before = mine.get(module, {}).get(row.name)
            asked = asked_for(options.only, row.name)
            late = time.perf_counter() - start > 60 * options.minutes
            if before is None and (late or not asked):
                continue
            if before is None or (asked and options.again):
                print(f"{time.perf_counter() - start:.0f} s: {row.name}", file=sys.stderr, flush=True)
                before = run(row, peaks)
                if "failed" not in before and not options.quick:
                    mine.setdefault(module, {})[row.name] = before
                    report.write(kept, json.dumps(known))
            failed |= "failed" in before
            rows[module][row.name] = before
            print(report.row(row.name, before), flush=True)
    content = {"where": where, "quick": options.quick, "rows": rows}
    if options.json:
        report.write(options.json, json.dumps(content, indent=1))
    if not options.quick:
        report.write(RESULTS, report.document(content))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
