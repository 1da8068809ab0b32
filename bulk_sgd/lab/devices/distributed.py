"""Several processes as one job: how they start, agree, and end together.

All processes run the same program on the same config, connected by JAX's own runtime.
Process 0 alone reads and writes the workdir, so the others need not see it.
"""

import contextlib
import json
import os
import sys
import time
import traceback

import jax
import numpy as np
from jax.experimental import multihost_utils

from bulk_sgd import checks
from bulk_sgd.lab.devices import relay
from bulk_sgd.lab.files import identities, metrics, record

MODES = ("auto", "on", "off")
_ADDRESS = "JAX_COORDINATOR_ADDRESS"
_COUNT, _INDEX = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# JAX has no public way to ask whether it detects a job, nor an error of its own for it:
# it says this. A test starts JAX without a job and reads it.
_UNDETECTED = "coordinator_address should be defined"
# Seconds in which a process that ends for the same reason as another one does so by
# itself, and in which, after a failed collective, all hear of the loss of one.
_GRACE, _SETTLING = 1.0, 3.0
_relays: list[relay.Relay] = []
runs = set()  # workdirs of the runs under way


def initialize(mode: str):
    """Joins the other processes of the job, before anything uses the devices.

    JAX detects Cloud TPU, GKE, Slurm, Open MPI and Kubernetes. Elsewhere
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID say the same. Without a job the mode "auto" runs the process alone,
    as "off" always does, and "on" raises ValueError.
    """
    checks.one_of("distributed", mode, MODES)
    if mode == "off":
        return
    # Its handler would swallow SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with relay.relayed(_lose) as relays:
            jax.distributed.initialize(**_from_environment())
        _relays.extend(relays)
    except ValueError as error:
        if _UNDETECTED not in str(error):
            raise
        if mode == "on":
            raise ValueError(
                "--distributed is on, but no job was detected: it must run on Cloud "
                "TPU, GKE, Slurm, Open MPI or Kubernetes, or with the environment "
                f"variables {_ADDRESS}, {_COUNT} and {_INDEX}."
            ) from error
        return
    sys.excepthook = _end_job


@contextlib.contextmanager
def job(mode: str):
    """Runs the body as part of a job, whose processes end together.

    A process that fails ends on the spot, and the others notice. An orderly exit would
    wait for them, and they for it.
    """
    initialize(mode)
    try:
        yield
    except SystemExit as end:
        settle(SystemExit)
        if end.code and jax.process_count() > 1:
            _leave(end.code if isinstance(end.code, int) else 1)
        raise
    settle(SystemExit)  # now the others may leave


def settle(kind):
    """Waits where an exception of this type may come from the loss of another process.

    A collective fails when another process is gone. So that this counts as the loss
    that it is, which ends this process, the relay gets the time to notice. A process
    that ends by itself does not mind what is lost.
    """
    if not issubclass(kind, (KeyboardInterrupt, SystemExit)) and _relays:
        time.sleep(_SETTLING)
    while _relays:
        _relays.pop().armed = False


def is_first() -> bool:
    """Whether this is the process that writes: 0, or a lone one."""
    return jax.process_index() == 0


def on_first(fn):
    """Calls `fn` on process 0 and returns its result, fit for JSON, on all processes.

    Raises ValueError on all of them if `fn` raises it or an OSError.
    """
    if jax.process_count() == 1:
        return fn()
    text = b""
    if is_first():
        try:
            text = json.dumps({"value": fn()}).encode()
        except (ValueError, OSError) as error:
            text = json.dumps({"error": str(error)}).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.frombuffer(text.ljust(length, b" ")[:length], np.uint8)
    answer = json.loads(bytes(multihost_utils.broadcast_one_to_all(padded)))
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["value"]


