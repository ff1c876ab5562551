"""Runs one experiment from a config file: `python launch.py --config=configs/quickstart.py --workdir=runs/quickstart`.

Exit status: 0 done; 2 bad input (one sentence on stderr); 3 done but for failed parts, which are listed; 75 another
process of the run died; 130 and 143 stopped by Ctrl-C and SIGTERM (after 75, 130 and 143 the same command continues).
--verbosity: -1 prints results and failures only, 0 a line for every stage, 1 also what the libraries say, which goes to
WORKDIR/log.txt otherwise.
Several hosts: the same command on each, found through TPU metadata or SLURM, or --coordinator and its like; see
BUILD.md.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import importlib
import logging
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from absl import app, flags
from ml_collections import config_flags

EXPERIMENTS = (
    *("inspect", "study", "convert", "mine", "compare", "evaluate", "tune", "merge"),
    *("claims", "report", "plan"),
)

_ALONE = ("inspect", "plan")  # write nothing and run in one process

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; override a setting by --config.NAME=VALUE.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run, on a disk that all its hosts see.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, for runs on several hosts.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes, with --coordinator; 1 says: alone.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process's number, with --coordinator.")
_OVERRIDE = re.compile(r"--?config\.([\w.]+)(?:=(.*))?", re.DOTALL)
_ABSENT = object()
_ADDED: dict[str, str] = {}  # settings of the command line that the config file does not write down


def main(argv: list[str]) -> int:
    """Runs the experiment that the config names, here or as one of several processes."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # as stderr: no character stops a run
    return _explained(lambda: _main(argv))


