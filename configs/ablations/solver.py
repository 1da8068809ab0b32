r"""Does a cheaper subspace change where Bulk-SGD ends?

Asks whether Bulk-SGD with solvers of one matvec per step and less ends where it does
with the exact subspace of the full data at every step: the loss 2,000 steps after the
fork, over three seeds. They do where Bulk-SGD is stable (learning rate 0.02). At the
base rate of 0.1 it is not, with the exact subspace least of all: `docs/solvers.md`.

The preset "decoder" asks whether a basis in factors changes where training ends. It
trains the language model of `configs/char_lm.py` for 400 steps after a fork at step
100, with `streaming()` on dense vectors and in factors, over three seeds.

About 15 minutes with preset "cpu" on two CPU cores. Not part of `scripts/reproduce.sh`.

  python -m bulk_sgd.sweep --config=configs/ablations/solver.py:cpu \
      --workdir=runs/solver
  python -m bulk_sgd.sweep --config=configs/ablations/solver.py:decoder \
      --workdir=runs/solver_decoder
  python -m bulk_sgd.report --workdir=runs/solver
"""

from bulk_sgd.lab.sweep import grid
from configs import char_lm
from configs.ablations.base import SEEDS, base_config, is_small


def get_config(preset: str = "cpu"):
    """The base config of the axis."""
    if preset == "decoder":
        return _decoder()
    config = base_config(preset, "Solver")
    config.arms = ("sgd", "bulk_sgd")
    config.num_steps = config.switch.step + 2_000
    config.subspace.refresh_every = 1
    config.stability.rounds = 0
    return config


def get_sweep(preset: str = "cpu"):
    """The cells of the axis."""
    streaming = {"subspace.solver": "streaming", "subspace.data": "batch"}
    seldom = {"subspace.every": 4, "subspace.gain": 0.2}
    in_factors = streaming | seldom | {"subspace.factors": 8}
    cheapest = in_factors | {"subspace.every": 16, "subspace.gain": 0.4}
    if preset == "decoder":
        return grid.product([streaming, in_factors, cheapest], SEEDS)
    is_small(preset)
    cells = [
        {"subspace.solver": "lanczos"},
        {"subspace.solver": "lanczos", "subspace.refresh_every": 50},
        {"subspace.solver": "power"},
        {"subspace.solver": "power", "subspace.along": "update"},
        {"subspace.solver": "power", "subspace.drift": 0.1},
        streaming,
        streaming | seldom,
        in_factors,
        cheapest,
    ]
    return grid.product(cells, SEEDS)


def _decoder():
    config = char_lm.get_config()
    config.name = "Solver, decoder"
    config.arms = ("bulk_sgd", "scales(0.5, 2)")
    config.num_steps, config.switch.step, config.eval_every = 500, 100, 100
    config.model.scan_layers = True  # compiles faster
    config.subspace.refresh_every = 1
    config.checkpoint.every = 0  # a cell takes a minute
    config.progress = config.tensorboard = False
    return config
