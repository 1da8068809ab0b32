"""What a sweep will cost, from a few measured steps of each of its programs."""

import collections
import functools
import sys
import tempfile
import time
from typing import NamedTuple

import jax
import numpy as np

from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.files import identities, record
from bulk_sgd.lab.files.progress import Progress
from bulk_sgd.lab.from_config.arms import keeps_subspace
from bulk_sgd.lab.sweep import grid, sweep
from bulk_sgd.lab.sweep import workdir as workdir_lib
from bulk_sgd.lab.training import memory_forecast
from bulk_sgd.lab.training.checkpoint import Checkpoints
from bulk_sgd.lab.training.experiment import Experiment, prefix_of
from bulk_sgd.lab.training.loop import Trainer
from bulk_sgd.lab.training.run import keeps_ends
from bulk_sgd.solvers.streaming import eager_calls

# Measured steps, or as many as lie between two refreshes. They hold so few refreshes,
# the first of all, that `streaming` acts at each of them.
_STEPS = 5


class Cost(NamedTuple):
    """What some cells cost."""

    cells: int
    steps: int
    matvecs: float
    seconds: float  # with the compilation
    memory: int  # bytes on each device


def estimate(base, cells, workdir=None) -> list[Cost]:
    """The cost of what the cells have left to run, one entry per program.

    It compiles each program and takes some steps at the start of training. Solves later
    in training may take more or fewer matvecs. It assumes that cells run one after
    another, share prefixes and do not diverge.

    Args:
      base: config that the cells override.
      cells: from `bulk_sgd.lab.sweep.grid`.
      workdir: folder of the sweep; None counts all cells.

    Raises:
      ValueError: a cell is wrong, or does not fit the data or the memory.
    """
    configs = sweep.configs_of(base, cells)
    left, before = list(range(len(configs))), {}
    if workdir is not None:
        cells = workdir_lib.ordered(workdir, identities.plain(base), cells)
        configs = sweep.configs_of(base, grid.check(cells))
        left = workdir_lib.unfinished(
            workdir, {i: identities.plain(config) for i, config in enumerate(configs)}
        )
        folder = functools.partial(workdir_lib.cell_folder, workdir)
        ends = lambda i: _ends(folder(i), configs[i].num_steps)
        before = distributed.on_first(lambda: {i: ends(i) for i in left})
    found, like, known = [], None, set()
    groups = sweep.groups(configs, left)
    for number, group in enumerate(groups, 1):
        print(f"measuring program {number} of {len(groups)}", file=sys.stderr)
        its_cells = [(configs[index], before.get(index)) for index in group]
        cost, like = _cost(its_cells, like, known)
        found.append(cost)
    return found


def table(costs: list[Cost]) -> str:
    """The costs as lines of text, and a total, whose memory is the largest one.

    >>> print(table([Cost(2, 4000, 1e5, 90.0, 10**9), Cost(1, 500, 20.0, 8.0, 10**6)]))
    program  cells  steps  matvecs  time  memory
          1      2  4,000  100,000  90 s    1 GB
          2      1    500       20   8 s    1 MB
      total      3  4,500  100,020  98 s    1 GB
    """
    sums = Cost(*(sum(column) for column in zip(*costs))) if costs else Cost(*[0] * 5)
    total = sums._replace(memory=max([cost.memory for cost in costs], default=0))
    lines = [("program", "cells", "steps", "matvecs", "time", "memory")]
    for name, cost in [*enumerate(costs, 1), ("total", total)]:
        counts = f"{cost.cells}", f"{cost.steps:,}", f"{cost.matvecs:,.0f}"
        sizes = sweep.duration(cost.seconds), memory_forecast.as_text(cost.memory)
        lines.append((str(name), *counts, *sizes))
    widths = [max(map(len, column)) for column in zip(*lines)]
    row = lambda line: "  ".join(x.rjust(width) for x, width in zip(line, widths))
    return "\n".join(map(row, lines))


def _ends(folder, num_steps) -> dict[str, int] | None:
    """The step from which each arm of a completed cell goes on to `num_steps`.

    None for any other cell. An arm that diverged has nothing left; one without a state
    at its end goes on from the fork.
    """
    found = record.read(folder)
    if found is None or found["status"] != record.COMPLETE:
        return None

    def begin(name, arm):
        if arm["status"] == record.DIVERGED:
            return num_steps
        kept = arm["last_step"] >= num_steps or record.has_end(folder, name)
        return arm["last_step"] if kept else found["switch"]["step"]

    return {identities.compact(x): begin(x, arm) for x, arm in found["arms"].items()}


def _cost(cells, like, known) -> tuple[Cost, Experiment]:
    """The cost of cells that share a program; each is a pair of config and `_ends`.

    `known` holds the prefixes that earlier cells have counted.
    """
    configs = [config for config, _ in cells]
    seconds, experiment = _timed(Experiment, configs[0], like)
    build, _ = _timed(Experiment, configs[0], experiment)  # with the data of the first
    with Progress(None, enabled=False) as progress:
        compiling, trainer = _timed(Trainer, experiment, progress)
    seconds += compiling
    # By refresh interval, and by program of the rows.
    steps, refreshes, rows = (collections.Counter() for _ in range(3))
    for cell in cells:
        for parts, its_rows in _stretches(*cell, known):
            rows.update(its_rows)
            for every, length, count in parts:
                steps[every] += length
                refreshes[every] += count
    plain, _, state = _steps(experiment, trainer, 0)
    timed = 3 * experiment.config.eval_every  # plain steps that a run times
    seconds += len(configs) * (build + timed * plain) + steps[0] * plain
    matvecs = 0.0
    for every in filter(None, +steps):
        del state
        each, solve, state = _steps(experiment, trainer, every)
        seconds += steps[every] * each
        matvecs += refreshes[every] * solve
    seconds += _measuring(experiment, state, rows)
    states = sum(_num_states(*cell, keeps_ends(experiment)) for cell in cells)
    seconds += states * _writing(state) if states else 0.0
    arrays = memory_forecast.of_arrays(experiment)
    forecast = memory_forecast.of_program(arrays, trainer.executables[True]) or arrays
    cost = Cost(len(configs), steps.total(), matvecs, seconds, forecast.total)
    return cost, experiment


