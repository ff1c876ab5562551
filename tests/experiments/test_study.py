"""The whole study on a model of a few kilobytes: its results, its resume after SIGKILL."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from terminal import faults, in_terminal, shown
from tiny import write_model

from experiments.study import StudyConfig, stage_names
from hrsa_jax.report import schema
from hrsa_jax.runtime.config import build

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
from ml_collections import config_dict

def get_config():
    lora = {{"rank": 2, "alpha": 4.0}}
    optim = {{"learning_rate": 1e-3, "warmup_steps": 1}}
    return config_dict.ConfigDict({{
        "experiment": "study", "label": "tiny", "base": {base!r}, "demonstration": True,
        "tune": {{"steps": 4, "problems": 24, "held_out": 6, "accuracy_questions": 4, "checkpoint_every": 2,
                 "recipe": {{"rows": 1, "row_length": 512}}, "optim": optim, "lora": lora}},
        "convert": {{"seeds": {seeds}, "snapshots": {snapshots},
                    "pairs": 60, "sources": ("news_titles", "reasoning"), "checkpoint_every": 2, "optim": optim,
                    "lora": lora, "recipe": {{"steps": 4, "batch_size": 4, "max_query_length": 160,
                                             "max_passage_length": 96, "row_length": 192, "dtype": "float32"}}}},
        "benchmark": {{"tasks": ("OfflineNewsRetrieval", "OfflineLeeSTS", "OfflineNewsClassification"),
                      "max_length": 160, "dtype": "float32"}},
        "hrsa": {{"texts": 12, "max_tokens": 24, "labelled_texts": 60, "labelled_max_tokens": 48}},
        "controls": {controls}, "reuse": {reuse},
    }})
"""

STAGES = (
    "tune",
    "convert/base-Emb-s0",
    "convert/reasoning-Emb-s0",
    "benchmark/base-Emb-s0",
    "benchmark/base-causal",
    "hrsa",
)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    model = write_model(folder / "model")
    settings = {"seeds": (0,), "snapshots": (), "controls": {}, "reuse": ()}
    (folder / "config.py").write_text(CONFIG.format(base=str(model), **settings))
    settings = {"seeds": (0, 1), "snapshots": (2,), "reuse": (str(folder / "whole"),)}
    controls = {"undertrained_steps": 1, "random_weights": True, "noise_floor": True, "planted": True}
    (folder / "controls.py").write_text(CONFIG.format(base=str(model), controls=controls, **settings))
    return folder


def launch(setting, workdir, config="config.py"):
    command = [sys.executable, str(ROOT / "launch.py"), f"--config={setting / config}", f"--workdir={workdir}"]
    return command, {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "HRSA_CACHE": str(setting / "cache")}


def start(setting, workdir, config="config.py"):
    command, environment = launch(setting, workdir, config)
    log = (workdir.parent / f"{workdir.name}.log").open("a")
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def whole(setting):
    command, environment = launch(setting, setting / "whole")
    seen = setting / "whole.seen"
    assert in_terminal(command, cwd=ROOT, env=environment, log=seen) == 0, seen.read_text()
    return json.loads((setting / "whole" / "results.json").read_text())


def without_timings(results):
    return {key: value for key, value in results.items() if key != "timings"}


def test_results_hold_every_section(setting, whole):
    schema.validate(whole)
    assert {row["model"] for row in whole["benchmark"]} == {
        *("base", "reasoning", "base-Emb", "reasoning-Emb", "bag-of-words", "random")
    }
    modes = {(row["model"], row["attention"]) for row in whole["benchmark"]}
    assert {("base", "causal"), ("base", "bidirectional"), ("base-Emb", "bidirectional"), ("random", "none")} <= modes
    assert whole["null_effect"]["word"].startswith("inconclusive")
    for pair in ("base_vs_reasoning", "base-Emb_vs_reasoning-Emb"):
        for measure in (
            *("correlation", "procrustes_residual", "inverse_row_entropy", "cka", "cka_biased", "cka_with_sinks"),
            *("knn_5", "knn_10", "knn_50", "probe_source", "probe_transfer"),
        ):
            curve = whole["hrsa"][pair][measure]
            assert len(curve["layers"]) == len(curve["value"]), measure
            assert len(curve["layers"]) == 3, measure
        matrix = whole["hrsa"][pair]["cka_matrix"]
        assert (len(matrix["value"]), len(matrix["layers_a"]), len(matrix["layers_b"])) == (3, 3, 3)
    assert whole["realignment"]["cka"]["interval95"] is not None
    assert (setting / "whole" / "report.html").stat().st_size > 50_000


