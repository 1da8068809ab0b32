"""Runs the cells of a sweep, each as its own run in `cells/NNN` of the workdir.

Skips cells that have ended; where one fails, the others go on. Cells that differ only
in numbers (learning rate, arms, seed, refresh interval) share their compiled programs,
and runs with the same prefix train it once. A sweep can grow: the same command with
more steps, arms or cells adds what the sweep in its workdir lacks.
"""

import functools
import json
import pathlib
import sys
import time
import traceback

import jax
from ml_collections import ConfigDict

from bulk_sgd import checks
from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab import network_checks
from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.files import identities, record
from bulk_sgd.lab.from_config import arms as arms_lib
from bulk_sgd.lab.sweep import grid, tuning
from bulk_sgd.lab.sweep import workdir as workdir_lib
from bulk_sgd.lab.sweep.workdir import cell_folder
from bulk_sgd.lab.training.experiment import Experiment, program_of
from bulk_sgd.lab.training.prefixes import PrefixStore
from bulk_sgd.lab.training.train import train_together


def run_sweep(
    base,
    cells: list[grid.Cell],
    workdir,
    *,
    only: int | None = None,
    lanes: int = 1,
    prefixes=None,
    about: str = "",
    tune: tuning.Tuning | str | None = None,
    say=None,
) -> list[str]:
    """Runs the cells that have not ended, and returns the status of every cell.

    Args:
      base: config that the cells override.
      cells: from `bulk_sgd.lab.sweep.grid`, all checked before the first one starts.
      workdir: folder of the sweep.
      only: index of the one cell to run; by default all run.
      lanes: runs trained in lockstep under `vmap`, which helps small networks on
        accelerators. With 1 every cell equals its run alone, bit for bit.
      prefixes: folder of trained prefixes that sweeps may share, WORKDIR/prefixes.
      about: what the sweep asks, for its report.
      tune: the field that is tuned, or a `Tuning`. The sweep then adds cells, and runs
        them, while the best value of a row is at the edge of its grid, see
        `tuning.widened`. A job with `only` adds none.
      say: takes lines of progress, by default to stderr.

    Raises:
      ValueError: before anything starts, if an argument is wrong, a cell does not fit
        the data, two cells are equal, the workdir holds a sweep that cannot grow into
        this one, or the workdir or the prefixes belong to other data or code.
    """
    workdir, say = pathlib.Path(workdir), say or _say
    cells = grid.check(cells)
    configs = configs_of(base, cells)
    tune = tuning.check(tune, cells, configs)
    checks.integer("lanes", lanes, 1)
    plain, given = identities.plain(base), cells
    claim = functools.partial(workdir_lib.claim, workdir, plain, given, about, tune)
    cells = grid.check(
        distributed.on_first(lambda: workdir_lib.ordered(workdir, plain, given))
    )
    if only is not None:
        checks.integer("cell", only, 0, len(cells) - 1)
    chosen = list(range(len(cells))) if only is None else [only]
    while chosen:
        configs = configs_of(base, cells)
        arguments = configs, chosen, workdir, prefixes, say, claim
        like, todo, store = _prepare(*arguments)
        _Runner(cells, configs, workdir, lanes, store, say, like).run(todo)
        more = []
        if tune and only is None:
            arguments = workdir, cells, given, tune, base
            more = distributed.on_first(functools.partial(tuning.widened, *arguments))
            more = _fitting(base, more, like, tune, say)
        if more:
            distributed.on_first(functools.partial(workdir_lib.add, workdir, more))
            values = sorted({cell[tune.field] for cell in more})
            say(f"The best {tune.field} is at the edge of a grid: trying {values} too.")
        chosen = list(range(len(cells), len(cells) + len(more)))
        cells = cells + grid.check(more)
    return workdir_lib.statuses(workdir, range(len(cells)))


def _prepare(configs, chosen, workdir, prefixes, say, claim):
    """Checks and claims the sweep and its `chosen` cells.

    Returns an experiment, the cells that have not ended, and the store of prefixes.
    """
    plain = list(map(identities.plain, configs))
    for fields in plain:
        distributed.check_agreement(fields)
    left = workdir_lib.unfinished(workdir, {i: plain[i] for i in chosen})
    like, prints = _check_data(configs, chosen, left, say)
    distributed.on_first(claim)
    identity = {i: identities.Identity(plain[i], prints[i]) for i in chosen}
    claim_cell = lambda i: distributed.claim(
        cell_folder(workdir, i), identity[i], arms_lib.pending(configs[i].arms)
    )
    todo = [index for index in chosen if claim_cell(index) is None]
    if len(todo) < len(chosen):
        say(f"{len(chosen) - len(todo)} of {len(chosen)} cells had ended before.")
    store = PrefixStore(prefixes or workdir / "prefixes")
    for index in todo:
        store.check(configs[index], prints[index])
    return like, todo, store


