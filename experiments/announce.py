"""What a run says first and last: what it will do, how long that takes, where everything is; then where time went.

How long the stages took is kept beside the compiled programs, so that the next run with the same settings on the same
kind of device knows its time from the start.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hrsa_jax.runtime.logging import LOG, RunLog, duration
from hrsa_jax.runtime.workdir import Stage, Workdir, fingerprint

_REMEMBERED = 200  # runs whose times are kept


def opening(
    log: RunLog, workdir: Workdir, title: str, *, stages: Sequence[str] = (), command: str = "", note: str = ""
) -> None:
    """Prints what will run, how long it takes, and where; from then on every stage says when it begins and ends.

    Args:
        stages: names of the stages, in order, where they are known beforehand.
        command: of the run; its config file says what the run costs, where this machine does not know.
        note: a line of the user's.
    """
    import jax

    devices = jax.devices()
    last = _last_times(workdir)
    log.line(f"hrsa_jax {title}")
    if stages:
        log.line(f"  stages   {len(stages)}: {_grouped(stages)}")
    log.line(f"  takes    {_takes(workdir, stages, last, command)}")
    log.line(f"  workdir  {short(workdir.path)}")
    log.line(f"  log      {short(workdir.path / LOG)} (also what the libraries say)")
    log.line(f"  devices  {len(devices)} x {devices[0].device_kind}, jax {jax.__version__}")
    if note:
        log.line(f"  note     {note}")
    workdir.listeners.append(_Narrator(log, list(stages), last))


def closing(log: RunLog, workdir: Workdir, seconds: float, *, files: Mapping[str, Path]) -> None:
    """Prints where the time went and where the files are, and remembers the times."""
    stages = workdir.manifest["stages"]
    if stages:
        log.line(_time_table(stages, seconds))
    _remember(workdir)
    for name, path in files.items():
        log.result(f"{name.ljust(max(map(len, files)))}  {short(path)}")


def short(path: Path) -> str:
    """The path as it can be typed from here."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) and not relative.startswith("..") else str(path)


class _Narrator:
    """Says which stage of how many begins, what is left by the last run's times, and when it ends."""

    def __init__(self, log: RunLog, names: list[str], last: Mapping[str, float]):
        self._log, self._names, self._last = log, names, last
        self._kept: list[str] = []
        self._running = ""

    def __call__(self, stage: Stage) -> None:
        if stage.name == self._running:
            self._running = ""
            timing = stage.timing
            self._log.line(
                f"{' ' * self._width()}done in {duration(timing['seconds'])}, {timing['peak_mb'] / 1024:.1f} GB"
            )
        elif stage.done:
            self._kept.append(stage.name)
            if self._names and stage.name == self._names[-1]:
                self._say_kept()
        else:
            self._say_kept()
            self._running = stage.name
            self._log.line(f"{self._number(stage.name).ljust(self._width())}{stage.name}{self._expected(stage.name)}")

    def _say_kept(self) -> None:
        if self._kept:
            self._log.line(f"{'[kept]'.ljust(self._width())}done before, not run again: {_grouped(self._kept)}")
            self._kept = []

    def _width(self) -> int:
        return max(2 * len(str(len(self._names))) + 4, 7)

    def _number(self, name: str) -> str:
        if name not in self._names:
            return "[+]"
        return f"[{self._names.index(name) + 1:{len(str(len(self._names)))}d}/{len(self._names)}]"

    def _expected(self, name: str) -> str:
        """What this stage and all from here on took the last time."""
        if name not in self._last:
            return ""
        rest = self._names[self._names.index(name) :] if name in self._names else []
        text = f", about {duration(self._last[name])}"
        if len(rest) > 1 and all(later in self._last for later in rest):
            text += f"; {duration(sum(self._last[later] for later in rest))} to the end"
        return text


def _grouped(names: Sequence[str]) -> str:
    """`tune, convert (2), benchmark (8), hrsa`."""
    counts: dict[str, int] = {}
    for name in names:
        kind = name.split("/")[0]
        counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(kind if count == 1 else f"{kind} ({count})" for kind, count in counts.items())


def _time_table(stages: Mapping[str, Any], seconds: float) -> str:
    """Kinds of stages with their seconds and peak memory, as they were when they ran."""
    rows: dict[str, tuple[int, float, float]] = {}
    for name, stage in stages.items():
        count, spent, peak = rows.get(name.split("/")[0], (0, 0.0, 0.0))
        rows[name.split("/")[0]] = (count + 1, spent + stage["seconds"], max(peak, stage["peak_mb"]))
    lines = [f"{'stages':24s}{'time':>14s}{'peak memory':>14s}", "-" * 52]
    for kind, (count, spent, peak) in rows.items():
        title = kind if count == 1 else f"{kind} ({count})"
        lines.append(f"{title:24s}{duration(spent):>14s}{peak / 1024:>11.1f} GB")
    lines.append(f"{'this command':24s}{duration(seconds):>14s}")
    return "\n".join(lines) + "\n"


def _takes(workdir: Workdir, stages: Sequence[str], last: Mapping[str, float], command: str) -> str:
    done = [name for name in stages if (workdir.path / "stages" / name / "done.json").exists()]
    if stages and len(done) == len(stages):
        return "seconds: every stage was finished here before"
    left = [name for name in stages if name not in done]
    begun = f"; {len(done)} of {len(stages)} stages were finished here before" if done else ""
    if left and all(name in last for name in left):
        return f"{duration(sum(last[name] for name in left))} the last time with these settings{begun}"
    return (_cost(command) or "not known: never finished with these settings on this machine") + begun


def _cost(command: str) -> str:
    """The sentence of the config file's docstring that begins with "Cost:", where it says a time; else empty."""
    given = re.search(r"--config[= ]([^\s:]+\.py)", command)
    if given is None:
        return ""
    try:
        text = ast.get_docstring(ast.parse(Path(given[1]).read_text(encoding="utf-8"))) or ""
    except (OSError, SyntaxError, UnicodeDecodeError):
        return ""
    found = re.search(r"\bCost: (.+?)[.;](?:\s|$)", " ".join(text.split()))
    if found is None or not re.search(r"\b(?:second|minute|hour|day)s?\b|\bFLOPs\b", found[1]):
        return ""
    return f"{found[1]} (says {Path(given[1]).name})"


def _times_file() -> Path:
    cache = os.environ.get("HRSA_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "hrsa_jax")
    return Path(cache) / "times.json"


def _key(workdir: Workdir) -> str:
    import jax

    return fingerprint([workdir.manifest["config"], jax.device_count(), jax.devices()[0].device_kind])


def _read_times() -> dict[str, dict[str, float]]:
    try:
        found = json.loads(_times_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _last_times(workdir: Workdir) -> dict[str, float]:
    """{stage: seconds} of the last finished run with these settings on this kind of device."""
    return _read_times().get(_key(workdir), {})


def _remember(workdir: Workdir) -> None:
    times = _read_times()
    times.pop(_key(workdir), None)
    times[_key(workdir)] = {name: stage["seconds"] for name, stage in workdir.manifest["stages"].items()}
    kept = dict(list(times.items())[-_REMEMBERED:])
    with contextlib.suppress(OSError):  # a run is worth more than the memory of its time
        _times_file().parent.mkdir(parents=True, exist_ok=True)
        fresh = _times_file().with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(kept), encoding="utf-8")
        os.replace(fresh, _times_file())
