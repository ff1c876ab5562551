"""Problems from files and from the hub's layouts: read whole, split without overlap, broken rows named."""

import json

import pytest

from hrsa_jax.reasoning import tasks
from hrsa_jax.reasoning.sources import load_problems, read_problems
from hrsa_jax.runtime.errors import InputError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "sums.jsonl"
    rows = [{"question": f"{i} + 1 =", "solution": f"{i} + 1 = {i + 1}\n#### {i + 1}"} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_json_lines_are_split_by_question_and_scored(file):
    train = load_problems(str(file), 12, seed=0)
    held_out = load_problems(str(file), 4, seed=0, split="held_out")
    tasks.check_disjoint(train, held_out)
    assert train == load_problems(str(file), 12, seed=0)
    assert train != load_problems(str(file), 12, seed=1)
    problem = train[0]
    assert tasks.score(problem, f"#### {problem.answer}.0") == 1.0
    assert tasks.score(problem, "#### -1") == 0.0
    assert not tasks.well_formed(problem, problem.answer)
    with pytest.raises(InputError, match=r"has [12]\d problems, 31"):
        load_problems(str(file), 31, seed=0)
    with pytest.raises(InputError, match="no unseen split"):
        load_problems(str(file), 1, seed=0, split="unseen")
    with pytest.raises(InputError, match="needs a generated family"):
        tasks.prompt(problem, "few_shot")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "a", "solution": "b"}', r":2: answer is None"),
        ('{"question": "", "answer": 3}', r":2: question is ''"),
        ('{"question": "a", "answer": true}', r":2: answer is True"),
        ('{"question": "0 + 1 =", "answer": 1}', r":2: the question of line 1 comes again"),
        ('{"question": "a", "ans', r":2: "),
        ("[1]", r":2: "),
    ],
)
def test_broken_rows_are_named(tmp_path, line, message):
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "0 + 1 =", "answer": 1}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_problems(path)


def test_hub_layouts(tmp_path):
    import datasets

    gsm = {"question": ["q1", "q2"], "answer": ["3 * 4 = <<3*4=12>>12\n#### 12", "#### 1,000"]}
    maths = {
        "problem": ["p1"],
        "level": ["Level 1"],
        "type": ["Algebra"],
        "solution": [r"Half: $\boxed{\frac{1}{2}}$."],
    }
    for name, columns in (("gsm", gsm), ("maths", maths)):
        for split in ("train", "test"):
            rows = {
                key: [f"{split} {value}" if key in ("question", "problem") else value for value in values]
                for key, values in columns.items()
            }
            folder = tmp_path / name / "main"
            folder.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    (tmp_path / "gsm" / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n"
        "  - split: test\n    path: main/test-*\n---\n"
    )
    train = load_problems(f"gsm8k:{tmp_path / 'gsm'}", 2, seed=0)
    held_out = load_problems(f"gsm8k:{tmp_path / 'gsm'}", 2, seed=0, split="held_out")
    tasks.check_disjoint(train, held_out)
    assert [(p.solution, p.answer) for p in train] == [("3 * 4 = 12\n#### 12", "12"), ("#### 1,000", "1,000")]
    (problem,) = load_problems(f"math:{tmp_path / 'maths'}", 1, seed=0, split="held_out")
    assert problem.answer == r"\frac{1}{2}"
    assert tasks.score(problem, r"it is \boxed{0.5}") == 1.0
    with pytest.raises(InputError, match=r"gsm8k: data set .* cannot be read"):
        load_problems(f"gsm8k:{tmp_path / 'nothing'}", 1, seed=0)
    with pytest.raises(InputError, match="has no column"):
        load_problems(f"math:{tmp_path / 'gsm'}", 1, seed=0)


def test_unknown_sources_are_refused():
    with pytest.raises(InputError, match="unknown source of problems 'chess'"):
        load_problems("chess", 1, seed=0)
