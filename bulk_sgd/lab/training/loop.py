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
from bulk_sgd.lab.training import metrics_row, trouble
from bulk_sgd.lab.training.experiment import Experiment
from bulk_sgd.lab.training.run import Entry, Run
from bulk_sgd.lab.training.state import Scalars, Trace, TrainState


@dataclasses.dataclass
class Stretch:
    """The prefix or an arm of a run while it trains."""

    experiment: Experiment
    state: TrainState  # where it starts and, once trained, where it ended
    last_step: int  # where it ends at the latest
    scalars: Scalars
    projected: bool = True  # whether a subspace is kept
    run: Run | None = None  # where rows and progress go; None keeps neither
    name: str = ""  # `PREFIX` or the name of an arm
    entry: Entry | None = None  # how far it has come; None before its first step

    def __post_init__(self):
        self._counters = _counters(self.state)

    @property
    def running(self) -> bool:
        """Whether there are steps left to take."""
        return self.entry.status == record.RUNNING

    @property
    def wanted(self) -> int:
        """Steps of the next dispatch."""
        left = self.last_step - self.entry.last_step
        return min(self.experiment.config.eval_every, left) if self.running else 0

    @property
    def steps_left(self) -> int:
        """Steps to its end."""
        return self.last_step - int(self.state.step)

    def begin(self):
        """Records the start with a row of metrics, unless the stretch was resumed."""
        if self.entry is not None:
            return
        self.entry = Entry(record.RUNNING, int(self.state.step))
        if self.run:
            self.run.update(self.name, **self.entry._asdict())
            self.run.write(self._measure(self.state))
        self._record()

    def advance(self, state: TrainState, trace: Trace, waited, seconds, plain_seconds):
        """Counts a dispatch and returns its row of metrics, None without a run.

        The dispatch waited for data and then trained, in seconds; `plain_seconds` is
        what as many plain steps take.
        """
        known, counters = self.entry, _counters(state)
        curvature = max(0.0, seconds - plain_seconds) if self.projected else 0.0
        self.entry = known._replace(
            last_step=int(state.step),
            seconds=known.seconds + waited + seconds,
            seconds_curvature=known.seconds_curvature + curvature,
            matvecs=known.matvecs + counters[0] - self._counters[0],
            failed_refreshes=known.failed_refreshes + counters[1] - self._counters[1],
        )
        self._counters = counters
        row, losses = None, trace.batch_losses[: int(trace.num_steps)]
        if self.run:
            row = self._measure(state, trace)
            losses = [*losses, row["train_loss"]]
        if not np.all(np.isfinite(losses)):
            self.entry = self.entry._replace(status=record.DIVERGED)
        elif float(state.projection.alignment_average) > self.scalars.threshold:
            self.entry = self.entry._replace(status=record.COMPLETE)
        if row:
            self.run.write(row)
        self._record()
        return row

    def _measure(self, state, trace=None):
        return metrics_row.measure(self.experiment, self.name, state, self.entry, trace)

    def _record(self):
        if self.running and self.entry.last_step >= self.last_step:
            self.entry = self.entry._replace(status=record.COMPLETE)
        if self.run:
            self.run.update(self.name, **self.entry._asdict())


