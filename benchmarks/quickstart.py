"""What the quickstart costs, cold and warm: `python -m benchmarks.quickstart`; quickstart.json, RESULTS.md.

Three commands, each a process of its own, with a cache folder that is empty at first: cold; the first workdir again,
whose stages are finished; a new workdir with the compiled programs of the first. Wall seconds from the start of the
interpreter to its end, so that imports count. The page is written after each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import FOLDER, machine, write_page

GOALS = {"cold": 600.0, "finished stages": 60.0}  # seconds on two cores
STAGES = ("tune", "convert", "benchmark", "hrsa")


def main() -> int:
    """Runs the three commands and writes the page anew."""
    with tempfile.TemporaryDirectory() as folder:
        first, second = f"{folder}/first", f"{folder}/second"
        runs = {"cold": first, "finished stages": first, "compiled programs kept": second}
        seconds, stages = {}, {}
        for name, workdir in runs.items():
            seconds[name] = _study(workdir, f"{folder}/cache")
            stages[name] = {} if name == "finished stages" else _stages(Path(workdir))
            print(f"{name}: {seconds[name]:.0f} s {json.dumps(stages[name])}", flush=True)
            record = {"machine": machine(), "seconds": seconds, "stages": stages, "goals": GOALS}
            (FOLDER / "quickstart.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            write_page()
    return 0


def _study(workdir: str, cache: str) -> float:
    """Wall seconds of the quickstart study in `workdir`."""
    command = [sys.executable, "launch.py", "--config=configs/quickstart.py", f"--workdir={workdir}", "--verbosity=-1"]
    started = time.perf_counter()
    subprocess.run(command, cwd=FOLDER.parent, env={**os.environ, "HRSA_CACHE": cache}, check=True)
    return round(time.perf_counter() - started, 1)


def _stages(workdir: Path) -> dict[str, float]:
    """Seconds of each kind of stage, from results.json."""
    timings: dict[str, Any] = json.loads((workdir / "results.json").read_text(encoding="utf-8"))["timings"]
    kinds = dict.fromkeys(STAGES, 0.0)
    for name, timing in timings.items():
        kind = name.partition("/")[0]
        if kind in kinds:  # and not the whole command's
            kinds[kind] += timing["seconds"]
    return {kind: round(value, 1) for kind, value in kinds.items()}


if __name__ == "__main__":
    sys.exit(main())