def _stretches(config, ends, known):
    """The stretches of a cell: their `_parts`, and their rows by program."""
    switch, stability = config.switch, config.stability
    every = switch.measure_every if keeps_subspace(config, record.PREFIX) else 0
    seen = switch.step if every else 0
    if ends is None and (name := prefix_of(config)) not in known:
        known.add(name)
        rows = _rows(config, switch.step, bool(every), ends=0)
        yield _parts(config.subspace, 0, switch.step, every), rows
    for name, begin, is_new in _arms(config, ends):
        length, kept = config.num_steps - begin, keeps_subspace(config, name)
        every = config.subspace.refresh_every if kept else 0
        rows = _rows(config, length, kept, ends=1)
        yield _parts(config.subspace, seen + begin - switch.step, length, every), rows
        trials = stability.rounds + 2 if stability.rounds and is_new else 0
        for _ in range(trials):  # with both ends of the interval
            parts = _parts(config.subspace, seen, stability.num_steps, every)
            yield parts, {"evaluate": 1}


def _arms(config, ends) -> list[tuple[str, int, bool]]:
    """Each arm with something to run: its name, first step, and whether it is new."""
    names = [identities.compact(arm) for arm in config.arms]
    known = [(name, (ends or {}).get(name)) for name in names]
    start = config.switch.step
    found = [(name, start if x is None else x, x is None) for name, x in known]
    return [arm for arm in found if arm[1] < config.num_steps]


def _num_states(config, ends, keeps_ends) -> int:
    """How many states a cell writes: on its way, at its fork and before its ends."""
    every, left = config.checkpoint.every, _arms(config, ends)
    if not every:
        return 0
    steps = [config.num_steps - begin for _, begin, _ in left]
    steps += [config.switch.step] if ends is None else []
    on_the_way = sum(length // every for length in steps)
    return on_the_way + (ends is None) + len(left) * keeps_ends


def _parts(space, seen, length, every):
    """Refresh interval (0: none), steps and refreshes of each part of a stretch.

    The subspace was kept for so many `seen` steps before.
    """
    if not every:
        return [(0, length, 0)]
    eager = 0
    if space.solver == "streaming":  # a call that rests costs next to nothing
        eager = eager_calls(space.rank, space.columns, space.gain)
        every = space.every
    begin, end = (max(0, step - eager) for step in (seen, seen + length))
    acts = -(-end // every) - -(-begin // every)
    first = length - (end - begin)
    return [(1, first, first), (every, end - begin, acts)]


def _rows(config, length, projected, ends) -> dict[str, int]:
    """How often a stretch calls each program of its rows of metrics."""
    often = lambda every: length // every if every else 0
    count = 1 + -(-length // config.eval_every)
    last = ends if config.measures.last_sharpness else 0
    return {
        "evaluate": count,
        "own": count if config.measures.own else 0,
        "sharpness": last + often(config.measures.sharpness_every),
        "measure": often(config.measures.every) if projected else 0,
        "along_step": often(config.measures.step_every) if projected else 0,
    }


def _steps(experiment, trainer, every):
    """Seconds of a step, matvecs of a refresh, and the state after the first steps."""
    program, length = trainer.executables[every > 0], experiment.config.eval_every

    def take(state, count, every):
        scalars = experiment.scalars()
        scalars = scalars._replace(threshold=float(np.inf), refresh_every=every)
        while count > 0:
            feed = experiment.feed(int(state.step))
            wanted = min(count, length)
            state, _ = program(state, experiment.task, feed, wanted, scalars)
            count -= wanted
        return jax.block_until_ready(state)

    # The first solve has no start.
    state = take(experiment.start(), 1, 1)
    before = int(state.projection.total_matvecs)
    interval = max(1, every)
    count = interval * -(-_STEPS // interval)
    seconds, state = _timed(take, state, count, interval)
    matvecs = int(state.projection.total_matvecs) - before
    return seconds / count, matvecs * interval / count, state


def _measuring(experiment, state, counts) -> float:
    """Seconds of all rows of metrics, with the compilation of their programs."""
    task, feed = experiment.task, experiment.feed(0)
    rate = experiment.scalars().learning_rate
    arguments = {"measure": (feed, jax.random.key(0)), "along_step": (feed, rate)}
    arguments["own"] = (experiment.params,)
    total = 0.0
    for name, count in counts.items():
        if count:
            fn = getattr(experiment.programs, name)
            call = lambda fn=fn, name=name: jax.block_until_ready(
                fn(state, task, *arguments.get(name, ()))
            )
            first, again = _timed(call)[0], _timed(call)[0]
            total += first + (count - 1) * again
    return total


def _writing(state) -> float:
    """Seconds to write a state, into a temporary folder."""

    def write():
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = Checkpoints(folder)
            checkpoints.save_fork(state)
            checkpoints.close()

    write()  # the first write of a process is slower
    return _timed(write)[0]


def _timed(fn, *arguments):
    """Seconds of a call, and its result."""
    began = time.perf_counter()
    result = fn(*arguments)
    return time.perf_counter() - began, result