def _main(argv: list[str]) -> int:
    from hrsa_jax.runtime import noise
    from hrsa_jax.runtime.errors import InputError
    from hrsa_jax.runtime.processes import join, joining, sigterm_ends, supervised

    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}: settings are given as --config.NAME=VALUE")
    config = _load_config()
    name = config.pop("experiment", None)
    if name not in EXPERIMENTS:
        raise InputError(f"config.experiment={name!r} is not an experiment: it is one of {', '.join(EXPERIMENTS)}")
    noise.set_verbosity(flags.FLAGS.verbosity)
    how = joining(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if name in _ALONE or how is not None or flags.FLAGS.verbosity > noise.NORMAL:
        hidden: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    else:
        hidden = noise.caught()
    _quiet_libraries(completely=name in _ALONE or how is not None)
    if how is None or name in _ALONE:
        with hidden, sigterm_ends():
            return _run(name, config)

    def joined() -> int:
        join(how)
        return _run(name, config)

    return supervised(lambda: _explained(joined), how.process)


def _run(name: str, config: dict[str, Any]) -> int:
    """Calls the experiment."""
    _check_workdir(name, _WORKDIR.value)
    _set_up_devices()
    experiment = importlib.import_module(f"experiments.{name}")
    if name in _ALONE:
        return experiment.run(config)
    return experiment.run(config, _WORKDIR.value, command=_command())


def _check_workdir(name: str, path: str | None) -> None:
    from hrsa_jax.runtime.errors import InputError

    if name in _ALONE:
        if path is not None:
            raise InputError(f"{name} writes nothing: leave --workdir out")
    elif not path:
        raise InputError("--workdir is missing: name the folder of this run, such as --workdir=runs/first")
    elif "://" in path:
        raise InputError(f"--workdir={path} is not a folder: name one on a disk, and copy it when the run has ended")


def _explained(program: Callable[[], int]) -> int:
    """The program's exit status; what a user can mend is said in one sentence."""
    from hrsa_jax.runtime import noise
    from hrsa_jax.runtime.errors import InputError, Interrupted
    from hrsa_jax.runtime.processes import LOST_PEER, lost_peer

    try:
        return program()
    except InputError as error:
        sentence = lost_peer(error)  # a checkpoint cannot be written without the others, say
        noise.say(sentence or f"error: {error}")
        return LOST_PEER if sentence else 2
    except KeyboardInterrupt:
        noise.say("stopped by Ctrl-C: run the same command again to continue")
        return 130
    except Interrupted as end:
        noise.say(f"{end}: run the same command again to continue")
        return 143
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        noise.say(
            f"error: {os.strerror(error.errno or 0)}{where}: free space or fix permissions, then run the same command "
            "again; finished stages are kept"
        )
        return 2
    except Exception as error:
        sentence = lost_peer(error)
        if sentence is None:
            raise
        noise.say(sentence)
        return LOST_PEER


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with one sentence and status 2 for whatever is wrong in flags or config overrides.

    Overrides of settings that the config file does not write down are kept in `_ADDED`: they have their defaults in
    the experiment's dataclasses, which know the right names.
    """
    if any(argument in ("--help", "--helpfull", "--helpshort", "-h") for argument in argv):
        try:
            return app.parse_flags_with_usage(argv)
        except SystemExit:
            sys.exit(0)  # absl's status for help is 1
    try:
        given = _joined(argv)
        _parsed([argument for argument in given if not argument.lstrip("-").startswith("config.")])
        file, known = flags.FLAGS["config"].value, []
        _ADDED.clear()
        for argument in given:
            override = _OVERRIDE.fullmatch(argument)
            value = _written(file, override[1]) if override and file is not None else None
            if override and override[2] is not None and value is _ABSENT:
                _ADDED[override[1]] = override[2]
                continue
            if override and isinstance(value, tuple) and re.fullmatch(r"-?\d+", override[2] or ""):
                # ml_collections takes seeds=3 for seeds=(3,); whoever writes it may mean three of them.
                raise flags.Error(
                    f"{argument} is one number where a list belongs: write ({override[2]},) or all of them"
                )
            known.append(argument)
        flags.FLAGS.unparse_flags()
        return _parsed(known)
    except (AttributeError, KeyError) as error:  # an override of a setting that the config file does not have
        named = re.search(r"'(\w+)'.*?(?:Did you mean \"(\w+)\"|$)", str(error).replace("\\", ""), re.DOTALL)
        hint = f", did you mean {named[2]!r}" if named and named[2] else ""
        text = _inside_config_file(error) or f"the config has no setting {named[1] if named else error!r}{hint}"
    except OSError as error:  # overrides of a config file that cannot be loaded
        text = _unloadable(argv, error)
    except (flags.Error, TypeError, ValueError, IndexError) as error:
        text = " ".join(str(error).split()).rstrip(".:? ")
        if "Error whilst parsing config file" in text:
            text = _unloadable(argv, error)
        wanted = re.fullmatch(r"flag --([^:]*): (invalid literal for int|could not convert string to float).*", text)
        if wanted:
            text = f"--{wanted[1]} is not {'a whole number' if 'int' in wanted[2] else 'a number'}"
    except Exception as error:
        text = _inside_config_file(error)
        if not text:
            raise
    print(f"error: {text}: correct the command (settings are listed in the config file)", file=sys.stderr)
    sys.exit(2)


def _inside_config_file(error: Exception) -> str:
    """Where an error within a config file's own code is; empty where it is elsewhere."""
    frames = traceback.extract_tb(error.__traceback__)
    if "get_config" not in (frame.name for frame in frames):
        return ""
    return f"{frames[-1].filename} line {frames[-1].lineno}: {type(error).__name__}: {error}"


def _parsed(argv: list[str]) -> list[str]:
    """absl's parser; ml_collections looks for overrides in sys.argv."""
    given, sys.argv = sys.argv, argv
    try:
        return flags.FLAGS(argv)
    finally:
        sys.argv = given


def _joined(argv: list[str]) -> list[str]:
    """`--config.NAME VALUE` as one word, like `--config.NAME=VALUE`."""
    out: list[str] = []
    for argument in argv:
        if out and re.fullmatch(r"--?config\.[^=]+", out[-1]) and not argument.startswith("--"):
            out[-1] += f"={argument}"
        else:
            out.append(argument)
    return out


def _written(config: Any, path: str) -> Any:
    """What the config file gives to `path`, or `_ABSENT`."""
    above = "config"
    for name in path.split("."):
        if not hasattr(config, "keys"):
            if config is None:
                return _ABSENT
            raise flags.Error(f"--config.{path}: {above} is one setting, not a group of settings")
        above += f".{name}"
        if name not in config:
            return _ABSENT
        config = config[name]
    return config


def _with_added(config: dict[str, Any]) -> dict[str, Any]:
    """The config file's settings and those that only the command line gives."""
    from hrsa_jax.runtime.errors import InputError

    for path, text in _ADDED.items():
        *groups, name = path.split(".")
        inside: Any = config
        for group in groups:
            if inside.get(group) is None:
                inside[group] = {}
            inside = inside[group]
            if not isinstance(inside, dict):
                raise InputError(f"config.{path}: {group} is no group of settings")
        try:
            inside[name] = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            inside[name] = text
    return config


def _load_config() -> dict[str, Any]:
    from hrsa_jax.runtime.errors import InputError

    try:
        return _with_added(_CONFIG.value.to_dict())
    except OSError as error:
        raise InputError(f"{_unloadable(sys.argv, error)}: check its path and content") from error


def _unloadable(argv: list[str], error: Exception) -> str:
    """ml_collections reports a missing file and an error inside it alike, over many lines."""
    path = ""
    for item, following in zip(argv, [*argv[1:], ""], strict=True):
        given = re.fullmatch(r"--?config(?:=(.*))?", item)
        if given:
            path = given[1] if given[1] is not None else following
    last = str(error).strip().splitlines()[-1].strip()
    why = last if os.path.exists(path.partition(":")[0]) else "there is no such file"
    return f"config file {path!r} cannot be loaded ({why})"


def _command() -> str:
    """The command to repeat this run in a folder of its own, as a shell takes it."""
    shown, skip = [], False
    for argument in sys.argv[1:]:
        workdir = re.fullmatch(r"--?workdir(=.*)?", argument, re.DOTALL)
        if not (skip or workdir):
            shown.append(argument)
        skip = workdir is not None and workdir[1] is None  # its value is the next word
    return " ".join(map(_quoted, ["python", "launch.py", *shown, "--workdir=NEW_FOLDER"]))


def _quoted(word: str) -> str:
    """The word as a shell takes it; one with single quotes, as tuples of texts have, in double quotes where it can."""
    return f'"{word}"' if "'" in word and not re.search(r'["$`\\!]', word) else shlex.quote(word)


def _quiet_libraries(*, completely: bool) -> None:
    """Library messages are not for the user of a study; errors still are.

    completely: their warnings as well, for runs that have no log file to keep them, and for several processes, where
    what is printed below Python tells that one of them is lost (runtime/processes.py) and is not caught.
    """
    from hrsa_jax.runtime import noise

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if flags.FLAGS.verbosity > noise.NORMAL:
        logging.getLogger().setLevel(logging.INFO)
        return
    os.environ.setdefault("TQDM_MININTERVAL", "30")  # their bars end in the log file
    logging.getLogger().setLevel(logging.WARNING)
    if completely:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        warnings.filterwarnings("ignore")
        for name in ("jax", "orbax", "absl", "transformers", "mteb", "datasets", "sentence_transformers", "httpx"):
            logging.getLogger(name).setLevel(logging.ERROR)


def _set_up_devices() -> None:
    """Keeps compiled programs between runs."""
    import jax

    cache = os.environ.get("HRSA_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "hrsa_jax")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=_parse_flags)
