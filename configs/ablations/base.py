"""The setting that all ablations vary, in two sizes.

"cpu": MNIST-5k cut to 1,000 images, a tanh network of 26,506 parameters, 1,500 steps,
of which the prefix takes 500; minutes per axis on two cores. "gpu": the protocol of
Song, Ahn and Yun (arXiv 2405.16002) at full size, 5,000 images, 199,210 parameters,
20,000 steps.

Squared error halved and summed over the classes, batch 50, rank 10, the exact Hessian
of the whole training set, refreshed at every step ("gpu") or every tenth ("cpu"). For
each arm the largest stable learning rate is searched.
"""

from bulk_sgd.lab.config import default
from bulk_sgd.lab.sweep import grid

PRESETS = ("cpu", "gpu")
MAIN_ARMS = ("sgd", "dom_sgd", "bulk_sgd")
ARMS = (*MAIN_ARMS, "scales(0.5, 2)")
SEEDS = grid.values("seed", range(3))


def is_small(preset: str) -> bool:
    """Whether the preset is "cpu"; raises ValueError on one that does not exist."""
    if preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}; it must be one of {PRESETS}.")
    return preset == "cpu"


def base_config(preset: str, name: str):
    """The base config of a preset; `name` titles the axis."""
    config = default()
    config.name = name
    config.model.init = "torch"
    config.loss.reduction = "half_sum"
    config.arms = ARMS
    config.stability.rounds, config.stability.num_steps = 6, 100
    config.progress = config.tensorboard = False
    if is_small(preset):
        config.data.num_train = 1_000
        config.model.hidden = (32, 32)
        config.optimizer.learning_rate = 0.1
        config.num_steps, config.switch.step, config.eval_every = 1_500, 500, 50
        config.subspace.refresh_every = 10
        config.checkpoint.every = 0  # a cell takes seconds
    else:
        config.num_steps, config.switch.step, config.eval_every = 20_000, 10_000, 100
    return config
