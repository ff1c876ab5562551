"""Several processes as one run: who joins whom, and what ends the others when one dies.

JAX's coordination service notices a dead process within HEARTBEAT_SECONDS and aborts the others, with a page of C++
on stderr. `supervised` therefore runs the program in a child: the parent, which holds no device, says in one sentence
what happened and gives an exit status.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hrsa_jax.runtime import noise
from hrsa_jax.runtime.errors import InputError

HEARTBEAT_SECONDS = 30
JOIN_SECONDS = 300  # hosts of a pod start minutes apart
LOST_PEER = 75  # exit status: try again (EX_TEMPFAIL)
_LEAVE_SECONDS = 10
_END_SECONDS = 7 * 24 * 3600  # a process that is done waits for the others, however long they write reports

_FATAL = re.compile(rb"^F\d{4} ")
_COORDINATION = re.compile(rb"coordination_service|distributed[_ ]service|CoordinationService|coordination service")
_GREETING = re.compile(rb"\[Gloo\]|peer ranks")  # of every new group of devices, from several threads at once
_TRANSPORT = ("gloo", "nccl", "connection closed", "connection reset", "coordination", "heartbeat", "unavailable:")


_here = {"index": 0, "count": 1}  # kept here, because asking JAX would start its backend


def index() -> int:
    """This process's number; the one numbered 0 writes pages, tables and markers."""
    return _here["index"]


def count() -> int:
    """Processes of this run."""
    return _here["count"]


@dataclass(frozen=True)
class Joining:
    """How this process finds the others. how, process: for messages; arguments: of jax.distributed.initialize."""

    how: str
    process: str
    arguments: dict[str, Any]


def joining(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str] = os.environ,
    *,
    on_tpu: bool | None = None,
) -> Joining | None:
    """What to join, or None for a process alone: the flags win, then SLURM's variables, then TPU metadata.

    Args:
        coordinator, num_processes, process_id: the command's flags. `--num_processes=1` says: alone, whatever the
            environment holds.
        on_tpu: whether this machine has TPU chips (None: look).

    Raises:
        InputError: flags that do not go together.
    """
    given = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    if num_processes == 1 and process_id in (None, 0):
        return None
    if any(value is not None for value in given.values()):
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise InputError(
                "--coordinator, --num_processes and --process_id go together: give all three "
                f"({', '.join(missing)} missing)"
            )
        assert coordinator is not None
        assert num_processes is not None
        assert process_id is not None
        if not re.fullmatch(r".+:\d+", coordinator):
            raise InputError(f"--coordinator={coordinator} is not host:port: name process 0's host and a free port")
        if not 0 <= process_id < num_processes:
            raise InputError(
                f"--process_id={process_id} does not fit --num_processes={num_processes}: processes count from 0"
            )
        found = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
        return Joining(
            f"--coordinator={coordinator}", str(process_id), {**found, "cluster_detection_method": "deactivate"}
        )
    if int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in environment:  # inside srun
        return Joining(
            "SLURM",
            environment.get("SLURM_PROCID", "?"),
            {"cluster_detection_method": "slurm", **_slurm_devices(environment)},
        )
    if "tpu" in (environment.get("JAX_PLATFORMS") or "tpu") and (_has_tpu() if on_tpu is None else on_tpu):
        return Joining("TPU metadata", environment.get("TPU_WORKER_ID", "on this host"), {})
    return None


def join(how: Joining) -> None:
    """Meets the other processes; returns when all are there.

    Raises:
        InputError: they did not come, or the address cannot be used.
    """
    import jax

    if "cpu" in (os.environ.get("JAX_PLATFORMS") or ""):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **how.arguments,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_END_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        if not how.arguments and "coordinator_address should be defined" in str(error):
            return  # a TPU machine of its own
        raise InputError(
            f"the processes of this run did not meet within {JOIN_SECONDS} s by {how.how} "
            f"({str(error).strip().splitlines()[0][:160]}): start all of them with the same command, and check that "
            "process 0's address can be reached"
        ) from error
    _here.update(index=jax.process_index(), count=jax.process_count())


def agreed(value: Any) -> Any:
    """Process 0's value (JSON) in every process, which all wait for; alone, the value as it is."""
    if count() == 1:
        return value
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode() if index() == 0 else b"", np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    held = text if index() == 0 else np.zeros(length, np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(held), np.uint8)))


@contextmanager
def written_once(folder: Path) -> Iterator[Path]:
    """Where to write a folder that all processes compute: process 0's is kept, the others' are thrown away.

    When the block ends, process 0 is done everywhere.
    """
    if index() == 0:
        yield folder
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch) / folder.name
    agreed(None)


