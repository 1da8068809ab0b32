"""Trains stretches of runs that share their programs, one or several at a time."""

import dataclasses
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from bulk_sgd.lab.devices import signals
from bulk_sgd.lab.files import record
from bulk_sgd.lab.files.progress import Progress
from bulk_sgd.lab.from_config import solvers
from bulk_sgd.lab.training.experiment import Experiment
from bulk_sgd.lab.training.run import Run
from bulk_sgd.lab.training.steps import Programs, Scalars, TrainState


@dataclasses.dataclass
class Job:
    """One stretch of training of one run.

    Attributes:
      run: whose it is.
      name: `PREFIX` or the name of an arm; None leaves neither rows nor record.
      state: where it starts and, once trained, where it ended.
      last_step: where it ends at the latest.
      scalars: `Scalars`.
      projected: whether a subspace is kept.
      resumed: whether the state is one from within the stretch.
      entry: its part of the record.
    """

    run: Run
    name: str | None
    state: TrainState
    last_step: int
    scalars: Scalars
    projected: bool = True
    resumed: bool = False
    entry: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.name:
            self.entry = self.run.entries[self.name]

    @property
    def experiment(self) -> Experiment:
        """The experiment of its run."""
        return self.run.experiment

    @property
    def running(self) -> bool:
        """Whether there are steps left to take."""
        return self.entry["status"] == record.RUNNING


class Trainer:
    """Trains jobs, with a row of metrics per dispatch.

    Args:
      programs: those that all jobs share.
      progress: told of every step.
      lanes: how many jobs train in lockstep under `vmap`; with 1 each is trained by
        itself, to the last bit as if it were alone.
    """

    def __init__(self, programs: Programs, progress: Progress, lanes: int = 1):
        self._programs = programs
        self._progress = progress
        self._lanes = lanes
        self._warned = set()
        self.plain_step_seconds = 0.0

    def calibrate(self, run: Run):
        """Compiles all programs and times a step without curvature."""
        start_state = run.experiment.start(self._programs)
        seconds, feeds = [], [_feed(run.experiment, start_state)] * self._lanes
        for projected, steps in ((False, 0), *[(False, None)] * 3, (True, 0)):
            scalars = run.experiment.scalars()
            jobs = [Job(run, None, start_state, 0, scalars, projected)] * self._lanes
            wanted = run.experiment.config.eval_every if steps is None else steps
            start = time.perf_counter()
            states = [_copy(start_state)] * self._lanes
            jax.block_until_ready(self._dispatch(jobs, states, feeds, [wanted]))
            if wanted:
                seconds.append((time.perf_counter() - start) / wanted)
        self.plain_step_seconds = statistics.median(seconds)

    def train(self, jobs: list[Job]):
        """Trains all jobs to their ends, as many at once as there are lanes."""
        for first in range(0, len(jobs), self._lanes):
            self._train_together(jobs[first : first + self._lanes])

    def _train_together(self, jobs):
        accounts = [_Account(job, self.plain_step_seconds) for job in jobs]
        states = [_copy(job.state) for job in jobs]  # the program takes its own
        while any(job.running for job in jobs):
            wanted = [account.wanted for account in accounts]
            start = time.perf_counter()
            feeds = [_feed(job.experiment, state) for job, state in zip(jobs, states)]
            fed = time.perf_counter()
            states, traces = self._dispatch(jobs, states, feeds, wanted)
            jax.block_until_ready(states)
            times = np.array([fed - start, time.perf_counter() - fed])
            times /= np.count_nonzero(wanted)
            for account, state, trace in zip(accounts, states, traces):
                if account.job.running:
                    row = account.add(state, trace, *times.tolist())
                    self._report(account.job, int(trace.num_steps), row)
            self._keep(accounts, states)
        for job, state in zip(jobs, states):
            job.state = state

    def _keep(self, accounts, states):
        """Saves what is due, and everything where a signal asks for the end."""
        signal = signals.wanted()
        for account, state in zip(accounts, states):
            job = account.job
            # In lockstep no single job tells where the others stand.
            alone = job.name and job.running and self._lanes == 1
            if alone and (signal or account.is_checkpoint):
                job.run.checkpoint(job.name, state)
        if signal:
            sys.exit(128 + signal)

    def _dispatch(self, jobs, states, feeds, wanted):
        """Calls the training program, always in the same form: it compiles once."""
        projected = jobs[0].projected
        if self._lanes == 1:
            state, trace = self._programs.train(
                states[0],
                jobs[0].experiment.task,
                feeds[0],
                wanted[0],
                jobs[0].scalars,
                projected=projected,
            )
            return [state], [trace]
        task, curvatures = jobs[0].experiment.task, None
        if jobs[0].experiment.config.subspace.data == "subset":
            curvatures = self._stack([job.experiment.task.curvature for job in jobs])
        states, traces = self._programs.train_lanes(
            self._stack(states),
            task,
            curvatures,
            self._stack(feeds),
            jnp.pad(jnp.asarray(wanted), (0, self._lanes - len(wanted))),
            self._stack([job.scalars for job in jobs]),
            projected=projected,
        )
        return _unstack(states, len(jobs)), _unstack(traces, len(jobs))

    def _stack(self, trees):
        """With an axis of lanes, where lanes without a job are like the first one."""
        trees = [*trees, *[trees[0]] * (self._lanes - len(trees))]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    def _report(self, job, taken, row):
        if row is None:
            return
        facts = {"arm": job.name, "loss": f"{row['train_loss']:.4g}"}
        failed = job.entry["failed_refreshes"]
        if failed:
            facts["failed_refreshes"] = failed
        self._progress.advance(taken, **facts)
        if job.entry["status"] == record.DIVERGED:
            self._progress.say(f"{job.name} diverged at step {row['step']}.")
        told = _trouble(job, row)
        if told and (job.name, told[0]) not in self._warned:
            self._warned.add((job.name, told[0]))
            self._progress.say(f"{job.name}: {told[1]}")


