r"""Does the picture change with the loss?

Asks how the methods compare under squared error, summed or averaged over the classes,
and under cross-entropy. Expected: averaging over ten classes is a learning rate ten
times smaller, far from the edge of stability; under cross-entropy the dominant
subspace shrinks late in training, and the methods keep their order.

About 3 minutes with preset "cpu" on two busy CPU cores.

  python -m bulk_sgd.sweep --config=configs/ablations/loss.py:cpu \
      --workdir=runs/loss
  python -m bulk_sgd.report --workdir=runs/loss
"""

from bulk_sgd.lab.sweep import grid
from configs.ablations.base import SEEDS, base_config, is_small


def get_config(preset: str = "cpu"):
    """The base config of the axis."""
    return base_config(preset, "Loss")


def get_sweep(preset: str = "cpu"):
    """The cells of the axis."""
    is_small(preset)
    losses = [
        {"loss.name": "mse", "loss.reduction": "half_sum"},
        {"loss.name": "mse", "loss.reduction": "mean"},
        {"loss.name": "cross_entropy", "loss.reduction": "half_sum"},
    ]
    return grid.product(losses, SEEDS)
