"""What the sweeps of `configs/pays` share.

Each sweep trains one task, with a grid of learning rates for each inner optimizer and
with three seeds. The solver is `streaming()` in factors, with a product on every 16th
mini-batch. The learning rate rises during the prefix. After the fork it decays to 0 as
a cosine.

A preset is an inner optimizer: "sgd", "momentum", "adamw" or "muon". On the tanh
network, AdamW and Muon have a second setting, with the subspace in their own metric. A
preset with "-quick", such as "adamw-quick", takes 60 steps on 100 examples with one
seed and rank 2, as a test.
"""

import dataclasses
from collections.abc import Callable, Mapping

from bulk_sgd.lab.sweep import grid
from bulk_sgd.lab.sweep.tuning import Tuning

# The recommended `streaming(factors=8, every=16, gain=0.4)` of each mini-batch.
CHEAPEST = {
    "solver": "streaming",
    "data": "batch",
    "refresh_every": 1,
    "factors": 8,
    "every": 16,
    "gain": 0.4,
}
_OPTIMIZERS = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "adamw": {"name": "adamw", "weight_decay": 0.01},
    "muon": {"name": "muon", "momentum": 0.95},
}
RATES = {
    "sgd": (0.1, 0.2, 0.4, 0.8),
    "momentum": (0.01, 0.02, 0.04, 0.08),
    "adamw": (0.001, 0.002, 0.004, 0.008),
    "muon": (0.005, 0.01, 0.02, 0.04),
}
ARMS = "sgd", "bulk_sgd", "scales(0.5, 2)", "scales(0.25, 2)", "accelerated"


@dataclasses.dataclass(frozen=True)
class Pays:
    """The sweep of a task; its file exports `get_config`, `get_sweep` and `tune`.

    `rates` has the first grid of each inner optimizer.
    """

    task: Callable  # returns a config, whose fields of training are replaced
    num_steps: int
    rates: Mapping[str, tuple] = dataclasses.field(default_factory=lambda: RATES)
    fork: int = 100
    warmup: bool = True
    arms: tuple = ARMS
    own_metric: bool = False  # AdamW and Muon also in their own metric

    @property
    def tune(self):
        """How the sweep is tuned."""
        return Tuning("optimizer.learning_rate", reference="sgd")

    def get_config(self, preset: str = "sgd"):
        """The base config of an inner optimizer."""
        optimizer, quick = _parse(preset)
        config = self.task()
        config.name = f"Does it pay around {optimizer}? {config.name}"
        steps, fork = (60, 20) if quick else (self.num_steps, self.fork)
        config.num_steps, config.switch.step = steps, fork
        config.switch.alignment = 0.0
        config.switch.gradient = "update"
        config.eval_every = fork // 2
        deep = config.model.name in ("vit", "decoder")
        config.model.scan_layers = deep and optimizer != "muon"  # compiles faster
        config.optimizer.update(_OPTIMIZERS[optimizer])
        config.optimizer.schedule, config.optimizer.decay_steps = "cosine", steps
        config.optimizer.warmup_steps = fork if self.warmup else 0
        config.subspace.rank = 2 if quick else 10  # so that `accelerated` acts
        config.subspace.update(CHEAPEST)
        config.arms = self.arms
        config.loss.name, config.loss.reduction = "cross_entropy", "sum"
        # These measures take longer than the training.
        config.measures.last_sharpness = config.measures.full_gradient = False
        config.measures.sgd_subspace = False  # to take the time of plain steps
        config.checkpoint.every = 0  # a cell takes a minute
        config.progress = config.tensorboard = False
        if quick:
            config.data.num_train, config.data.num_test = 100, 50
        return config

    def get_sweep(self, preset: str = "sgd"):
        """Rates and seeds; for AdamW and Muon perhaps in their own metric, too."""
        optimizer, quick = _parse(preset)
        rates = self.rates[optimizer][: 2 if quick else None]
        both = self.own_metric and optimizer in ("adamw", "muon")
        return grid.product(
            grid.values("subspace.preconditioned", (False, True)) if both else [{}],
            grid.values("optimizer.learning_rate", rates),
            grid.values("seed", range(1 if quick else 3)),
        )


def _parse(preset):
    optimizer = preset.removesuffix("-quick")
    if optimizer not in _OPTIMIZERS:
        names = ", ".join(_OPTIMIZERS)
        raise ValueError(
            f"preset is {preset!r}; it must be one of {names}, or one with '-quick'."
        )
    return optimizer, optimizer != preset