class Trainer:
    """Trains stretches, with a row of metrics per dispatch.

    It compiles the programs when made, so no clock counts that. `experiment` is any of
    those to train, which share programs. So many `lanes` train in lockstep under
    `vmap`; with 1 each stretch trains alone, and ends the same to the last bit.
    """

    def __init__(self, experiment: Experiment, progress: Progress, lanes: int = 1):
        self._experiment = experiment
        self._progress = progress
        self._lanes = lanes
        self._warned = set()
        self.plain_step_seconds = 0.0
        start, feed = experiment.start(), experiment.feed(0)
        arguments = self._arguments([self._blank(start)], [start], [feed], [0])
        compiled = experiment.programs.compiled
        leaves = jax.tree.leaves(start.params)
        size = f"{len(leaves):,} arrays, {sum(x.size for x in leaves):,} parameters"
        with progress.waiting(f"Compiling the step ({size})…"):
            self.executables = {
                projected: compiled(*arguments, projected=projected, lanes=lanes)
                for projected in (False, True)
            }

    def time_plain_step(self) -> float:
        """Runs all programs once; seconds of a step without curvature, a median."""
        start, feed = self._experiment.start(), self._experiment.feed(0)
        wanted = self._experiment.config.eval_every
        seconds = []
        for projected, steps in ((False, 0), *[(False, wanted)] * 3, (True, 0)):
            stretches = [self._blank(start, projected)] * self._lanes
            began = time.perf_counter()
            states, feeds = [_copy(start)] * self._lanes, [feed] * self._lanes
            jax.block_until_ready(self._dispatch(stretches, states, feeds, [steps]))
            if steps:
                seconds.append((time.perf_counter() - began) / steps)
        self.plain_step_seconds = statistics.median(seconds)
        return self.plain_step_seconds

    def train(self, stretches: list[Stretch]):
        """Trains all stretches to their ends, as many at once as there are lanes."""
        for projected in (False, True):  # they are two programs
            left = [x for x in stretches if x.projected == projected]
            for first in range(0, len(left), self._lanes):
                self._train_together(left[first : first + self._lanes])

    def _train_together(self, stretches):
        for stretch in stretches:
            stretch.begin()
        states = [_copy(s.state) for s in stretches]  # the program takes its own
        while any(stretch.running for stretch in stretches):
            wanted = [stretch.wanted for stretch in stretches]
            began = time.perf_counter()
            feeds = [s.experiment.feed(int(x.step)) for s, x in zip(stretches, states)]
            fed = time.perf_counter()
            states, traces = self._dispatch(stretches, states, feeds, wanted)
            jax.block_until_ready(states)
            shares = np.array([fed - began, time.perf_counter() - fed])
            shares /= np.count_nonzero(wanted)
            due = []
            for stretch, state, trace in zip(stretches, states, traces):
                if stretch.running:
                    before = stretch.entry.last_step
                    taken = int(trace.num_steps)
                    plain = taken * self.plain_step_seconds
                    row = stretch.advance(state, trace, *shares.tolist(), plain)
                    self._report(stretch, taken, row)
                    due.append((stretch, state, before))
            self._keep(due)
        for stretch, state in zip(stretches, states):
            stretch.state = state
            if stretch.run:
                stretch.run.keep_parameters(stretch.name, state)

    def _keep(self, due):
        """Saves the checkpoints that are due, and all where a signal asks to end."""
        signal = signals.wanted()
        for stretch, state, before in due:
            # In lockstep no checkpoint of one stretch tells where the others stand.
            if not (stretch.run and stretch.running and self._lanes == 1):
                continue
            if signal or stretch.run.is_checkpoint(before, stretch.entry.last_step):
                stretch.run.checkpoint(stretch.name, state)
            if stretch.entry.last_step + stretch.wanted >= stretch.last_step:
                stretch.run.checkpoint_end(stretch.name, state)
        if signal:
            sys.exit(128 + signal)

    def _dispatch(self, stretches, states, feeds, wanted):
        """Calls the training program, always in the form that was compiled."""
        arguments = self._arguments(stretches, states, feeds, wanted)
        states, traces = self.executables[stretches[0].projected](*arguments)
        if self._lanes == 1:
            return [states], [traces]
        return _unstack(states, len(stretches)), _unstack(traces, len(stretches))

    def _arguments(self, stretches, states, feeds, wanted) -> tuple:
        """The arguments of `Programs.train` or `Programs.train_lanes`."""
        task = stretches[0].experiment.task
        scalars = [stretch.scalars for stretch in stretches]
        if self._lanes == 1:
            return states[0], task, feeds[0], wanted[0], scalars[0]
        curvatures = None
        if stretches[0].experiment.config.subspace.data == "subset":
            curvatures = self._stack([s.experiment.task.curvature for s in stretches])
        return (
            self._stack(states),
            task,
            curvatures,
            self._stack(feeds),
            jnp.pad(jnp.asarray(wanted), (0, self._lanes - len(wanted))),
            self._stack(scalars),
        )

    def _stack(self, trees):
        """With an axis of lanes; a lane without a stretch repeats the first one."""
        trees = [*trees, *[trees[0]] * (self._lanes - len(trees))]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    def _blank(self, start, projected=False) -> Stretch:
        experiment = self._experiment
        return Stretch(experiment, start, 0, experiment.scalars(), projected)

    def _report(self, stretch, taken, row):
        if row is None:
            return
        name, entry = stretch.name, stretch.entry
        facts = {"arm": name, "loss": f"{row['train_loss']:.4g}"}
        if entry.failed_refreshes:
            facts["failed_refreshes"] = entry.failed_refreshes
        self._progress.advance(taken, **facts)
        if entry.status == record.DIVERGED:
            self._progress.say(f"{name} diverged at step {row['step']}.")
        kind, sentence = trouble.of(row, stretch.experiment.config.subspace)
        if sentence and (name, kind) not in self._warned:
            self._warned.add((name, kind))
            self._progress.say(f"{name}: {sentence}")


def _unstack(tree, count):
    lane = lambda i: jax.tree.map(lambda leaf: leaf[i], tree)
    return [lane(i) for i in range(count)]


def _copy(state):
    return jax.tree.map(jnp.copy, state)


def _counters(state) -> tuple[int, int]:
    projection = state.projection
    return int(projection.total_matvecs), int(projection.failed_refreshes)
