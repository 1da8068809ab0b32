"""The workdir of a sweep: `sweep.json`, and a run's workdir per cell in `cells/NNN`."""

import dataclasses
import json
import pathlib

from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.files import atomic, record

FILE = "sweep.json"


def cell_folder(workdir, index: int) -> pathlib.Path:
    """The workdir of a cell's run."""
    return pathlib.Path(workdir) / "cells" / f"{index:03d}"


def statuses(workdir, indices) -> list[str]:
    """The status of each cell's run, "pending" without one, as process 0 sees it."""

    def status(index):
        found = record.read(cell_folder(workdir, index))
        return found["status"] if found else record.PENDING

    return distributed.on_first(lambda: list(map(status, indices)))


def claim(workdir, base: dict, cells: list[dict], about: str, tune=None):
    """Writes `sweep.json`, if need be over a sweep that failed before a first row."""
    workdir = record.make_folder(workdir)
    content = {
        "name": base["name"],
        "about": about,
        "config": base,
        "cells": cells,
        "added": [],
        "tune": tune and dataclasses.asdict(tune),
    }
    content = json.loads(json.dumps(content))
    if (workdir / FILE).exists():
        earlier = read(workdir)
        changed = _change(earlier, content)
        if changed is None:
            content["added"] = earlier["added"]
            if earlier["tune"] != content["tune"]:
                _write(workdir, content)
            return
        if not _came_to_nothing(workdir, len(earlier["cells"])):
            raise ValueError(
                f"workdir {str(workdir)!r} holds {changed}; choose another workdir."
            )
    _write(workdir, content)


def added(workdir, cells: list[dict]) -> list[dict]:
    """The cells that a tuned sweep has added to `cells`."""
    if not (pathlib.Path(workdir) / FILE).exists():
        return []
    content = read(workdir)
    same = content["cells"] == json.loads(json.dumps(cells))
    return content["added"] if same else []


def read(workdir) -> dict:
    """What `sweep.json` holds: `name`, `about`, `cells`, those `added`, and `tune`."""
    content = json.loads((pathlib.Path(workdir) / FILE).read_text())
    return {"added": [], "tune": None} | content  # early versions lack them


def add(workdir, cells: list[dict]):
    """Adds cells to `sweep.json`, after all others."""
    content = read(workdir)
    _write(workdir, content | {"added": content["added"] + cells})


def _write(workdir, content):
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    atomic.write_text(pathlib.Path(workdir) / FILE, text)


def _change(earlier, content) -> str | None:
    """How the sweep in a workdir differs from the one to run, None if it does not."""
    if earlier["cells"] != content["cells"]:
        return "another sweep"
    if "config" not in earlier:  # early versions did not write it
        return None
    changed = record.changes(earlier["config"], content["config"])
    if not changed:
        return None
    before, now = (_value(x["config"], changed[0]) for x in (earlier, content))
    return f"this sweep with {changed[0]} = {before}, which is now {now}"


def _value(base, path) -> str:
    for name in path.split(".")[1:]:
        base = base.get(name, "absent")
    return repr(base)


def _came_to_nothing(workdir, count) -> bool:
    """Whether at least one cell began, and all that did failed before a first row."""
    folders = [cell_folder(workdir, index) for index in range(count)]
    begun = [folder for folder in folders if record.read(folder) is not None]
    return bool(begun) and all(map(record.failed_at_once, begun))
