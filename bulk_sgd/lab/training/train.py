"""Experiments: one prefix of plain training each, then a fork into arms."""

import contextlib
import math
import sys

from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.files import record
from bulk_sgd.lab.files.progress import Progress
from bulk_sgd.lab.training.experiment import Experiment
from bulk_sgd.lab.training.loop import Job, Trainer
from bulk_sgd.lab.training.prefixes import PrefixStore
from bulk_sgd.lab.training.run import PREFIX, Run
from bulk_sgd.lab.training.stability import Bisection
from bulk_sgd.lab.training.steps import Programs, TrainState


def train_and_evaluate(config, workdir) -> dict:
    """Runs the experiment of a config and leaves its record and metrics in `workdir`.

    The prefix is plain training. At the switch the run forks into the arms of the
    config, which all start from the same parameters, optimizer state and subspace and
    see the same batches. An arm whose loss is not finite ends as diverged, and the
    others go on. A workdir with a finished run of the same config is left as it is; an
    unfinished one goes on from its newest checkpoint, bit for bit as if it had never
    stopped, or, without one, starts again, and what it left is moved to `attempts/`.

    Args:
      config: a ConfigDict with the fields of `bulk_sgd.lab.config.default()`.
      workdir: folder for `run.json`, `metrics.jsonl` and `tensorboard/`; made if
        missing.

    Returns:
      The record of the run, as in `run.json`.

    Raises:
      ValueError: before anything is compiled, if a field is out of its range, the data
        cannot be read, or the workdir holds a run of another config.

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
    distributed.check_agreement(record.plain(config))
    experiment = Experiment(config)
    finished = distributed.claim(workdir, record.plain(config))
    if finished:
        return finished
    return train_together([experiment], [workdir])[0]


def train_together(
    experiments: list[Experiment],
    workdirs,
    *,
    lanes: int = 1,
    prefixes: PrefixStore | None = None,
    programs: Programs | None = None,
) -> list[dict]:
    """Runs experiments that share their programs, which compile once for all.

    All end together: an interruption leaves none of them complete.

    Args:
      experiments: with equal `experiment.program_of` of their configs.
      workdirs: an empty folder for each, see `record.claim`.
      lanes: how many prefixes or arms train in lockstep under `vmap`. With 1 each
        result is that of a run by itself, bit for bit.
      prefixes: where trained prefixes are kept for others that share them.
      programs: those of earlier experiments, compiled already.

    Returns:
      The records in order.
    """
    programs = programs or Programs(experiments[0].config)
    steps = sum(map(_num_steps, experiments))
    shown = all(experiment.config.progress for experiment in experiments)
    if distributed.is_first() and shown:
        print(experiments[0].forecast, file=sys.stderr)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(steps, shown))
        runs = [
            stack.enter_context(Run(experiment, programs, workdir))
            for experiment, workdir in zip(experiments, workdirs)
        ]
        trainer = Trainer(programs, progress, lanes)
        trainer.calibrate(runs[0])
        for run in runs:
            run.record["plain_step_seconds"] = trainer.plain_step_seconds
        forks = _train_prefixes(trainer, programs, runs, prefixes)
        trainer.train([job for fork in forks for job in _arms(*fork)])
        for run, state in forks:
            _find_stable_rates(trainer, programs, run, state)
            run.end(record.COMPLETE)
    return [run.record for run in runs]


def _num_steps(experiment):
    config = experiment.config
    after = config.num_steps - config.switch.step
    return config.switch.step + len(experiment.arms) * after


def _arms(run, fork: TrainState) -> list[Job]:
    """What is left to train of the arms of a run."""
    jobs = []
    for arm in run.experiment.arms:
        if run.entries[arm.name]["status"] in record.ENDED:
            continue
        resumed = run.resumed is not None and run.resumed.story["name"] == arm.name
        state = run.resumed.state if resumed else fork
        last_step = run.experiment.config.num_steps
        scalars = run.experiment.scalars(arm)
        jobs.append(Job(run, arm.name, state, last_step, scalars, resumed=resumed))
    return jobs


def _train_prefixes(trainer, programs, runs, store) -> list[tuple[Run, TrainState]]:
    """The runs whose prefix did not diverge, each with the state at its fork."""
    by_prefix = {}
    for run in runs:
        if run.resumed is None or run.resumed.fork is None:
            by_prefix.setdefault(run.experiment.prefix, []).append(run)
    known, jobs = {}, []
    for prefix, sharing in by_prefix.items():
        # One that was under way goes on.
        first = min(sharing, key=lambda run: run.resumed is None)
        resumed = first.resumed is not None
        blank = first.experiment.start(programs)
        found = store and not resumed and store.load(first.experiment, blank)
        if found:
            known[prefix] = found
            continue
        experiment = first.experiment
        jobs.append(
            Job(
                first,
                PREFIX,
                first.resumed.state if resumed else blank,
                experiment.config.switch.step,
                experiment.scalars(),
                projected=experiment.ends_by_alignment,
                resumed=resumed,
            )
        )
    trainer.train(jobs)
    for job in jobs:
        rows, entry = job.run.rows[PREFIX], dict(job.entry)
        known[job.experiment.prefix] = job.state, rows, entry
        if store:
            store.save(job.experiment, job.state, rows, entry)
    forks = [
        (run, run.resumed.fork) for run in runs if run.resumed and run.resumed.fork
    ]
    for prefix, sharing in by_prefix.items():
        state, rows, entry = known[prefix]
        for run in sharing:
            run.adopt(PREFIX, rows, entry)
            if entry["status"] == record.DIVERGED:
                run.end(record.DIVERGED)
                continue
            run.record["switch"] = _describe_switch(run.experiment.config, state)
            run.save()
            run.checkpoint_fork(state)
            forks.append((run, state))
    return forks


def _describe_switch(config, state: TrainState) -> dict:
    average = float(state.subspace.alignment_average)
    threshold = config.switch.alignment
    step = int(state.step)
    reached = threshold > 0 and average > threshold
    by_alignment = f"average alignment {average:.3f} > {threshold:g}"
    return {"step": step, "reason": by_alignment if reached else f"step {step}"}


def _find_stable_rates(trainer, programs, run, fork: TrainState):
    """Records the largest stable learning rate of each arm, all searched together."""
    fields = run.experiment.config.stability
    if not fields.rounds:
        return
    base = run.experiment.config.optimizer.learning_rate
    last_step = int(fork.step) + fields.num_steps
    bound = fields.loss_factor * _train_loss(programs, run, fork)
    searches = {
        arm: Bisection(fields.low * base, fields.high * base, fields.rounds)
        for arm in run.experiment.arms
    }
    while any(search.rate is not None for search in searches.values()):
        jobs = {
            arm: Job(
                run, None, fork, last_step, run.experiment.scalars(arm, search.rate)
            )
            for arm, search in searches.items()
            if search.rate is not None
        }
        trainer.train(list(jobs.values()))
        for arm, job in jobs.items():
            loss = _train_loss(programs, run, job.state)
            searches[arm].answer(math.isfinite(loss) and loss <= bound)
    for arm, search in searches.items():
        run.entries[arm.name]["stable_rate"] = search.stable
        run.entries[arm.name]["unstable_rate"] = search.unstable


def _train_loss(programs, run, state):
    return float(programs.evaluate(state, run.experiment.task).train_loss)
