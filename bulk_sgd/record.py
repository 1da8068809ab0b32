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

FILE = "run.json"
RUNNING, COMPLETE, INTERRUPTED = "running", "complete", "interrupted"
DIVERGED, FAILED, PENDING = "diverged", "failed", "pending"


def plain(config) -> dict:
    """A ConfigDict as JSON holds it: nested dicts, lists for tuples."""
    return json.loads(json.dumps(config.to_dict()))


def differences(left, right, path="config") -> list[str]:
    """Dotted names of the fields in which two plain configs differ."""
    if not (isinstance(left, dict) and isinstance(right, dict)):
        return [] if left == right else [path]
    found = []
    for name in sorted(left.keys() | right.keys()):
        if name in left and name in right:
            found += differences(left[name], right[name], f"{path}.{name}")
        else:
            found.append(f"{path}.{name}")
    return found


def provenance() -> dict:
    """Command, commit, versions and devices of this process."""
    packages = ("bulk_sgd", "flax", "jax", "jaxlib", "numpy", "optax")
    devices = jax.devices()
    return {
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "git": _commit(),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in packages},
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
    """Writes the record; a reader sees the old one or the new one, never a part.

    Of several processes process 0 alone writes.
    """
    if jax.process_index() != 0:
        return
    path = pathlib.Path(workdir) / FILE
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    partial.replace(path)


def claim(workdir, config: dict) -> dict | None:
    """Prepares `workdir` for a run of `config`.

    What an unfinished run of the same config left is moved to `attempts/N`.

    Returns:
      The record of a finished run of the same config, or None to go ahead.

    Raises:
      ValueError: if the folder holds a run of another config.
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    earlier = read(workdir)
    if earlier is None:
        return None
    changed = differences(earlier["config"], config)
    if changed:
        raise ValueError(
            f"workdir {str(workdir)!r} holds a run of another config, which differs in "
            f"{', '.join(changed)}; choose another workdir."
        )
    if earlier["status"] in (COMPLETE, DIVERGED):
        return earlier
    attempts = workdir / "attempts"
    attempts.mkdir(exist_ok=True)
    archive = attempts / str(1 + len(list(attempts.iterdir())))
    archive.mkdir()
    for path in list(workdir.iterdir()):
        if path != attempts:
            path.rename(archive / path.name)
    print(f"An unfinished run was there; its files are in {archive}.", file=sys.stderr)
    return None


def _program():
    """The words that started this process, without its arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return ["python", "-m", spec.name.removesuffix(".__main__")]
    return ["python", pathlib.Path(sys.argv[0]).name]


def _version(name):
    module = __import__(name)
    return getattr(module, "__version__", "unknown")


def _commit():
    folder = pathlib.Path(__file__).parent
    try:
        run = lambda *words: subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        # An installed copy inside some other project's tree is not that project.
        if not run("ls-files", pathlib.Path(__file__).name):
            return None
        dirty = "-dirty" if run("status", "--porcelain", "--", ".") else ""
        return run("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return None