@contextmanager
def sigterm_ends() -> Iterator[None]:
    """While the block runs, SIGTERM ends the process at once, with a sentence and status 143.

    No exception is raised: one that meets a callback of the garbage collector's is lost, and the run goes on. What is
    on the disk is complete at every moment.
    """

    def end(*_: object) -> None:
        noise.say("stopped by SIGTERM: run the same command again to continue")
        os._exit(143)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def sigterm_asks() -> Iterator[Callable[[int], bool]]:
    """While the block runs, SIGTERM kills nobody: the function it yields, called with the number of each step, is True
    from the step on at which to stop, the same in all processes."""
    if count() > 1:
        from jax.experimental import multihost_utils

        asked = False

        def reached(step: int) -> bool:
            nonlocal asked
            asked = asked or multihost_utils.reached_preemption_sync_point(step)
            return asked

        yield reached
        return
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield lambda step: False
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield lambda step: event.is_set()
    finally:
        signal.signal(signal.SIGTERM, previous)


def lost_peer(error: BaseException) -> str | None:
    """The sentence for an error that another process's end caused, at once or further up; None for any other error."""
    import jax

    cause: BaseException | None = error
    while cause is not None and count() > 1:
        if isinstance(cause, jax.errors.JaxRuntimeError) and any(word in str(cause).lower() for word in _TRANSPORT):
            return _sentence(str(index()))
        cause = cause.__cause__ or cause.__context__
    return None


def _sentence(process: str) -> str:
    return (
        f"error: process {process} lost another process of this run, which ended or cannot be reached: see its own "
        "messages, then start all processes again with the same command (they continue from the last checkpoint)"
    )


def supervised(program: Callable[[], int], process: str) -> int:
    """Runs `program` in a child process and returns its exit status; when other processes die, says so.

    Signals are passed on to the child, and the child dies with its parent. Of what libraries print, the report
    of a lost process is left out.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pipe, pipe_end = os.pipe()
    alive, alive_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(pipe)
        os.close(alive_end)
        _run_child(program, pipe_end, alive)
    os.close(pipe_end)
    os.close(alive)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: os.kill(child, received))
    withheld: list[bytes] = []
    reader = threading.Thread(target=_pass_on, args=(pipe, withheld), daemon=True)
    reader.start()
    _, status = os.waitpid(child, 0)
    reader.join(timeout=5)
    code = os.waitstatus_to_exitcode(status)
    text = b"".join(withheld)
    if _COORDINATION.search(text) and code != 0:
        print(_sentence(process), file=sys.stderr, flush=True)
        return LOST_PEER
    sys.stderr.buffer.write(text)
    sys.stderr.flush()
    if code == -signal.SIGKILL:
        print(f"error: process {process} was killed (out of memory?): start all processes again", file=sys.stderr)
    return code if code >= 0 else 128 - code


def _run_child(program: Callable[[], int], pipe: int, alive: int) -> None:
    """The child: what Python prints goes where it did, what libraries print below it goes to the parent."""
    os.setsid()  # Ctrl-C reaches the parent only, which passes it on: once, not twice
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(pipe, 1)
    os.dup2(pipe, 2)
    os.close(pipe)

    def end_with_parent() -> None:
        os.read(alive, 1)  # returns when the parent is gone
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    code = 1
    try:
        code = program()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc(file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if code != LOST_PEER and count() > 1:
        import jax

        if code:  # the others end too, where all met the same error or signal; else they learn of it by our silence
            threading.Timer(_LEAVE_SECONDS, os._exit, (code,)).start()
        jax.distributed.shutdown()  # waits until the others are done
    os._exit(code)


def _pass_on(pipe: int, withheld: list[bytes]) -> None:
    """Copies the child's library messages to stderr, up to those of the coordination service or of a fatal error."""
    with os.fdopen(pipe, "rb") as lines:
        for line in lines:
            if withheld or _FATAL.match(line) or _COORDINATION.search(line):
                withheld.append(line)
            elif not _GREETING.search(line):
                sys.stderr.buffer.write(line)
                sys.stderr.flush()


def _slurm_devices(environment: Mapping[str, str]) -> dict[str, Any]:
    """One task a node uses all its GPUs; JAX's own rule gives each task the one with its number."""
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE") or ""
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    if re.fullmatch(r"1(\(x\d+\))?", per_node) and gpus.isdigit():
        return {"local_device_ids": list(range(int(gpus)))}
    return {}


def _has_tpu() -> bool:
    import glob
    import importlib.util

    return importlib.util.find_spec("libtpu") is not None and bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*"))
