"""The record of a run: what was run, on what, and how it ended, in `run.json`."""

import datetime
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys

import jax

from bulk_sgd.lab.files import atomic, identities, metrics

FILE = "run.json"
RUNNING, COMPLETE, INTERRUPTED = "running", "complete", "interrupted"
DIVERGED, FAILED, PENDING = "diverged", "failed", "pending"
ENDED = (COMPLETE, DIVERGED)  # such a run is never run again

PREFIX = "prefix"  # the name of the stretch before the fork
CHECKPOINTS = "checkpoints"  # the folder of a run's states


def provenance() -> dict:
    """Command, commit, versions and devices of this process."""
    packages = ("bulk_sgd", "flax", "jax", "jaxlib", "numpy", "optax")
    devices = jax.devices()
    return {
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "git": _commit(),
        "versions": {
            "python": platform.python_version(),
            **{name: __import__(name).__version__ for name in packages},
        },
        "device": f"{len(devices)} x {devices[0].device_kind} "
        f"({devices[0].platform}, {os.cpu_count()} host cores)",
        "started": now(),
    }


def now() -> str:
    """Current time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read(workdir) -> dict | None:
    """The record in `workdir`, or None where there is none."""
    path = pathlib.Path(workdir) / FILE
    return json.loads(path.read_text()) if path.exists() else None


def write(workdir, record: dict):
    """Writes the record, on process 0 alone."""
    if jax.process_index() == 0:
        _replace(workdir, record)


def entries(record: dict) -> dict[str, dict]:
    """What a record says of the prefix and of each arm, by name."""
    return {PREFIX: record["prefix"], **record["arms"]}


def end(record: dict, status: str):
    """Changes a record to say how the run has ended, and what of it was under way."""
    found = entries(record).values()
    for entry in found:
        if entry["status"] == RUNNING:
            entry["status"] = status
    seconds = sum(entry.get("seconds", 0.0) for entry in found)
    record |= {"status": status, "ended": now(), "seconds": seconds}


def interrupt(workdir, reason: str):
    """Records that a run was interrupted and why, from any process that sees it."""
    found = read(workdir)
    if found and found["status"] == RUNNING:
        end(found, INTERRUPTED)
        _replace(workdir, found | {"reason": reason})


def make_folder(path, name: str = "workdir") -> pathlib.Path:
    """Makes a folder unless it is there.

    Raises ValueError, which blames the argument `name`, where that fails.
    """
    path = pathlib.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "is a file" if path.is_file() else f"cannot be made: {error.strerror}"
        raise ValueError(
            f"{name} is {str(path)!r}, which {reason}; it must be a folder or the name "
            "of a new one."
        ) from error
    return path


def failed_at_once(workdir) -> bool:
    """Whether the run in `workdir` failed before its first row of metrics."""
    earlier = read(workdir)
    rows = pathlib.Path(workdir) / metrics.FILE
    failed = earlier is not None and earlier["status"] == FAILED
    return failed and not (rows.exists() and rows.stat().st_size)


def begun(workdir) -> dict | None:
    """The record in `workdir` unless the run came to nothing."""
    return None if failed_at_once(workdir) else read(workdir)


def has_fork(workdir) -> bool:
    """Whether the state from which the arms start exists."""
    return (pathlib.Path(workdir) / CHECKPOINTS / "fork" / "0").is_dir()


def has_end(workdir, arm: str) -> bool:
    """Whether a state at the end of an arm exists, from which it can grow."""
    return (pathlib.Path(workdir) / CHECKPOINTS / "ends" / arm).is_dir()


def finished(workdir, config: dict) -> bool:
    """Whether the run in `workdir` has ended and has all that the plain config names.

    Raises ValueError if it lacks only steps or arms, but has no fork to continue from.
    """
    earlier = begun(workdir)
    if earlier is None or earlier["status"] not in ENDED:
        return False
    before = earlier["config"]
    if earlier["status"] == DIVERGED or not identities.changes(before, config):
        return True
    if has_fork(workdir) or identities.conflicts(before, config):
        return False
    raise ValueError(
        f"workdir {str(workdir)!r} holds a finished run without the checkpoint at its "
        "fork (config.checkpoint.every was 0), so it cannot grow; choose another "
        "workdir."
    )


def claim(workdir, identity: identities.Identity, arms: dict) -> dict | None:
    """Prepares `workdir` for a run; returns the record, renamed, if it is finished.

    A finished run of fewer steps or arms goes on from its fork. One that diverged
    before it stays finished, and its record takes up new ones among `arms`: what a
    record says of each arm before it begins, by name. Raises ValueError if the folder
    cannot be made, or holds rows of another config, of other data or of another
    program, or no fork to go on from. Prints a line if this is unknown.
    """
    workdir = make_folder(workdir)
    earlier = begun(workdir)
    if earlier is None:
        return None
    what, doubt = identities.other(earlier, identity)
    if what:
        raise ValueError(
            f"workdir {str(workdir)!r} holds a run of {what}; choose another workdir."
        )
    if doubt:
        print(f"The run in {str(workdir)!r} was {doubt}.", file=sys.stderr)
    if not finished(workdir, identity.config):
        return None
    config, before = identity.config, dict(earlier)
    earlier["name"] = config["name"]
    earlier["config"] = earlier["config"] | {"name": config["name"]}
    if earlier["status"] == DIVERGED:
        earlier["config"] = config
        earlier["arms"] = arms | earlier["arms"]
    if earlier != before:
        write(workdir, earlier)
    return earlier


def archive(workdir):
    """Moves the files of an unfinished run, if any, to `attempts/N`."""
    workdir = pathlib.Path(workdir)
    if read(workdir) is None:
        return
    attempts = workdir / "attempts"
    attempts.mkdir(exist_ok=True)
    place = attempts / str(1 + len(list(attempts.iterdir())))
    place.mkdir()
    for path in list(workdir.iterdir()):
        if path != attempts:
            path.rename(place / path.name)
    print(f"An unfinished run was there; its files are in {place}.", file=sys.stderr)


def _replace(workdir, record):
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    atomic.write_text(pathlib.Path(workdir) / FILE, text)


def _program():
    """The words that started this process, without its arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return ["python", "-m", spec.name.removesuffix(".__main__")]
    return ["python", pathlib.Path(sys.argv[0]).name]


def _commit():
    folder = pathlib.Path(__file__).parents[2]  # the package
    try:
        run = lambda *words: subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        # An installed copy inside some other project's tree is not that project.
        if not run("ls-files", "lab/files/record.py"):
            return None
        places = [".", "../configs"] if run("rev-parse", "--show-prefix") else ["."]
        dirty = "-dirty" if run("status", "--porcelain", "--", *places) else ""
        return run("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return None
