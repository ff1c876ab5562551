"""No code from data: what the sources may call, what model folders may point to, what reaches the report page."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from hrsa_jax.models.safetensors_files import SafetensorsFolder
from hrsa_jax.models.sentence_transformers_files import read_embedding_settings
from hrsa_jax.models.source import resolve
from hrsa_jax.report import page
from hrsa_jax.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [ROOT / "launch.py"]
for _folder in ("hrsa_jax", "experiments", "configs"):
    SOURCES += sorted((ROOT / _folder).rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "zipfile", "tarfile"}
MODULES |= {"subprocess", "torch", "code", "runpy", "pty"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "shutil.unpack_archive"}
CALLS |= {"os.execv", "os.execvp", "os.spawnv", "pandas.read_pickle", "input"}
#: file -> {use: why it is safe}
ALLOWED: dict[str, dict[str, str]] = {
    "hrsa_jax/evaluation/mteb_encoder.py": {"torch": "mteb asks for torch tensors; made of numpy arrays, never loaded"},
}


def name_of(node: ast.expr) -> str:
    """a.b.c for such a chain, else ''."""
    if isinstance(node, ast.Attribute):
        left = name_of(node.value)
        return f"{left}.{node.attr}" if left else ""
    return node.id if isinstance(node, ast.Name) else ""


def findings(tree: ast.AST) -> list[str]:
    """Every use of what could run data as code, or unpack it anywhere."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in MODULES:
            found.append(node.module)
        if not isinstance(node, ast.Call):
            continue
        name, given = name_of(node.func), {word.arg: word.value for word in node.keywords}
        if name in CALLS or name.endswith((".extractall", ".from_string")):
            found.append(name)
        for word in ("shell", "trust_remote_code", "allow_pickle"):
            if word in given and not (isinstance(given[word], ast.Constant) and given[word].value is False):
                found.append(f"{name}({word}=...)")
        if name in ("np.load", "numpy.load") and "allow_pickle" not in given:
            found.append(f"{name} without allow_pickle=False")
        if name.endswith(".from_pretrained") and name.startswith("Auto") and "trust_remote_code" not in given:
            found.append(f"{name} without trust_remote_code=False")
        if name.endswith("jinja2.Environment") and "autoescape" not in given:
            found.append(f"{name} without autoescape")
    return found


def test_nothing_in_the_sources_runs_data():
    assert len(SOURCES) > 100
    for path in SOURCES:
        where = str(path.relative_to(ROOT))
        used = [
            use for use in findings(ast.parse(path.read_text(encoding="utf-8"))) if use not in ALLOWED.get(where, {})
        ]
        assert not used, f"{where} uses {used}"


@pytest.mark.parametrize(
    "bad",
    ["import pickle", "from yaml import load", "eval(x)", "os.system(x)", "np.load(p)", "np.load(p, allow_pickle=True)",
     "subprocess.run(x, shell=True)", "f(trust_remote_code=flag)", "AutoTokenizer.from_pretrained(p)",
     "archive.extractall(p)"],
)  # fmt: skip
def test_the_search_of_the_sources_finds(bad):
    assert findings(ast.parse(bad))


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "model.bin"])
def test_a_weight_index_points_to_files_beside_it_only(tmp_path, file):
    (tmp_path / "model.safetensors").write_bytes(b"outside")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(InputError, match=r"not a \.safetensors file beside it"):
        SafetensorsFolder(folder)


@pytest.mark.parametrize("place", ["../other", "..", "/etc", "a/../../other", "a\\b", "a\0b", 7])
def test_a_modules_file_points_to_folders_beside_it_only(tmp_path, place):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"pooling_mode": "mean"}')
    folder = tmp_path / "folder"
    folder.mkdir()
    modules = [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": place}]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="not the name of a folder beside it"):
        read_embedding_settings(folder)


@pytest.mark.parametrize(
    "source", ["package:../outside", "package:/etc", "../gone", "a/../../b", "org/name/../x", "a\0b"]
)
def test_a_model_source_that_climbs_out_is_refused(source):
    with pytest.raises(InputError):
        resolve(source)


def test_what_a_results_file_says_is_text_on_the_page():
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    results = {
        "schema": 1, "label": evil, "models": {evil: {"source": evil}}, "warnings": [evil], "config": {evil: evil},
        "benchmark": [{"model": evil, "task": evil, "type": evil, "score": 0.5}], "provenance": {"command": evil},
        "timings": {evil: {"seconds": 1.0, "peak_mb": 1.0}}, "hrsa": {evil: {"notes": [evil], "refused": {evil: evil}}},
    }  # fmt: skip
    html = page.render(results)
    assert "alert(1)" in html
    assert "<script>alert" not in html
    assert "<img" not in html


def test_a_message_cannot_steer_the_terminal_or_fill_it():
    message = str(InputError("tensor \x1b[2J\n\u202e" + "x" * 10_000 + " is broken"))
    assert message.isprintable()
    assert message.startswith("tensor \\x1b[2J")
    assert message.endswith("is broken")
    assert len(message) < 1600