class _Account:
    """The entry and the rows of a job while it trains."""

    def __init__(self, job: Job, plain_step_seconds: float):
        self.job = job
        self._step = self._previous_step = int(job.state.step)
        self._plain_step_seconds = plain_step_seconds
        matvecs, failed = _counters(job.state)
        if job.resumed:
            entry = job.entry
            self._before = (
                matvecs - entry["matvecs"],
                failed - entry["failed_refreshes"],
            )
            return
        self._before = matvecs, failed
        job.entry.update(
            status=record.RUNNING, seconds=0.0, seconds_curvature=0.0, matvecs=0
        )
        job.entry["failed_refreshes"] = 0
        if job.name:
            job.run.save()
            job.run.write(job.run.row(job.name, job.state))
        self._end_if_done()

    @property
    def wanted(self) -> int:
        """Steps of the next dispatch."""
        if not self.job.running:
            return 0
        every = self.job.experiment.config.eval_every
        return min(every, self.job.last_step - self._step)

    @property
    def is_checkpoint(self) -> bool:
        """Whether a checkpoint is due after the last dispatch."""
        return self.job.run.is_checkpoint(self._previous_step, self._step)

    def add(self, state: TrainState, trace, waited, seconds) -> dict | None:
        """Counts a dispatch, after a wait for data, and writes the row it returns."""
        job, entry = self.job, self.job.entry
        taken = int(trace.num_steps)
        self._previous_step = self._step
        self._step += taken
        entry["seconds"] += waited + seconds
        if job.projected:
            plain = taken * self._plain_step_seconds
            entry["seconds_curvature"] += max(0.0, seconds - plain)
        matvecs, failed = _counters(state)
        entry["matvecs"] = matvecs - self._before[0]
        entry["failed_refreshes"] = failed - self._before[1]
        row, losses = None, trace.batch_losses[:taken]
        if job.name:
            row = job.run.row(job.name, state, trace)
            losses = [*losses, row["train_loss"]]
        if not np.all(np.isfinite(losses)):
            entry["status"] = record.DIVERGED
        elif float(state.subspace.alignment_average) > job.scalars.threshold:
            entry["status"] = record.COMPLETE
        if row:
            job.run.write(row)
        self._end_if_done()
        return row

    def _end_if_done(self):
        if self.job.running and self._step >= self.job.last_step:
            self.job.entry["status"] = record.COMPLETE
        if self.job.name and not self.job.running:
            self.job.run.save()


def _trouble(job, row) -> tuple[str, str] | None:
    """What is wrong with the subspace at a row of metrics: a word and a sentence."""
    space = job.experiment.config.subspace
    if row["kept"] == 0:
        return "empty", (
            f"the subspace is empty at step {row['step']}, so that the whole update is "
            f"bulk (config.subspace.keep is {space.keep!r}, config.subspace.threshold "
            f"{space.threshold:g})."
        )
    if row["kept"] is None and job.entry["failed_refreshes"]:
        advice = _advice(space)
        sentence = "no refresh has converged, so there is no subspace yet"
        return "none", f"{sentence}{advice}."
    return None


def _advice(space) -> str:
    """What to raise where solves fail; nothing for a solver that does none."""
    if space.solver in ("streaming", *solvers.HESSIAN_FREE):
        return ""
    limit = space.max_matvecs or "10 rank + 50 by default"
    advice = f"; raise config.subspace.max_matvecs ({limit})"
    if space.solver == "lanczos":
        advice += f" or config.subspace.tol ({space.tol:g})"
    return advice


def _feed(experiment, state):
    return jax.tree.map(jnp.asarray, experiment.feed(int(state.step)))


def _unstack(tree, count):
    lane = lambda i: jax.tree.map(lambda leaf: leaf[i], tree)
    return [lane(i) for i in range(count)]


def _copy(state):
    return jax.tree.map(jnp.copy, state)


def _counters(state):
    return int(state.subspace.total_matvecs), int(state.subspace.failed_refreshes)
