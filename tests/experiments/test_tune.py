"""tune and merge as experiments of their own, on a tiny model: every method, resumption of stages, the path between."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import write_model

import hrsa_jax
from experiments import merge, tune
from experiments.compare import CompareConfig, read_texts
from experiments.variant import variant_text
from hrsa_jax.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def config(model, **settings):
    return {
        "base": str(model),
        "mesh": {"data": 4, "fsdp": 2},
        "tune": {
            "steps": 2,
            "family": "chain_sum",
            "problems": 40,
            "held_out": 6,
            "accuracy_questions": 5,
            "checkpoint_every": 1,
            "recipe": {"rows": 2, "row_length": 256, "dtype": "float32"},
            "grpo": {"questions": 2, "group": 4, "max_new_tokens": 4, "style": "raw", "dtype": "float32"},
            "trace": {"samples": 2, "style": "raw", "max_new_tokens": 4, "dtype": "float32"},
            "accuracy_style": "raw",
            "optim": {"learning_rate": 1e-3},
            "lora": {"rank": 2, "alpha": 4.0},
            **settings,
        },
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("tune") / "model")


def run(settings, path, **options):
    assert tune.run(settings | options, str(path), command="python launch.py") == 0
    return json.loads((path / "results.json").read_text())


@pytest.fixture(scope="module")
def by_reward(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo")
    return folder, run(config(model), folder, method="grpo")


def test_grpo_reports_before_and_after_and_its_curves(by_reward):
    folder, results = by_reward
    made = results["reasoning"]
    assert made["method"] == "grpo"
    assert made["before"]["n"] == made["after"]["n"] == 5
    assert made["after"]["kl_from_base"] >= 0
    assert made["before"]["kl_from_base"] is None
    assert len(made["training"]["reward"]) == len(made["training"]["kl"]) == 2
    assert made["training"]["seconds_sample"][0] > 0
    assert "kl from the base" in (folder / "report.html").read_text().lower()
    assert hrsa_jax.load(folder / "stages" / "tune" / "model").config.num_layers == 2
    again = run(config(results["config"]["base"]), folder, method="grpo")  # the finished stage is not run again
    assert again["reasoning"] == made


def test_sft_with_a_second_family_measures_unseen_templates(model, tmp_path):
    settings = config(model, family="gsm_symbolic", mixed_in=("chain_sum",), mixed_in_problems=20, lora=None)
    settings["tune"]["recipe"]["row_length"] = 512
    made = run(settings, tmp_path)["reasoning"]
    assert made["family"] == "gsm_symbolic, chain_sum"
    assert made["unseen_loss_change"]["relative"] is not None
    assert made["before"]["unseen_solution_loss"] > 0


def test_traces_are_written_for_hrsa(model, tmp_path):
    results = run(config(model, problems=5), tmp_path, method="trace")
    rows = [json.loads(line) for line in (tmp_path / "traces.jsonl").read_text().splitlines()]
    assert len(rows) == results["traces"]["rows"] == 10
    assert {"question", "solution", "correct", "length", "difficulty", "text", "label"} <= rows[0].keys()
    settings = CompareConfig(
        str(model), str(model), str(tmp_path / "traces.jsonl"), label_field="label", breakdown_field="difficulty"
    )
    assert set(read_texts(settings).parts) <= {"easy", "moderate", "hard"}


def test_training_on_held_out_questions_is_refused(model, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "1 + 1 =", "answer": "2"}\n')
    with pytest.raises(InputError, match=r"has (0 problems|1 problem), 1|fill 1 row"):
        run(config(model, family=str(path), problems=1, held_out=1), tmp_path / "run")
    with pytest.raises(InputError, match="is not one of"):
        run(config(model), tmp_path / "other", method="dpo")


def test_merged_models_load_end_exactly_and_are_compared(model, by_reward, tmp_path):
    tuned = by_reward[0] / "stages" / "tune" / "model"
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"the sum of {i} numbers is in the list {i * i}\n" for i in range(12)))
    settings = {"a": str(model), "b": str(tuned), "texts": str(texts), "max_texts": 10}
    assert merge.run(settings, str(tmp_path / "run"), command="python launch.py") == 0
    found = {
        share: hrsa_jax.load(tmp_path / "run" / "stages" / "merge" / f"linear-{share}" / "model")
        for share in ("0", "0.25", "1")
    }
    for share, source in (("0", model), ("1", tuned)):
        want = jax.tree.leaves(hrsa_jax.load(source).decoder)
        for left, right in zip(jax.tree.leaves(found[share].decoder), want, strict=True):
            np.testing.assert_array_equal(left, right)
    path = json.loads((tmp_path / "run" / "hrsa" / "results.json").read_text())["trajectory"]
    assert path
    other = write_model(tmp_path / "other", intermediate_size=32)
    with pytest.raises(InputError, match="merge: blocks"):
        merge.run(settings | {"b": str(other)}, str(tmp_path / "bad"), command="")


def test_the_terminal_says_what_tuning_changed_and_whether_that_is_shown():
    results = json.loads((ROOT / "results" / "tune_sft" / "results.json").read_text())
    before, after, *_, last = variant_text(results).splitlines()
    assert before == "before  accuracy  22.0% [13.4, 34.1] of 59, loss 1.275 [1.148, 1.403]"
    assert after.startswith("after   accuracy  79.7% [67.7, 88.0] of 59")
    assert last == "accuracy rose significantly (Wilson intervals disjoint)"
    del results["reasoning"]["before"]["accuracy"], results["reasoning"]["before"]["n"]
    assert variant_text(results).splitlines()[0] == "before  loss 1.275 [1.148, 1.403]"
