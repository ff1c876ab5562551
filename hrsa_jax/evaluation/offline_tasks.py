"""The offline suite: stock mteb tasks over real text that is already on the machine.

Nothing is vendored and no hub is asked: the rows come from installed packages and the Python installation
(evaluation/offline_data.py), are written once into a folder in the hub's layout, and read by mteb's own loaders. Names
carry a version; the data set's revision is a hash of its rows. Scores demonstrate, they do not rank: the code task
depends on the Python version, and "small" is drawn to be encoded in half a minute.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hrsa_jax.evaluation import offline_data
from hrsa_jax.evaluation.offline_data import AMOUNTS, BITEXT_CODES, Configs, Size
from hrsa_jax.evaluation.offline_registry import ALL_TASKS, available_tasks, check_names
from hrsa_jax.runtime.errors import InputError

_VERSION = "v1"
_TEXT_COLUMNS = ("text", "sentences", "sentence1", "sentence2")


def offline_tasks(
    folder: str | Path, *, names: Sequence[str] | None = None, size: Size = "small", seed: int = 0
) -> list[Any]:
    """Fresh mteb task objects over local data, written below `folder` unless it lies there already.

    Call it once per model: a clustering task moves its random state when it is evaluated.

    Args:
        folder: where the data sets go (one folder each).
        names: keys of ALL_TASKS (evaluation/offline_registry.py); None is all whose data is on this machine.
        size: "small" (about 1,400 distinct texts in all) or "full".
        seed: draws the rows.

    Raises:
        InputError: an unknown name or size, a corpus package that is missing (named).
    """
    names = available_tasks() if names is None else tuple(names)
    check_names(names)
    if size not in AMOUNTS:
        raise InputError(f"no offline tasks of size {size!r}: sizes are {', '.join(AMOUNTS)}")
    return [_mteb_task(name, size, _written(Path(folder), name, size, seed)) for name in names]


def task_name(name: str, size: Size) -> str:
    """The versioned name under which mteb stores results, so that sizes and versions never mix."""
    return f"{name}{'Small' if size == 'small' else ''}.{_VERSION}"


def task_texts(tasks: Iterable[Any]) -> dict[str, list[str]]:
    """Every distinct text of local tasks by task name: what data/leaks.py compares training pairs with."""
    texts: dict[str, list[str]] = {}
    for task in tasks:
        found: dict[str, None] = {}
        for file in sorted(Path(task.metadata.dataset["path"]).glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                found.update((row[column], None) for column in _TEXT_COLUMNS if column in row)
        texts[task.metadata.name] = list(found)
    return texts


def _written(folder: Path, name: str, size: Size, seed: int) -> Path:
    """The data set's folder; rows are drawn only when they are not there or were drawn by another recipe."""
    home = folder / f"{task_name(name, size)}-seed{seed}"
    recipe = {
        "task": task_name(name, size),
        "seed": seed,
        "amounts": dataclasses.asdict(AMOUNTS[size]),
        "python": sys.version.split()[0],
    }
    marker = home / "recipe.json"
    if marker.is_file():
        found = json.loads(marker.read_text(encoding="utf-8"))
        path = home / str(found.pop("revision", ""))
        if found == recipe and (path / "README.md").is_file():
            return path
    path = write_data_set(home, ALL_TASKS[name].rows(AMOUNTS[size], seed))
    draft = marker.with_suffix(".tmp")
    draft.write_text(json.dumps({**recipe, "revision": path.name}), encoding="utf-8")
    os.replace(draft, marker)
    return path


def write_data_set(home: Path, configs: Configs) -> Path:
    """Writes home/<hash of all rows>/ in the hub's layout: JSON lines, and a README header that names the files.

    The hash is the folder's name because `datasets` caches local data by folder name and README, whatever the rows
    are: under a fixed name, rows that changed would never be read.
    """
    files, header, digest = {}, ["---", "configs:"], hashlib.sha256()
    for config, splits in configs.items():
        header += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            file = f"{config}.{split}.jsonl"
            files[file] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
            digest.update(file.encode() + b"\0" + files[file])
            header += [f"  - split: {split}", f"    path: {file}"]
    files["README.md"] = "\n".join([*header, "---", ""]).encode()
    home.mkdir(parents=True, exist_ok=True)
    target = home / digest.hexdigest()[:16]
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=home))
    draft.chmod(0o755)  # mkdtemp's folders are closed to others
    for file, content in files.items():
        (draft / file).write_bytes(content)
    if target.exists():
        shutil.rmtree(target)
    os.replace(draft, target)
    return target


def _mteb_task(name: str, size: Size, path: Path) -> Any:
    """A stock task class of mteb with our metadata, instantiated."""
    from mteb.abstasks import AbsTaskBitextMining, AbsTaskClassification, AbsTaskClustering, AbsTaskPairClassification
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.sts import AbsTaskSTS

    bases = {
        "Retrieval": AbsTaskRetrieval,
        "Reranking": AbsTaskRetrieval,
        "Classification": AbsTaskClassification,
        "Clustering": AbsTaskClustering,
        "PairClassification": AbsTaskPairClassification,
        "STS": AbsTaskSTS,
        "BitextMining": AbsTaskBitextMining,
    }
    task = ALL_TASKS[name]
    # a few hundred rows: k-means and logistic regression spend more time handing out work than working
    fields: dict[str, Any] = {"metadata": _metadata(name, size, path), "scoring_threads": 1}
    if task.type == "Clustering":
        # the stock default embeds 4% of the documents: of a small set, next to nothing
        fields |= {
            "max_fraction_of_documents_to_embed": None,
            "max_documents_per_cluster": 128 if size == "small" else 1024,
        }
    elif task.type == "STS":
        fields |= {"min_score": 0, "max_score": 1}
    return type(name, (bases[task.type],), fields)()


def _metadata(name: str, size: Size, path: Path) -> Any:
    from mteb.abstasks.task_metadata import TaskMetadata

    task = ALL_TASKS[name]
    languages: Any = ["eng-Latn"]
    if task.type == "BitextMining":
        languages = {x: ["eng-Latn", BITEXT_CODES[x]] for x in offline_data.bitext_languages(size)}
    elif name == "OfflineReasoningRetrieval":
        languages = {family: ["eng-Latn"] for family in offline_data.ANSWER_FAMILIES}
    prompt: Any = {"query": task.instruction} if task.type in ("Retrieval", "Reranking") else task.instruction
    kind: Any = task.type
    domains: list[Any] = [task.domain]
    return TaskMetadata(
        name=task_name(name, size),
        dataset={"path": str(path.resolve()), "revision": path.name},
        description=f"{task.description} Source: {task.source}. Licence: {task.licence}.",
        reference=None,
        type=kind,
        category="t2c" if task.type in ("Classification", "Clustering") else "t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=languages,
        main_score=task.metric,
        prompt=prompt,
        domains=domains,
        license="not specified",
        annotations_creators="derived",
        dialect=[],
        sample_creation="found",
        bibtex_citation="",
        is_public=True,
    )
