"""The run's folder: atomic stages, changed configs, locks, strict JSON."""

import json
import math
import os
import subprocess
import sys

import pytest

from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.workdir import Workdir, read_json, write_json

CONFIG = {"seed": 1, "tune": {"steps": 3}}


def test_a_stage_runs_once_and_its_result_survives(tmp_path):
    with Workdir(tmp_path, CONFIG) as workdir, workdir.stage("a/b", {"model": "x"}) as stage:
        assert not stage.done
        stage.complete({"score": 0.5, "nan": math.nan})
    with Workdir(tmp_path, CONFIG) as workdir, workdir.stage("a/b", {"model": "x"}) as stage:
        assert stage.done
        assert stage.result == {"score": 0.5, "nan": None}
        assert stage.timing["peak_mb"] > 1
    assert read_json(tmp_path / "manifest.json")["stages"]["a/b"]["inputs"] == {"model": "x"}


def test_a_cut_stage_keeps_its_files_only_for_the_same_inputs(tmp_path):
    with Workdir(tmp_path, CONFIG) as workdir:
        with workdir.stage("a", {"model": "x"}) as stage:
            (stage.path / "checkpoint").write_text("1")
        with workdir.stage("a", {"model": "x"}) as stage:
            assert not stage.done
            assert (stage.path / "checkpoint").exists()
        with workdir.stage("a", {"model": "y"}) as stage:
            assert not (stage.path / "checkpoint").exists()
            stage.complete(1)
        with workdir.stage("a", {"model": "x"}) as stage:
            assert not stage.done
            assert not (stage.path / "done.json").exists()


def test_another_config_is_refused_by_what_changed_once_a_stage_began(tmp_path):
    Workdir(tmp_path, {"seed": 2}).close()
    with Workdir(tmp_path, CONFIG) as workdir, workdir.stage("a", {}):
        pass
    with pytest.raises(InputError, match=r"another config \(tune.steps: was 3, now 4\)"):
        Workdir(tmp_path, {"seed": 1, "tune": {"steps": 4}})
    Workdir(tmp_path, CONFIG).close()


def test_bad_input_leaves_nothing_but_finished_work_and_a_corrected_setting_goes_on(tmp_path):
    def run(folder, finished):
        with Workdir(folder, CONFIG) as workdir:
            RunLog(folder, primary=True).line("begun")
            for name in finished:
                with workdir.stage(name, {}) as stage:
                    stage.complete(1)
            with workdir.stage("convert/a", CONFIG):
                raise InputError("a bad setting")

    def refused(folder, *, finished=()):
        with pytest.raises(InputError, match="a bad setting"):
            run(folder, finished)

    made = tmp_path / "made" / "by" / "us"
    refused(made)
    assert not (tmp_path / "made").exists()
    (tmp_path / "theirs").mkdir()
    refused(tmp_path / "theirs")
    assert list((tmp_path / "theirs").iterdir()) == []

    with Workdir(made, CONFIG):
        (made / "results.json").write_text("{}")
    refused(made)
    assert {path.name for path in made.iterdir()} >= {"results.json", "manifest.json"}
    Workdir(made, {"seed": 2}).close()  # no stage was finished: another setting is welcome

    refused(tmp_path / "kept", finished=("tune",))
    assert {path.name for path in (tmp_path / "kept" / "stages").iterdir()} == {"tune"}
    with pytest.raises(InputError, match="another config"):
        Workdir(tmp_path / "kept", {"seed": 2, "tune": {"steps": 3}})
    with pytest.raises(InputError, match="of another experiment"):
        Workdir(tmp_path / "kept", {"a": 1, "b": 2})


def test_a_stopped_stage_that_holds_work_is_not_taken_for_refused(tmp_path):
    def run():
        with Workdir(tmp_path / "run", CONFIG) as workdir, workdir.stage("a", {}) as stage:
            (stage.path / "checkpoint").write_text("1")
            raise InputError("the loss became NaN")

    with pytest.raises(InputError, match="became NaN"):
        run()
    assert (tmp_path / "run" / "stages" / "a" / "checkpoint").exists()


def test_a_busy_workdir_names_the_process(tmp_path):
    with Workdir(tmp_path, CONFIG):
        code = f"from hrsa_jax.runtime.workdir import Workdir; Workdir({str(tmp_path)!r}, {CONFIG!r})"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"is in use by process {os.getpid()}" in ran.stderr


def test_a_workdir_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be made, .*file is a file: give a folder"):
        Workdir(tmp_path / "file" / "run", CONFIG)


def test_json_is_strict_and_atomic(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": [1.0, math.nan, math.inf]})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"a": [1.0, None, None]}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": [1.0, None, None]}
    path.write_text('{"a": [1')
    with pytest.raises(InputError, match=r"x\.json is not valid JSON"):
        read_json(path)


def test_a_stage_finished_elsewhere_is_taken_over_only_for_the_same_inputs(tmp_path):
    donor, own = tmp_path / "donor", tmp_path / "own"
    with Workdir(donor, CONFIG) as workdir:
        for name, model in (("deep/same", "x"), ("other", "y")):
            with workdir.stage(name, {"model": model}) as stage:
                (stage.path / "weights").write_text(model)
                stage.complete({"score": model})
        with workdir.stage("cut", {}) as stage:
            (stage.path / "weights").write_text("half")
    with Workdir(own, CONFIG, reuse=[donor]) as workdir:
        with workdir.stage("deep/same", {"model": "x"}) as stage:
            assert stage.done
            assert stage.result == {"score": "x"}
            assert (stage.path / "weights").read_text() == "x"
        with workdir.stage("other", {"model": "z"}) as stage:
            assert not stage.done
        with workdir.stage("cut", {}) as stage:
            assert not stage.done
            assert not (stage.path / "weights").exists()
    assert read_json(own / "manifest.json")["stages"]["deep/same"]["taken_from"] == str(donor)
    with Workdir(own, CONFIG) as workdir, workdir.stage("deep/same", {"model": "x"}) as stage:
        assert stage.done


def test_workdirs_that_cannot_give_stages_are_refused(tmp_path):
    with pytest.raises(InputError, match="is no workdir to take stages from"):
        Workdir(tmp_path / "own", CONFIG, reuse=[tmp_path / "nothing"])
    with pytest.raises(InputError, match="cannot take stages from itself"):
        Workdir(tmp_path / "own", CONFIG, reuse=[tmp_path / "own"])
    Workdir(tmp_path / "old", CONFIG).close()
    manifest = read_json(tmp_path / "old" / "manifest.json")
    write_json(tmp_path / "old" / "manifest.json", manifest | {"versions": manifest["versions"] | {"jax": "0.1"}})
    with pytest.raises(InputError, match="was made by other versions"):
        Workdir(tmp_path / "own", CONFIG, reuse=[tmp_path / "old"])
