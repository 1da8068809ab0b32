r"""Does a cheaper subspace change where Bulk-SGD ends?

Asks whether Bulk-SGD with solvers of one matvec per step and less ends where it does
with the exact subspace of the full data at every step: the loss 2,000 steps after the
fork, over three seeds. They do where Bulk-SGD is stable (learning rate 0.02). At the
base rate of 0.1 it is not, with the exact subspace least of all: `docs/solvers.md`.

About 15 minutes with preset "cpu" on two CPU cores. Not part of `scripts/reproduce.sh`.

  python -m bulk_sgd.sweep --config=configs/ablations/solver.py:cpu \
      --workdir=runs/solver
  python -m bulk_sgd.report --workdir=runs/solver
"""

from bulk_sgd.lab.sweep import grid
from configs.ablations.base import SEEDS, base_config, is_small


def get_config(preset: str = "cpu"):
    """The base config of the axis."""
    config = base_config(preset, "Solver")
    config.arms = ("sgd", "bulk_sgd")
    config.num_steps = config.switch.step + 2_000
    config.subspace.refresh_every = 1
    config.stability.rounds = 0
    return config


def get_sweep(preset: str = "cpu"):
    """The cells of the axis."""
    is_small(preset)
    streaming = {"subspace.solver": "streaming", "subspace.data": "batch"}
    seldom = {"subspace.every": 4, "subspace.gain": 0.2}
    cells = [
        {"subspace.solver": "lanczos"},
        {"subspace.solver": "lanczos", "subspace.refresh_every": 50},
        {"subspace.solver": "power"},
        {"subspace.solver": "power", "subspace.along": "update"},
        {"subspace.solver": "power", "subspace.drift": 0.1},
        streaming,
        streaming | seldom,
        streaming | seldom | {"subspace.factors": 4},
    ]
    return grid.product(cells, SEEDS)