def configs_of(base, cells: list[grid.Cell]) -> list[ConfigDict]:
    """The config of each cell; all must be right and no two equal."""
    if not isinstance(base, ConfigDict):
        config_lib.validate(base)  # raises
    configs = []
    for index, cell in enumerate(cells):
        try:
            configs.append(grid.apply(base, cell))
        except ValueError as error:
            raise ValueError(f"cell {index}: {error}") from error
    if not configs:
        raise ValueError("The sweep has no cells.")
    seen = {}
    for index, config in enumerate(configs):
        first = seen.setdefault(json.dumps(identities.plain(config)), index)
        if first != index:
            raise ValueError(f"cells {first} and {index} have the same config.")
    return configs


def _check_data(configs, chosen, left, say):
    """Builds one experiment per program to check its data, and prints all doubts.

    Returns the last one, and the fingerprints of each cell. The experiment of cells
    that have all ended is none to train, and has no arrays.
    """
    like, prints, doubts = None, {}, {}
    for group in groups(configs, chosen):
        devices = None if set(group) & set(left) else jax.devices()
        try:
            like = Experiment(configs[group[0]], like, devices=devices)
        except ValueError as error:
            raise ValueError(f"cell {group[0]}: {error}") from error
        prints |= dict.fromkeys(group, like.identity.fingerprints)
        doubts |= dict.fromkeys(like.doubts)
        for index in group[1:]:  # on the same data
            doubts |= dict.fromkeys(network_checks.config_doubts(configs[index]))
    for sentence in doubts:
        say(sentence)
    return like, prints


def groups(configs, indices) -> list[list[int]]:
    """The cells that share their programs."""
    found: dict[str, list[int]] = {}
    for index in indices:
        found.setdefault(program_of(configs[index]), []).append(index)
    return list(found.values())


def _fitting(base, cells, like, tune, say) -> list[grid.Cell]:
    """The cells that fit the config and the data; says of the others why not."""
    fitting, said = [], {}  # the same of every seed
    for cell in cells:
        try:
            Experiment(grid.apply(base, cell), like, devices=jax.devices())
        except ValueError as error:
            said[f"{tune.field} is not tried at {cell[tune.field]}: {error}"] = None
        else:
            fitting.append(cell)
    for line in said:
        say(line)
    return fitting


class _Runner:
    """Runs cells, as many together as there are lanes, and says how each ended."""

    def __init__(self, cells, configs, workdir, lanes, store, say, like):
        self._cells, self._configs, self._workdir = cells, configs, workdir
        self._lanes, self._store, self._say = lanes, store, say
        self._like = like  # the experiment whose data the next one reuses

    def run(self, todo):
        self._start, self._done, self._left = time.perf_counter(), 0, len(todo)
        programs = groups(self._configs, todo)
        if todo:
            self._say(f"cells to run: {len(todo)}; programs: {len(programs)}.")
        for group in programs:
            for first in range(0, len(group), self._lanes):
                self._run_together(group[first : first + self._lanes])

    def _run_together(self, batch):
        """Trains cells in lockstep; if that fails, each of them by itself."""
        start, reason = time.perf_counter(), ""
        try:
            self._train(batch)
        except Exception as error:
            if jax.process_count() > 1:
                raise  # other processes may not have failed; the job goes on later
            if len(batch) == 1:
                self._record_failure(batch[0])
                reason = f"; {error}"
        for index, status in zip(batch, workdir_lib.statuses(self._workdir, batch)):
            if len(batch) > 1 and status not in record.ENDED:
                self._run_together([index])
            else:
                self._tell(index, status, start, reason)

    def _train(self, batch):
        experiments = []
        for index in batch:
            self._like = Experiment(self._configs[index], self._like)
            experiments.append(self._like)
        folders = [cell_folder(self._workdir, index) for index in batch]
        train_together(experiments, folders, lanes=self._lanes, prefixes=self._store)

    def _record_failure(self, index):
        folder = cell_folder(self._workdir, index)
        (folder / "error.txt").write_text(traceback.format_exc())
        found = record.read(folder) or {
            "config": identities.plain(self._configs[index])
        }
        record.write(folder, found | {"status": record.FAILED})

    def _tell(self, index, status, start, reason):
        now = time.perf_counter()
        self._left, self._done = self._left - 1, self._done + 1
        line = f"cell {index} {status}, {self._done} of {self._done + self._left} "
        line += f"({duration(now - start)})"
        fields = (f"{field}={value}" for field, value in self._cells[index].items())
        line += f": {', '.join(fields)}{reason}"
        if self._left:
            left = (now - self._start) / self._done * self._left
            line += f"; {self._left} left, about {duration(left)}"
        self._say(line)


def _say(message):
    if distributed.is_first():
        print(message, file=sys.stderr, flush=True)


def duration(seconds) -> str:
    """Seconds as text, in hours, minutes or seconds."""
    for unit, length, digits in (("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{digits}f} {unit}"
    return f"{seconds:.0f} s"
