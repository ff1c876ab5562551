"""Rebuild a study's report, or put several finished studies on one page.

python launch.py --config=configs/report.py --workdir=runs/quickstart
python launch.py --config=configs/report.py --workdir=runs/table --config.studies="('runs/a', 'runs/b', 'runs/c')"

Reads results.json files only. Of one study, its report.html is written anew; of several, report.html, results.json and
table.txt are written into the folder of this run, and the studies stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrsa_jax.report import page, schema, studies, studies_page
from hrsa_jax.report.verdict import summary, terminal_table
from hrsa_jax.runtime import processes
from hrsa_jax.runtime.config import build, to_json
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.workdir import Workdir, fingerprint, read_json, write_json


@dataclass(frozen=True)
class ReportConfig:
    """studies: workdirs or results.json files of finished studies, NAME=PATH to name one; none: the workdir itself."""

    studies: tuple[str, ...] = ()


def run(config: dict[str, Any], path: str, *, command: str) -> int:
    """Writes the page (and, of several studies, their table) in the folder `path`; returns the exit status."""
    setting = build(ReportConfig, config)
    if len(setting.studies) < 2:
        return _rebuild(_place(setting.studies[0]) if setting.studies else Path(path), Path(path))
    sources = named(setting.studies)
    found = {name: _read(place) for name, place in sources.items()}
    _refuse_twins(found)
    _refuse_a_study(Path(path))
    with Workdir(path, to_json(setting)) as workdir:
        log = RunLog(workdir.path)
        compared = studies.compare(found)
        text = {name: str(place) for name, place in sources.items()}
        write_json(workdir.path / "results.json", studies.record(compared, text, command))
        table = studies_page.terminal_table(compared)
        if processes.index() == 0:
            studies_page.write(studies_page.render(compared, text, command), workdir.path / "report.html")
            (workdir.path / "table.txt").write_text(table, encoding="utf-8", errors="replace")
        log.result(f"\n{table}")
        for warning in compared.warnings:
            log.line(f"! {warning}")
        log.result(f"report   {workdir.path / 'report.html'}")
        log.close()
    return 0


def _rebuild(source: Path, folder: Path) -> int:
    """One study's page, in its own folder or in the one that was named."""
    results = _read(source)
    written = page.write(source, folder / "report.html")
    log = RunLog()
    log.result(f"\n{terminal_table(results)}\n{summary(results).opening()}\n\nreport   {written}")
    log.close()
    return 0


def named(texts: tuple[str, ...]) -> dict[str, Path]:
    """The studies by name: the one in front of =, or the folder's."""
    out: dict[str, Path] = {}
    for text in texts:
        name, place = _name(text), _place(text)
        if name in out:
            if out[name].resolve() == place.resolve():
                raise InputError(f"config.studies names {place} twice: name every study once")
            raise InputError(f"config.studies has two studies called {name!r}: write NAME=PATH to tell them apart")
        out[name] = place
    return out


def _place(text: str) -> Path:
    return Path(text if Path(text).exists() else text.partition("=")[2] or text)


def _name(text: str) -> str:
    name, equals, _ = text.partition("=")
    place = Path(text)
    return name if equals else place.parent.name if place.suffix == ".json" else place.name


def _read(place: Path) -> dict[str, Any]:
    """A study's results, or one sentence that says why they are none."""
    file = place / "results.json" if place.is_dir() else place
    if file.is_file() and _is_comparison(file):
        raise InputError(f"{file} is a comparison of studies, not a study: name the studies that it lists instead")
    return schema.read(place)


def _is_comparison(file: Path) -> bool:
    try:
        content = read_json(file)
    except InputError:
        return False  # schema.read says what is wrong with it
    return isinstance(content, Mapping) and content.get("kind") == studies.KIND


def _refuse_twins(found: Mapping[str, Mapping[str, Any]]) -> None:
    """A copy of a study would count as a second pair in the correction and look like a replication."""
    seen: dict[str, str] = {}
    for name, results in found.items():
        key = fingerprint([results.get("fingerprints"), results.get("benchmark"), results.get("null_effect")])
        if key in seen:
            raise InputError(
                f"{seen[key]} and {name} are the same study (equal models and scores): leave one of them out"
            )
        seen[key] = name


def _refuse_a_study(folder: Path) -> None:
    """The table's results.json must not be written over a study's."""
    file = folder / "results.json"
    if file.exists() and not _is_comparison(file):
        raise InputError(f"{folder} holds a study's results.json: give the comparison a folder of its own as --workdir")
