"""Timing against a peer, and the table of what was measured."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent
_VERSIONS = ("jax", "torch", "transformers", "sentence-transformers", "scikit-learn")


@dataclass(frozen=True)
class Measurement:
    """Seconds of ours and of `against` for the same work; goal: the least ratio aimed at; note: what explains it."""

    name: str
    ours: float
    peer: float
    against: str
    goal: float | None = None
    clock: Literal["wall", "cpu"] = "wall"
    spread: float = 0.0
    note: str = ""

    @property
    def ratio(self) -> float:
        """Above 1: ours is faster."""
        return self.peer / self.ours

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return "met" if self.ratio >= self.goal else "not met"

    def line(self) -> str:
        goal = f"goal {self.goal:.2f} {self.verdict}" if self.goal else ""
        return (
            f"{self.name:52s} ours {self.ours:8.3f} s   {self.against} {self.peer:8.3f} s   "
            f"ratio {self.ratio:5.2f} {goal}"
        )


def in_turns(
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    repeats: int = 3,
    clock: Literal["wall", "cpu"] = "wall",
) -> tuple[float, float, float]:
    """Runs both alternately after one warm-up of each.

    Returns:
        Least seconds of ours, least of the peer, and the relative spread (largest - least, over the median) of ours.
        clock "cpu": seconds of all threads of this process.
    """
    read = time.perf_counter if clock == "wall" else time.process_time
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for side, call in enumerate((ours, peer)):
            started = read()
            call()
            if turn:
                seconds[side].append(read() - started)
    spread = (max(seconds[0]) - min(seconds[0])) / statistics.median(seconds[0])
    return min(seconds[0]), min(seconds[1]), spread


def machine() -> str:
    """Processor, cores, device and versions in one line."""
    import jax

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    libraries = ", ".join(f"{library} {version(library)}" for library in _VERSIONS)
    device = jax.devices()[0].device_kind
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = f"{os.cpu_count()} cores" if usable == os.cpu_count() else f"pinned to {usable} of {os.cpu_count()} cores"
    return f"{name}, {cores}, device {device}; Python {platform.python_version()}, {libraries}"


def save(room: str, measured: Sequence[Measurement]) -> None:
    """Keeps one room's figures as JSON and writes RESULTS.md anew from all of them.

    Figures of this machine and these versions that were not measured again stay: a room can be run in parts.
    """
    folder = FOLDER / "results"
    folder.mkdir(exist_ok=True)
    path, new = folder / f"{room}.json", {item.name: asdict(item) for item in measured}
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"machine": None}
    kept = {row["name"]: row for row in before["measurements"]} if before["machine"] == machine() else {}
    record = {"machine": machine(), "measurements": list((kept | new).values())}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_page()


def write_page() -> None:
    """RESULTS.md from everything that was measured on any machine."""
    lines = [
        "# Speed against named peers",
        "",
        "Written by `make bench` (`python -m benchmarks.run ROOM` for one room). Both sides do the same work on the",
        "same input in one process, in turns, least of the repeats after a warm-up; ratio above 1: ours is faster.",
        "Clock `cpu` counts the seconds of all threads; spread: largest less least of our repeats, over their median.",
        "A goal that is not met is explained in PROFILES.md.",
    ]
    for path in sorted((FOLDER / "results").glob("*.json")):
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        lines += ["", f"## {path.stem}", "", record["machine"], ""]
        lines += ["| what | ours (s) | spread | peer (s) | peer | clock | ratio | goal | |", "|" + "---|" * 9]
        for fields in record["measurements"]:
            item = Measurement(**fields)
            goal = f"{item.goal:.2f}" if item.goal else ""
            spread = f"{item.spread:.0%}" if item.spread else ""  # none: timed once
            lines.append(
                f"| {item.name} | {item.ours:.3f} | {spread} | {item.peer:.3f} | {item.against} | {item.clock} | "
                f"{item.ratio:.2f} | {goal} | {'; '.join(filter(None, (item.verdict, item.note)))} |"
            )
    lines += _quickstart() + _growth()
    (FOLDER / "RESULTS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _quickstart() -> list[str]:
    """The section on the quickstart, cold and warm (benchmarks/quickstart.py), where it was measured."""
    path = FOLDER / "quickstart.json"
    if not path.is_file():
        return []
    record = json.loads(path.read_text(encoding="utf-8"))
    kinds = list(record["stages"]["cold"])
    lines = ["", "## The quickstart, cold and warm", "", record["machine"], ""]
    lines += ["`python -m benchmarks.quickstart`: wall seconds of whole commands, installation aside.", ""]
    lines += [f"| run | seconds | goal | | {' | '.join(kinds)} | the rest |", "|" + "---|" * (len(kinds) + 5)]
    for name, seconds in record["seconds"].items():
        goal, stages = record["goals"].get(name), record["stages"][name]
        verdict = "" if goal is None else "met" if seconds <= goal else "not met"
        cells = [f"{stages[kind]:.0f}" if stages else "" for kind in kinds]
        rest = f"{seconds - sum(stages.values()):.0f}"
        lines.append(f"| {name} | {seconds:.0f} | {goal or ''} | {verdict} | {' | '.join(cells)} | {rest} |")
    return lines


def _growth() -> list[str]:
    """The section on how cost grows (benchmarks/cost.py), where it was measured."""
    path = FOLDER / "cost.json"
    if not path.is_file():
        return []
    record = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "",
        "## How cost grows",
        "",
        record["machine"],
        "",
        "![Cost against rows, layers, batch, devices](cost.svg)",
        "",
    ]
    lines += ["`python -m benchmarks.cost`: CPU-seconds of all threads, compiled; devices are planned, not run.", ""]
    for name, curves in record["curves"].items():
        sizes = list(next(iter(curves.values())))
        lines += [f"| {name} | {' | '.join(sizes)} |", "|---|" + "---|" * len(sizes)]
        lines += [f"| {label} | {' | '.join(f'{curve[s]:g}' for s in sizes)} |" for label, curve in curves.items()]
        lines.append("")
    return lines[:-1]
