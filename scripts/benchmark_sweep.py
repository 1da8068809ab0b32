"""Cells that differ in numbers alone: together, in lockstep, and each by itself."""

import json
import pathlib
import tempfile
import time

import jax
from benchmark_common import median_ratio

from bulk_sgd.lab import config
from bulk_sgd.lab.sweep import grid, sweep

LANES = 8
SINGLE = "each by itself, one compilation each"
SHARED = "one compilation, one after the other (the default)"
LOCKSTEP = "one compilation, in lockstep under vmap (--lanes=8)"


def measure(repeats: int, quick: bool = False) -> dict[str, dict[str, float]]:
    """Seconds of the sweep, compilation included, and how far losses differ.

    Args:
      repeats: rounds, in each of which every way runs once.
      quick: a toy, to try it out.

    Returns:
      A row per way: seconds, the median of their ratio to those of single runs within
      a round, and the largest relative difference of a training loss to theirs.
    """
    base = config.default()
    base.model.hidden = (8,) if quick else (32, 32)
    base.data.num_train = 100 if quick else 1_000
    base.num_steps, base.switch.step, base.eval_every = 200, 0, 50
    base.subspace.refresh_every = 10
    base.arms = ("bulk_sgd",)
    base.loss.reduction = "half_sum"
    base.tensorboard = base.progress = False
    cells = grid.values(
        "optimizer.learning_rate", [0.01 * (i + 1) for i in range(LANES)]
    )
    seconds, losses = {}, {}
    for _ in range(max(repeats, 1)):
        for way in (SINGLE, SHARED, LOCKSTEP):
            took, found = _run(way, base, cells)
            seconds.setdefault(way, []).append(took)
            losses[way] = found
    return {
        way: {
            "seconds": sorted(times)[len(times) // 2],
            "times single": median_ratio(times, seconds[SINGLE]),
            "loss difference": max(
                abs(mine - alone) / abs(alone)
                for mine, alone in zip(losses[way], losses[SINGLE])
            ),
        }
        for way, times in seconds.items()
    }


def _run(way, base, cells):
    quiet = lambda _: None
    with tempfile.TemporaryDirectory() as workdir:
        jax.clear_caches()
        start = time.perf_counter()
        if way == SINGLE:
            for index in range(len(cells)):
                jax.clear_caches()
                sweep.run_sweep(base, cells, workdir, only=index, say=quiet)
        else:
            lanes = len(cells) if way == LOCKSTEP else 1
            sweep.run_sweep(base, cells, workdir, lanes=lanes, say=quiet)
        took = time.perf_counter() - start
        return took, [
            loss for index in range(len(cells)) for loss in _losses(workdir, index)
        ]


def _losses(workdir, index):
    folder = pathlib.Path(sweep.cell_folder(workdir, index))
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["train_loss"] for row in rows]
