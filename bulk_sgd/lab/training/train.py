"""Experiments: one prefix of plain training each, then a fork into arms."""

import contextlib
import copy
import sys

from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.files import identities, record
from bulk_sgd.lab.files.progress import Progress
from bulk_sgd.lab.from_config import arms as arms_lib
from bulk_sgd.lab.from_config import unused
from bulk_sgd.lab.training import fork, memory_forecast, stability
from bulk_sgd.lab.training.experiment import Experiment
from bulk_sgd.lab.training.loop import Trainer
from bulk_sgd.lab.training.prefixes import PrefixStore
from bulk_sgd.lab.training.run import Run


def train_and_evaluate(config, workdir) -> dict:
    """Runs the experiment of a config and leaves its record and metrics in `workdir`.

    The prefix is plain training. At the switch the run forks into the arms of the
    config, which all start from the same parameters, optimizer state and subspace and
    see the same batches. An arm whose loss is not finite ends as diverged; the others
    go on. A finished run that has the steps and arms of the config is left as it is;
    one that lacks some goes on, to the rows of a run that had them from the start. An
    unfinished one goes on from its checkpoints, bit for bit as if it had never stopped;
    without any it starts again, and what it left is moved to `attempts/`.

    Args:
      config: a ConfigDict with the fields of `bulk_sgd.lab.config.default()`.
      workdir: folder for `run.json`, `metrics.jsonl` and `tensorboard/`; made if
        missing.

    Returns:
      The record of the run, as in `run.json`.

    Raises:
      ValueError: before anything is compiled, if a field is out of its range, the data
        cannot be read, or the workdir holds a run of another config, of other data or
        of another program; before the first step, if the run does not fit the memory of
        a device.

    Example:
      >>> import tempfile
      >>> from bulk_sgd.lab.config import default
      >>> from bulk_sgd.lab.training.train import train_and_evaluate
      >>> config = default()
      >>> config.data.num_train, config.model.hidden = 100, (8,)
      >>> config.num_steps, config.switch.step, config.arms = 4, 2, ("bulk_sgd",)
      >>> config.progress = config.tensorboard = False
      >>> with tempfile.TemporaryDirectory() as workdir:
      ...     train_and_evaluate(config, workdir)["status"]
      'complete'
    """
    config_lib.validate(config)
    if distributed.is_first():
        for sentence in unused.find(config, config_lib.default()).values():
            print(sentence, file=sys.stderr)
    experiment = Experiment(_joined(config, workdir))
    if distributed.is_first():
        for sentence in experiment.doubts:
            print(sentence, file=sys.stderr)
    pending = arms_lib.pending(experiment.config.arms)
    finished = distributed.claim(workdir, experiment.identity, pending)
    steps, arms = experiment.config.num_steps, experiment.config.arms
    has_more = (steps, arms) != (config.num_steps, tuple(config.arms))
    if has_more and distributed.is_first():
        kept = f"{steps} steps of {', '.join(arms)}"
        print(f"{workdir}: a run of {kept}; it keeps them.", file=sys.stderr)
    if finished:
        return finished
    return train_together([experiment], [workdir])[0]


def train_together(
    experiments: list[Experiment],
    workdirs,
    *,
    lanes: int = 1,
    prefixes: PrefixStore | None = None,
) -> list[dict]:
    """Runs experiments that share their programs, which compile once for all.

    All end together: an interruption leaves none of them complete.

    Args:
      experiments: with equal `experiment.program_of` of their configs.
      workdirs: a folder for each, as `record.claim` leaves it.
      lanes: how many prefixes or arms train in lockstep under `vmap`. With 1 each run
        ends bit for bit as it would by itself.
      prefixes: where trained prefixes are kept for others that share them.
    """
    steps = sum(map(_num_steps, experiments))
    shown = all(experiment.config.progress for experiment in experiments)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(steps, shown))
        trainer = Trainer(experiments[0], progress, lanes)
        _check_memory(experiments, lanes, trainer, progress)
        seconds = trainer.time_plain_step()
        runs = [
            stack.enter_context(Run(experiment, workdir, seconds))
            for experiment, workdir in zip(experiments, workdirs)
        ]
        progress.skip(sum(run.steps_before for run in runs))
        forks = fork.train_prefixes(trainer, runs, prefixes)
        arms = [arm for run, state in forks for arm in fork.arms(run, state)]
        # A prefix may be shared or end early, and arms may have ended before.
        progress.expect(progress.count + sum(arm.steps_left for arm in arms))
        trainer.train(arms)
        for run, state in forks:
            stability.find_stable_rates(trainer, run, state)
            run.end(record.COMPLETE)
    return [run.record for run in runs]


def _joined(config, workdir):
    """The config with the steps and arms that a finished run has beyond it."""
    known = distributed.on_first(lambda: record.read(workdir))
    if known is None or known["status"] not in record.ENDED:
        return config
    steps, arms = known["config"]["num_steps"], known["config"]["arms"]
    has = {identities.compact(arm) for arm in arms}
    joined = copy.deepcopy(config)
    joined.num_steps = max(steps, config.num_steps)
    joined.arms = (*arms, *(x for x in config.arms if identities.compact(x) not in has))
    return joined


def _num_steps(experiment):
    config = experiment.config
    after = config.num_steps - config.switch.step
    return config.switch.step + len(experiment.arms) * after


def _check_memory(experiments, lanes, trainer, progress):
    """Says what the compiled program needs, and refuses what does not fit."""
    first = experiments[0]
    if not first.config.check_memory:
        return
    arrays = memory_forecast.of_arrays(first, lanes, len(experiments))
    forecast = memory_forecast.of_program(arrays, trainer.executables[True])
    if forecast is None:
        progress.say(f"{arrays}; the backend does not say what a step takes beyond it")
        return
    progress.say(str(forecast))
    memory_forecast.check(forecast)
