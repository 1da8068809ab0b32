r"""How long must SGD run first?

Asks how the length of the prefix and the rule that ends it change what follows: a
fixed step, or the first step at which the average alignment exceeds a threshold
(Song, Ahn and Yun). Each arm has the same number of steps after the fork. Expected:
from the start the subspace says little and Dom-SGD still learns; later it stalls.

About 5 minutes with preset "cpu" on two busy CPU cores.

  python -m bulk_sgd.sweep --config=configs/ablations/warm_up.py:cpu \
      --workdir=runs/warm_up
  python -m bulk_sgd.report --workdir=runs/warm_up
"""

from bulk_sgd.lab.sweep import grid
from configs.ablations.base import SEEDS, base_config, is_small


def get_config(preset: str = "cpu"):
    """The base config of the axis."""
    return base_config(preset, "Warm-up")


def get_sweep(preset: str = "cpu"):
    """The cells of the axis."""
    after = 1_000 if is_small(preset) else 10_000
    lengths = (0, 100, 500, 1_000) if is_small(preset) else (0, 1_000, 3_000, 10_000)
    by_step = grid.zipped(
        grid.values("switch.step", lengths),
        grid.values("num_steps", [length + after for length in lengths]),
    )
    by_alignment = {
        "switch.step": lengths[-1],
        "num_steps": lengths[-1] + after,
        "switch.alignment": 0.8 if is_small(preset) else 0.95,
        "switch.measure_every": 10 if is_small(preset) else 1,
    }
    return grid.product(grid.chain(by_step, [by_alignment]), SEEDS)
