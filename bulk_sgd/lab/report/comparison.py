"""Any runs and sweeps side by side, as one axis."""

import os
import pathlib

from bulk_sgd.lab.report import page
from bulk_sgd.lab.report.results import read_run
from bulk_sgd.lab.report.study import Axis, Cell, is_study, read_study, show
from bulk_sgd.lab.report.tuned import winners
from bulk_sgd.lab.sweep.grid import LABEL

# Fields that change no result, and the seed.
_IMMATERIAL = ("seed", "name", "progress", "tensorboard", "checkpoint", "check_memory")


def read_comparison(workdirs, labels=()) -> Axis:
    """The runs and sweeps in `workdirs` as one axis, each with a label.

    Workdirs with the same label count as seeds of one setting. If a sweep has several
    settings, the label of each is appended to the sweep's. A tuned sweep is shown at
    its best values.

    Raises:
      ValueError: if there are labels, but not one for each workdir.
      FileNotFoundError: if a workdir holds neither a run nor a sweep.
    """
    workdirs = [pathlib.Path(workdir) for workdir in workdirs]
    labels = list(labels) or _names(workdirs)
    if len(labels) != len(workdirs):
        raise ValueError(
            f"labels is {','.join(labels)!r}; it must have one label for each of the "
            f"{len(workdirs)} workdirs."
        )
    cells = []
    for label, workdir in zip(labels, workdirs):
        if is_study(workdir):
            for axis in map(winners, read_study(workdir)):
                for group, members in axis.groups.items():
                    name = f"{label}: {group}" if len(axis.groups) > 1 else label
                    cells += [(name, cell.status, cell.run) for cell in members]
        else:
            run = read_run(workdir)
            cells.append((label, str(run.info.get("status")), run))
    cells = [
        Cell(index, {LABEL: label, "seed": index}, status, run)
        for index, (label, status, run) in enumerate(cells)
    ]
    return Axis("comparison", "Comparison", "", cells)


def differences(axis: Axis) -> str:
    """The fields in which the compared configs differ, as an HTML table."""
    fields = {}
    for label, cells in axis.groups.items():
        configs = [cell.run.info.get("config") or {} for cell in cells if cell.run]
        fields[label] = dict(_flat(configs[0])) if configs else {}
    names = dict.fromkeys(name for found in fields.values() for name in found)
    rows = []
    for name in names:
        values = [found.get(name, "–") for found in fields.values()]
        if any(value != values[0] for value in values):
            rows.append([name, *map(show, values)])
    if not rows:
        return ""
    table = page.table("What differs", ["config", *fields], rows, prose=True)
    return "<h3>What differs</h3>\n" + table


def _names(workdirs):
    """The names of folders, or enough of their paths to tell them apart."""
    resolved = [workdir.resolve() for workdir in workdirs]
    names = [path.name for path in resolved]
    if len({*names}) == len(names):
        return names
    shared = os.path.commonpath(resolved)
    return [str(path.relative_to(shared)) for path in resolved]


def _flat(config, path=""):
    for name, value in config.items():
        if not path and name in _IMMATERIAL:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
