r"""Which data must the Hessian see, and how exactly must the subspace be known?

Asks what the subspace costs and gives when it is exact at every step, stale, that of
a fixed subset of the training set, that of the current mini-batch, or a running
average over mini-batches (streaming). Expected: subsets and streaming serve nearly as
well as the full set; the Hessian of one mini-batch is a different, noisy subspace.

About 9 minutes with preset "cpu" on two busy CPU cores.

  python -m bulk_sgd.sweep --config=configs/ablations/curvature_data.py:cpu \
      --workdir=runs/curvature_data
  python -m bulk_sgd.report --workdir=runs/curvature_data
"""

from bulk_sgd.lab.sweep import grid
from configs.ablations.base import MAIN_ARMS, SEEDS, base_config, is_small


def get_config(preset: str = "cpu"):
    """The base config of the axis."""
    config = base_config(preset, "Curvature data and solver")
    config.arms = MAIN_ARMS
    return config


def get_sweep(preset: str = "cpu"):
    """The cells of the axis."""
    stale = 10
    subsets = (100, 300) if is_small(preset) else (500, 2_000)
    cells = [
        {"subspace.data": "full", "subspace.refresh_every": 1},
        {"subspace.data": "full", "subspace.refresh_every": stale},
        *(
            {
                "subspace.data": "subset",
                "subspace.subset_size": size,
                "subspace.refresh_every": stale,
            }
            for size in subsets
        ),
        {"subspace.data": "batch", "subspace.refresh_every": 1},
        {
            "subspace.data": "batch",
            "subspace.refresh_every": 1,
            "subspace.solver": "streaming",
        },
    ]
    return grid.product(cells, SEEDS)
