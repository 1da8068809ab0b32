"""The largest stable learning rate, by bisection on a log scale."""

import dataclasses
import math

from bulk_sgd.lab.from_config.arms import keeps_subspace
from bulk_sgd.lab.training.loop import Stretch, Trainer
from bulk_sgd.lab.training.run import Run
from bulk_sgd.lab.training.state import TrainState


@dataclasses.dataclass
class Bisection:
    """An interval between a stable and an unstable rate, halved `rounds` times.

    It tries its positive ends first. If the low end is unstable or the high end stable,
    the search ends there, and the rate lies outside.

    Example:
      >>> search = Bisection(0.1, 10.0, rounds=10)
      >>> while search.rate is not None:
      ...     search.answer(search.rate < 2)
      >>> search.stable < 2 <= search.unstable, round(search.stable, 1)
      (True, 2.0)
    """

    low: float
    high: float
    rounds: int
    stable: float | None = None
    unstable: float | None = None

    @property
    def rate(self) -> float | None:
        """The rate to try next, None when the search is over."""
        if self.stable is None:
            return self.low if self.unstable is None else None
        if self.unstable is None:
            return self.high if self.stable == self.low else None
        return math.sqrt(self.stable * self.unstable) if self.rounds else None

    def answer(self, stable: bool):
        """Narrows the interval by the answer for `rate`."""
        rate = self.rate
        if self.stable is not None and self.unstable is not None:
            self.rounds -= 1
        if stable:
            self.stable = rate
        else:
            self.unstable = rate


def find_stable_rates(trainer: Trainer, run: Run, fork: TrainState):
    """Records the largest stable learning rate of each arm, all searched together.

    All trials start from the fork, as `config.stability` of the run says.
    """
    experiment, config = run.experiment, run.experiment.config
    fields, base = config.stability, config.optimizer.learning_rate
    if not fields.rounds:
        return
    last_step = int(fork.step) + fields.num_steps
    bound = fields.loss_factor * _train_loss(experiment, fork)
    searches = {
        arm: Bisection(fields.low * base, fields.high * base, fields.rounds)
        for arm in experiment.arms
        if "stable_rate" not in run.record["arms"][arm.name]
    }
    while True:
        rates = {arm: search.rate for arm, search in searches.items()}
        trials = {
            arm: Stretch(
                experiment,
                fork,
                last_step,
                experiment.scalars(arm, rate),
                projected=keeps_subspace(config, arm.name),
            )
            for arm, rate in rates.items()
            if rate is not None
        }
        if not trials:
            break
        trainer.train(list(trials.values()))
        for arm, trial in trials.items():
            loss = _train_loss(experiment, trial.state)
            searches[arm].answer(math.isfinite(loss) and loss <= bound)
    for arm, search in searches.items():
        ends = {"stable_rate": search.stable, "unstable_rate": search.unstable}
        run.update(arm.name, **ends)


def _train_loss(experiment, state):
    return float(experiment.programs.evaluate(state, experiment.task).train_loss)
