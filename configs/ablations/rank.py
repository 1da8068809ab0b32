r"""How many directions are dominant?

Asks what the rank k of the subspace changes; ten is the number of classes. Expected:
Bulk-SGD gains until k reaches the number of outliers of the spectrum, and loses when
the subspace takes directions that SGD makes progress along.

About 22 minutes with preset "cpu" on two busy CPU cores.

  python -m bulk_sgd.sweep --config=configs/ablations/rank.py:cpu \
      --workdir=runs/rank
  python -m bulk_sgd.report --workdir=runs/rank
"""

from bulk_sgd.lab.sweep import grid
from configs.ablations.base import SEEDS, base_config, is_small


def get_config(preset: str = "cpu"):
    """The base config of the axis."""
    return base_config(preset, "Rank k")


def get_sweep(preset: str = "cpu"):
    """The cells of the axis."""
    ranks = (1, 3, 10, 20, 40) if is_small(preset) else (1, 3, 5, 10, 20, 50)
    return grid.product(grid.values("subspace.rank", ranks), SEEDS)