def check_agreement(plain: dict, path: str = "config"):
    """Raises ValueError on all processes unless all have the same plain config.

    JAX trusts them to pass the same values to a program: with two seeds they would
    train a mixture of two runs. Instead of a config it may be another plain dict, at
    another dotted `path`.
    """
    if jax.process_count() == 1:
        return
    changed = identities.differences(on_first(lambda: plain), plain, path)
    differing = multihost_utils.process_allgather(np.bool_(len(changed) > 0))
    if changed:
        raise ValueError(
            f"{', '.join(changed)} on process {jax.process_index()} differs from "
            f"process 0; all processes must have the same {path}."
        )
    if differing.any():
        others = ", ".join(map(str, np.flatnonzero(differing)))
        raise ValueError(
            f"the {path} on process {others} differs from that on process 0; all "
            "processes must have the same."
        )


def claim(workdir, identity: identities.Identity, arms: dict) -> dict | None:
    """`record.claim` by process 0, with its answer or error on all processes.

    They also refuse data or code that are not the same on all processes, and a folder
    that holds more of a run on another host than on that of process 0: the processes
    have changed places, and the run would silently start again.
    """
    check_agreement(identity.fingerprints, "fingerprints")
    if jax.process_count() > 1:
        rows = multihost_utils.process_allgather(np.int32(metrics.count(workdir)))
        furthest = int(rows.argmax())
        if rows[furthest] > rows[0]:
            raise ValueError(
                f"workdir {str(workdir)!r} holds {rows[furthest]} rows of metrics on "
                f"the host of process {furthest} and {rows[0]} on that of process 0, "
                "which reads and writes it for all; copy it there, or use storage that "
                "both see."
            )
    return on_first(lambda: record.claim(workdir, identity, arms))


def whole(array) -> np.ndarray:
    """A host copy of an array, wherever its parts are; called on all processes."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def arrays_from_first(fn, like: list[jax.Array]) -> list[jax.Array]:
    """Host arrays as process 0 reads them, laid out as in `like` over all devices.

    `fn` is called on process 0 alone, so only it needs the files.
    """
    if is_first():
        arrays = [array.astype(x.dtype) for array, x in zip(fn(), like)]
    else:
        arrays = [np.zeros(x.shape, x.dtype) for x in like]
    if jax.process_count() > 1:
        arrays = multihost_utils.broadcast_one_to_all(arrays)
    return [
        jax.make_array_from_callback(x.shape, x.sharding, np.asarray(array).__getitem__)
        for array, x in zip(arrays, like)
    ]


def _from_environment() -> dict:
    """Arguments of `jax.distributed.initialize`, none where no variable is set."""
    if not {_COUNT, _INDEX} & os.environ.keys():
        return {}
    try:
        count, index = int(os.environ[_COUNT]), int(os.environ[_INDEX])
        address = os.environ[_ADDRESS]
        if not 0 <= index < count:
            raise ValueError
    except (KeyError, ValueError) as error:
        values = {name: os.environ.get(name) for name in (_ADDRESS, _COUNT, _INDEX)}
        raise ValueError(
            f"{values} in the environment; these must be host:port of process 0, the "
            "number of processes, and which of them this is, counted from 0."
        ) from error
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


def _lose(host):
    """Ends this process in order, as another one is gone; called from a relay."""
    time.sleep(_GRACE)
    if not _relays:  # this process ends by itself
        return
    who = "a process" if is_first() else "process 0"
    reason = f"{who} on {host}, or the connection to it, was lost"
    for workdir in runs:
        record.interrupt(workdir, reason)
    print(
        f"{reason[0].upper()}{reason[1:]}, so that process {jax.process_index()} ends "
        "too. The same command goes on from the last checkpoint.",
        file=sys.stderr,
    )
    _leave(1)


def _end_job(kind, error, trace):
    """An excepthook: an orderly exit would wait for the other processes."""
    if issubclass(kind, KeyboardInterrupt):
        _leave(130)
    traceback.print_exception(kind, error, trace)
    print(f"Process {jax.process_index()} failed and ends the job.", file=sys.stderr)
    _leave(1)


def _leave(status: int):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
