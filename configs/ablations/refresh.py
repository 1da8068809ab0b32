r"""How stale may the subspace be?

Asks how the steps between refreshes govern stability and speed. Expected: the
subspace turns slowly, so that tens of steps cost little; one that is never refreshed
lets the sharp directions of the present grow unseen by the projection.

About 6 minutes with preset "cpu" on two busy CPU cores.

  python -m bulk_sgd.sweep --config=configs/ablations/refresh.py:cpu \
      --workdir=runs/refresh
  python -m bulk_sgd.report --workdir=runs/refresh
"""

from bulk_sgd.lab.sweep import grid
from configs.ablations.base import SEEDS, base_config, is_small


def get_config(preset: str = "cpu"):
    """The base config of the axis."""
    return base_config(preset, "Refresh interval")


def get_sweep(preset: str = "cpu"):
    """The cells of the axis."""
    steps = (1, 5, 20, 100, 1_000) if is_small(preset) else (1, 10, 100, 1_000, 10_000)
    return grid.product(grid.values("subspace.refresh_every", steps), SEEDS)
