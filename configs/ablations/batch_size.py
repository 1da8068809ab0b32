r"""Does the noise of the mini-batches decide what the subspaces are good for?

Asks how the methods compare from batches of ten to the full training set, at one
learning rate. Expected: Dom-SGD stalls at every size; with the full batch SGD sits at
the edge of stability and the alignment is largest.

About 5 minutes with preset "cpu" on two busy CPU cores.

  python -m bulk_sgd.sweep --config=configs/ablations/batch_size.py:cpu \
      --workdir=runs/batch_size
  python -m bulk_sgd.report --workdir=runs/batch_size
"""

from bulk_sgd.lab.sweep import grid
from configs.ablations.base import SEEDS, base_config, is_small


def get_config(preset: str = "cpu"):
    """The base config of the axis."""
    return base_config(preset, "Batch size")


def get_sweep(preset: str = "cpu"):
    """The cells of the axis."""
    sizes = (10, 50, 200, 1_000) if is_small(preset) else (10, 50, 500, 5_000)
    return grid.product(grid.values("batch_size", sizes), SEEDS)
