"""Runs written by hand, as files; shared by the tests of reports."""

import json
import math

from bulk_sgd.lab.report.results import PREFIX

SCALES = {
    "sgd": ("SGD", 1.0, 1.0),
    "dom_sgd": ("Dom-SGD", 1.0, 0.0),
    "bulk_sgd": ("Bulk-SGD", 0.0, 1.0),
    "bulk_path(0.5)": ("Bulk path α = 0.5", 0.5, 1.0),
    "scales(0.5,1.5)": ("Scales (0.5, 1.5)", 0.5, 1.5),
}
SWITCH, END = 100, 200
ENDS = {"sgd": 0.1, "dom_sgd": 0.49, "bulk_sgd": 0.101}


def row(arm, step, loss, **others):
    start = 0 if arm == PREFIX else SWITCH
    top = 150 + step / 10 if math.isfinite(loss) else math.nan
    values = {
        "arm": arm,
        "step": step,
        "train_loss": loss,
        "test_accuracy": 0.9 + step / 10_000,
        "alignment_update": 0.2 if step == SWITCH else 0.8 + (step % 20) / 100,
        "alignment_gradient": 0.9,
        # Eigenvalues are rarer than losses.
        "eigenvalues": None if step % 20 else [top, top / 2, top / 4],
        "kept": 3,
        "sharpness": None if step % 20 else top,
        "sharpness_ratio": None if step % 20 else 0.01 * top,
        "matvecs": 12 * (step - start),
        "failed_refreshes": 0,
        "seconds": 0.5 * (step - start),
        "seconds_curvature": 0.4 * (step - start),
        "something_new": [1, 2],
    }
    values |= others
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in values.items()
    }


def write_run(workdir, ends=ENDS, until=None, tail="", diverged=(), **info):
    """A run whose arms go geometrically from the loss at the fork to `ends`."""
    rows = [row(PREFIX, s, 2.0 * 4 ** (-s / SWITCH)) for s in range(0, SWITCH + 1, 10)]
    arms = {}
    for name, end in ends.items():
        label, a, b = SCALES[name]
        last = (until or {}).get(name, END)
        for step in range(SWITCH, last + 1, 10):
            share = (step - SWITCH) / (END - SWITCH)
            rows.append(row(name, step, 0.5 * (end / 0.5) ** share))
        status = "complete" if last == END else "interrupted"
        if name in diverged:
            status, last = "diverged", last + 10
            rows.append(row(name, last, math.nan, alignment_update=None))
        if last < SWITCH:
            status, last = "pending", SWITCH
        arms[name] = {
            "label": label,
            "formula": f"(a, b) = ({a:g}, {b:g})",
            "dominant_scale": a,
            "bulk_scale": b,
            "status": status,
            "last_step": last,
        }
    record = {
        "status": "complete",
        "name": "mnist",
        "config": {"model": {"hidden": [200, 200]}},
        "command": "python -m bulk_sgd.main --config=configs/mnist.py",
        "versions": {"jax": "0.10.2"},
        "device": "cpu x 2",
        "num_params": 199_210,
        "num_train": 5000,
        "learning_rate": 0.01,
        "rank": 3,
        "switch": {"step": SWITCH, "reason": "alignment 0.953 > 0.95"},
        "loss_label": "MSE (sum over classes)",
        "prefix": {"status": "complete", "last_step": SWITCH},
        "arms": arms,
    }
    workdir.mkdir(exist_ok=True)
    (workdir / "run.json").write_text(json.dumps(record | info))
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    (workdir / "metrics.jsonl").write_text(lines + tail)
    return workdir


def edit_rows(workdir, change):
    """Replaces each row of metrics by what `change` makes of it."""
    metrics = workdir / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))


KINDS = {
    "complete": {"ends": dict.fromkeys(SCALES, 0.1)},
    "diverged": {
        "ends": {"sgd": 0.1, "bulk_sgd": 1e30},
        "until": {"bulk_sgd": 150},
        "diverged": ["bulk_sgd"],
    },
    "interrupted": {
        "until": {"dom_sgd": 150, "bulk_sgd": 0},
        "tail": '{"arm": "dom_sgd", "step": 160, "train_l',
        "status": "interrupted",
        "reason": "one was lost",
    },
    "no_arms": {"ends": {}, "switch": None, "status": "running"},
    "bare": {"ends": {}, **dict.fromkeys(["rank", "learning_rate", "switch"])},
}
