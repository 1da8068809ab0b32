"""Any runs and sweeps side by side, as one axis."""

import json
import os
import pathlib

from bulk_sgd.lab.files import identities
from bulk_sgd.lab.report import page
from bulk_sgd.lab.report.results import read_run
from bulk_sgd.lab.report.study import Axis, Cell, is_study, read_study, show
from bulk_sgd.lab.report.tuned import winners
from bulk_sgd.lab.sweep.grid import LABEL

_LEFT_OUT = ("seed", *identities.IMMATERIAL)


def read_comparison(workdirs, labels=()) -> Axis:
    """The runs and sweeps in `workdirs` as one axis, each with a label.

    Workdirs with the same label count as seeds of one setting. If a sweep has several
    settings, the label of each is appended to the sweep's. A tuned sweep is shown at
    its best values, or as a cell without a run if it has none. If there are several
    sweeps, the labels name them.

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
            axes = read_study(workdir)
            for axis in map(winners, axes):
                groups = axis.groups or {
                    "": [Cell(0, {}, "without a best value", None)]
                }
                whole = f"{label}: {axis.name}" if len(axes) > 1 else label
                for group, members in groups.items():
                    name = f"{whole}: {group}" if len(groups) > 1 else whole
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
    """The fields in which configs differ, with the values of each label, as HTML."""
    fields = {}
    for label, cells in axis.groups.items():
        configs = [cell.run.info.get("config") or {} for cell in cells if cell.run]
        fields[label] = [dict(_flat(config)) for config in configs or [{}]]
    names = dict.fromkeys(
        x for found in fields.values() for flat in found for x in flat
    )
    rows = []
    for name in names:
        found = [[flat.get(name, "–") for flat in flats] for flats in fields.values()]
        found = [{json.dumps(value): show(value) for value in x} for x in found]
        if len({text for values in found for text in values}) > 1:
            rows.append([name, *(", ".join(values.values()) for values in found)])
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
        if not path and name in _LEFT_OUT:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
