"""The workdir of a sweep: `sweep.json`, and a run's workdir per cell in `cells/NNN`."""

import dataclasses
import json
import pathlib

from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.files import atomic, identities, record
from bulk_sgd.lab.sweep import grid

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
    """Writes `sweep.json`: it is new, grows, or replaces a sweep that failed at once.

    Raises ValueError if the workdir holds another sweep with rows.
    """
    workdir = record.make_folder(workdir)
    content = {
        "name": base["name"],
        "about": about,
        "config": base,
        "cells": cells,
        "added": [],
        "grown": False,
        "tune": tune and dataclasses.asdict(tune),
    }
    content = json.loads(json.dumps(content))
    earlier = read(workdir)
    if earlier:
        heirs = _heirs(earlier, base, content["cells"])
        changed = _change(earlier, content, heirs)
        if changed is None:
            every = _in_order(earlier, content["cells"], heirs)
            count = len(earlier["cells"]) if earlier["added"] else len(every)
            content |= {"cells": every[:count], "added": every[count:]}
            has_more = len(every) > len(earlier["cells"] + earlier["added"])
            content["grown"] = earlier["grown"] or has_more
        elif not _came_to_nothing(workdir, len(earlier["cells"])):
            raise ValueError(
                f"workdir {str(workdir)!r} holds {changed}; choose another workdir."
            )
    if content != earlier:
        _write(workdir, content)


def ordered(workdir, base: dict, cells: list[dict]) -> list[dict]:
    """All cells of a sweep, in the order of the numbers of their folders.

    A cell keeps its number if `sweep.json` has it, or has a cell that grows into it.
    New cells come last. If `sweep.json` is of another sweep, `claim` will refuse it.
    """
    cells = json.loads(json.dumps(cells))
    earlier = read(workdir) if workdir is not None else None
    if earlier is None:
        return cells
    heirs = _heirs(earlier, base, cells)
    others = None in heirs[: len(earlier["cells"])]
    return cells if others else _in_order(earlier, cells, heirs)


def unfinished(workdir, configs: dict[int, dict]) -> list[int]:
    """The indices of cells with something left to run; `configs` are plain.

    Raises:
      ValueError: if a finished cell cannot grow to what its config names.
    """
    done = lambda index: record.finished(cell_folder(workdir, index), configs[index])
    return distributed.on_first(lambda: [i for i in configs if not done(i)])


def read(workdir) -> dict | None:
    """What `sweep.json` holds, None where there is none.

    Its keys are `name`, `about`, `config`, `cells`, `tune`, `grown`, whether a later
    command brought cells, and `added`: the cells that tuning has added, or growth after
    tuning.
    """
    path = pathlib.Path(workdir) / FILE
    if not path.exists():
        return None
    # Early versions lack them.
    return {"added": [], "grown": False, "tune": None} | json.loads(path.read_text())


def add(workdir, cells: list[dict]):
    """Adds cells to `sweep.json`, after all others."""
    content = read(workdir)
    _write(workdir, content | {"added": content["added"] + cells})


def _write(workdir, content):
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    atomic.write_text(pathlib.Path(workdir) / FILE, text)


def _heirs(earlier, base, cells) -> list[int | None]:
    """The index of the cell that each earlier cell equals, or else grows into.

    As many grow as can: one gives up a cell to another if it also grows into a third.
    """
    before = earlier["cells"] + earlier["added"]
    old_base = earlier.get("config", base)  # early versions did not write it
    old, new = _overridden(old_base, before), _overridden(base, cells)
    source: dict[int, int] = {}  # the earlier cell by the index of its heir
    for index, config in enumerate(old):
        free = (i for i in range(len(new)) if i not in source)
        same = (i for i in free if not identities.changes(config, new[i]))
        if (heir := next(same, None)) is not None:
            source[heir] = index
    equal = set(source)

    def place(index, seen):
        others = [i for i in range(len(new)) if i not in equal]
        for i in sorted(others, key=source.__contains__):  # the free ones first
            if i in seen or identities.conflicts(old[index], new[i]):
                continue
            seen.add(i)
            if i not in source or place(source[i], seen):
                source[i] = index
                return True
        return False

    for index in sorted({*range(len(old))} - {*source.values()}):
        place(index, set())
    heirs = {index: i for i, index in source.items()}
    return [heirs.get(index) for index in range(len(old))]


def _overridden(base, cells):
    return [grid.override(base, cell) for cell in cells]


def _in_order(earlier, cells, heirs):
    before = earlier["cells"] + earlier["added"]
    kept = [cell if i is None else cells[i] for cell, i in zip(before, heirs)]
    return kept + [cell for i, cell in enumerate(cells) if i not in heirs]


def _change(earlier, content, heirs) -> str | None:
    """Why the earlier sweep cannot grow into the new one, None if it can."""
    every = earlier["cells"] + earlier["added"]
    left = [index for index, i in enumerate(heirs) if i is None]
    bases = earlier.get("config", content["config"]), content["config"]
    lost = [every[index] for index in left if index < len(earlier["cells"])]
    if lost:
        for changed in identities.conflicts(*bases):
            return _told(bases, changed)
        return f"another sweep, with a cell {lost[0]} that this one lacks"
    # The others keep their fields, and take the rest from the new base.
    for index in left:
        configs = [grid.override(base, every[index]) for base in bases]
        for changed in identities.conflicts(*configs):
            return f"{_told(bases, changed)} in its cell {index}"
    return None


def _told(bases, changed) -> str:
    before, now = (_value(base, changed) for base in bases)
    return f"this sweep with {changed} = {before}, which is now {now}"


def _value(base, path) -> str:
    for name in path.split(".")[1:]:
        base = base.get(name, "absent")
    return repr(base)


def _came_to_nothing(workdir, count) -> bool:
    """Whether at least one cell began, and all that did failed before a first row."""
    folders = [cell_folder(workdir, index) for index in range(count)]
    begun = [folder for folder in folders if record.read(folder) is not None]
    return bool(begun) and all(map(record.failed_at_once, begun))