def test_on_a_terminal_of_80_columns_every_line_is_ours_and_fits(setting, whole):
    seen = (setting / "whole.seen").read_bytes().decode()
    assert faults(seen, terminal=True) == []
    lines = shown(seen)
    started = [line for line in lines if line.startswith("[")]
    stages = list(json.loads((setting / "whole" / "manifest.json").read_text())["stages"])
    assert [line.split("] ")[1].split(",")[0] for line in started] == stages  # those that were announced, in order
    assert any(line.startswith("  stages   12: tune, convert (2), benchmark (8), hrsa") for line in lines)
    assert "  convert/base-Emb-s0 0/4 [....................]" in seen  # a bar while it works, none in the end
    assert not any("[..." in line or "[##" in line for line in lines)
    for name in ("results", "report"):
        assert any(line.startswith(f"{name} ") and f"/{name}." in line for line in lines[-5:])
    assert "[transformers]" in (setting / "whole" / "log.txt").read_text()  # a library's warning, kept


def test_both_conversions_saw_the_same_data_by_the_same_recipe(setting, whole):
    pairing = json.loads((setting / "whole" / "manifest.json").read_text())["pairing"]["seed 0"]
    assert pairing["equal"]
    assert pairing["base-Emb"] == pairing["reasoning-Emb"]
    assert len(pairing["base-Emb"]["data_order"]) == 64


def test_a_finished_study_runs_nothing_again(setting, whole):
    before = {path: path.stat().st_mtime_ns for path in (setting / "whole" / "stages").rglob("done.json")}
    assert start(setting, setting / "whole").wait(timeout=300) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    again = json.loads((setting / "whole" / "results.json").read_text())
    piped = (setting / "whole.log").read_text()
    assert faults(piped, terminal=False) == []
    assert "every stage was finished here before" in piped
    assert without_timings(again) == without_timings(whole)


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param(("convert/reasoning-Emb-s0", "hrsa"), id="two stages"),
        pytest.param(STAGES, id="every stage", marks=pytest.mark.slow),
    ],
)
def test_killed_in_the_middle_it_ends_with_the_same_results(setting, whole, stages):
    workdir = setting / f"killed{len(stages)}"
    for stage in stages:
        process = start(setting, workdir)
        folder = workdir / "stages" / stage
        deadline = time.monotonic() + 300
        while not (folder / "inputs.json").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.5)
        assert not (folder / "done.json").exists(), f"{stage} ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(setting, workdir).wait(timeout=600) == 0, workdir.with_suffix(".log").read_text()
    assert faults(workdir.with_suffix(".log").read_text(), terminal=False) == []
    killed = json.loads((workdir / "results.json").read_text())
    assert without_timings(killed) == without_timings(whole)


def test_a_changed_config_is_refused_and_nothing_is_lost(setting, whole):
    changed = setting / "changed.py"
    changed.write_text(
        (setting / "config.py").read_text().replace('"steps": 4, "batch_size": 4', '"steps": 5, "batch_size": 4')
    )
    ran = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), f"--config={changed}", f"--workdir={setting / 'whole'}"],
        *(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert "convert.recipe.steps: was 4, now 5" in ran.stderr
    assert (setting / "whole" / "results.json").exists()


@pytest.mark.slow
def test_every_control_is_run_and_what_another_study_finished_is_taken_from_it(setting, whole):
    process = start(setting, setting / "controlled", "controls.py")
    assert process.wait(timeout=900) == 0, (setting / "controlled.log").read_text()
    results = json.loads((setting / "controlled" / "results.json").read_text())
    schema.validate(results)
    stages = json.loads((setting / "controlled" / "manifest.json").read_text())["stages"]
    taken = {name for name, stage in stages.items() if "taken_from" in stage}
    announced = stage_names(build(StudyConfig, results["config"]))
    assert sorted(announced) == sorted(stages)
    assert {"tune", "benchmark/base-causal", "benchmark/random"} <= taken
    assert not taken & {"hrsa", "trajectory", "convert/control-Emb-s0", "convert/base-Emb-s1"}

    null = results["null_effect"]
    assert null["positive_control"]["seeds"] == [0, 1]
    assert len(null["positive_control"]["differences"]) == len(null["tasks"])
    assert 0 <= null["power"]["power"] <= 1
    assert [pair["seeds"] for pair in null["aa"]["pairs"]] == [[0, 1]]
    assert {row["model"] for row in results["benchmark"]} >= {"control-Emb", "random-weights-Emb"}
    assert {"base-Emb_vs_base-Emb_other_seed", "base-Emb_vs_random-weights-Emb"} <= set(results["hrsa"])
    assert results["trajectory"]["steps"] == [0, 2, 4]
    for curve in results["trajectory"]["measures"].values():
        for value, (low, high) in zip(curve["value"], curve["interval95"], strict=True):
            assert low <= value <= high
    floor = results["noise_floor"]["runs"]["bfloat16"]["cka"]["value"]
    assert min(floor) > 0.9
    assert all(check["holds"] for check in results["planted"])
