r"""Does it matter how close to the edge of stability the fork happens?

Asks how the methods compare at learning rates from far below the stability threshold
to above it; each rate has its own prefix. Expected: at small rates the updates lie
partly in the bulk and Bulk-SGD keeps pace with SGD; towards the threshold the
dominant part of an SGD step only oscillates, so that Bulk-SGD gains.

About 4 minutes with preset "cpu" on two busy CPU cores.

  python -m bulk_sgd.sweep --config=configs/ablations/learning_rate.py:cpu \
      --workdir=runs/learning_rate
  python -m bulk_sgd.report --workdir=runs/learning_rate
"""

from bulk_sgd.lab.sweep import grid
from configs.ablations.base import SEEDS, base_config, is_small


def get_config(preset: str = "cpu"):
    """The base config of the axis."""
    return base_config(preset, "Learning rate")


def get_sweep(preset: str = "cpu"):
    """The cells of the axis."""
    rates = (0.02, 0.05, 0.1, 0.2) if is_small(preset) else (0.003, 0.01, 0.03, 0.1)
    return grid.product(grid.values("optimizer.learning_rate", rates), SEEDS)
