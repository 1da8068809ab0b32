"""Cells and axes of studies written by hand, as files; shared by the tests."""

import json
import math

from bulk_sgd.lab.sweep import workdir as workdir_lib

SCALES = {
    "sgd": (1.0, 1.0),
    "dom_sgd": (1.0, 0.0),
    "bulk_sgd": (0.0, 1.0),
    "bulk_path(0.5)": (0.5, 1.0),
    "scales(0.5,2)": (0.5, 2.0),
}
# Losses at steps 10, 20, …, 50; the fork is at step 10.
LOSSES = {
    "sgd": [1.0, 0.8, 0.6, 0.5, 0.4],
    "dom_sgd": [1.0, 1.0, 1.0, 1.0, 0.97],
    "bulk_sgd": [1.0, 0.7, 0.5, 0.3, 0.2],
    "bulk_path(0.5)": [1.0, 0.8, 0.5, 0.4, 0.3],
    "scales(0.5,2)": [1.0, 0.5, 0.4, 0.3, 0.1],
}


def write_cell(
    workdir, index, arms=SCALES, sharpness=4.0, statuses=None, energies=True, own=False,
    **rates
):  # fmt: skip
    folder = workdir_lib.cell_folder(workdir, index)
    folder.mkdir(parents=True)
    rows = [{"arm": "prefix", "step": 10, "train_loss": 1.0}]
    rows[0] |= {"own/moved": None} if own else {}
    for i, arm in enumerate(arms):
        for j, loss in enumerate(LOSSES[arm]):
            top = sharpness * (1 + i)
            rows.append(
                {
                    "arm": arm,
                    "step": 10 * (j + 1),
                    "train_loss": loss,
                    "eigenvalues": [top, 1.0],
                    "sharpness_ratio": 0.1 * top,
                    "alignment_gradient": 0.8,
                    "alignment_update": 0.7,
                    "matvecs": 20 * j * (2 if arm == "bulk_sgd" else 1),
                }
            )
            if own:  # unknown at the fork, as without a subspace
                rows[-1]["own/moved"] = index + j if j else None
            if energies:
                rows[-1] |= {
                    "hessian/frobenius_share": 0.9,
                    "hessian/trace_share": 0.4,
                }
    info = {
        "status": "complete",
        "learning_rate": 0.1,
        "rank": 2,
        "switch": {"step": 10, "reason": "step 10"},
        "arms": {
            arm: {
                "label": arm,
                "formula": "",
                "dominant_scale": SCALES[arm][0],
                "bulk_scale": SCALES[arm][1],
                "status": (statuses or {}).get(arm, "complete"),
                "stable_rate": rates.get(arm, 0.1),
                "unstable_rate": rates.get(arm, 0.1),
            }
            for arm in arms
        },
    }
    (folder / "run.json").write_text(json.dumps(info))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines)


def edit_info(workdir, index, **changes):
    """Changes the record of a cell."""
    path = workdir_lib.cell_folder(workdir, index) / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_axis(workdir, cells, name="Axis", tune=None):
    workdir.mkdir(parents=True, exist_ok=True)
    content = {"name": name, "about": "Asks?\n\nMore.", "cells": cells, "tune": tune}
    (workdir / workdir_lib.FILE).write_text(json.dumps(content))


def write_tuned(
    workdir, settings, tune=None, field="optimizer.learning_rate", arm="sgd"
):
    """A sweep of one arm; `settings` holds the last losses, one per seed, by label and
    value of the field. A NaN diverged.

    Losses go geometrically from 4 at step 0 to the last one at step 40, in rows of 10
    steps, of 2 matvecs and 0.1 s each; the test loss is twice the training loss.
    """
    cells = []
    for label, by_value in settings.items():
        for value, ends in by_value.items():
            for seed, end in enumerate(ends):
                folder = workdir_lib.cell_folder(workdir, len(cells))
                cells.append({"label": label, field: value, "seed": seed})
                write_straight(folder, end, arm)
    write_axis(workdir, cells, tune=tune)
    return cells


def write_straight(folder, end, arm="sgd", start=4.0, num_steps=40):
    folder.mkdir(parents=True)
    a, b = SCALES[arm]
    status = "diverged" if math.isnan(end) else "complete"
    end = start if math.isnan(end) else end
    rows = [{"arm": "prefix", "step": 0, "train_loss": start, "test_loss": 2 * start}]
    for step in range(0, num_steps + 1, 10):
        loss = start * (end / start) ** (step / num_steps)
        row = {"arm": arm, "step": step, "train_loss": loss, "test_loss": 2 * loss}
        row |= {"matvecs": 2 * step, "seconds": 0.1 * step, "alignment_update": 0.5}
        rows.append(row | {"seconds_curvature": 0.04 * step, "sharpness_ratio": 1.0})
    entry = {"label": arm, "dominant_scale": a, "bulk_scale": b, "status": status}
    info = {"status": status, "learning_rate": 0.1, "switch": {"step": 0}}
    info |= {"rank": 2, "arms": {arm: entry}}
    (folder / "run.json").write_text(json.dumps(info))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines)
