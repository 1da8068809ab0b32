"""An experiment: one prefix of plain training, then a fork into arms."""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bulk_sgd import arms as arms_lib
from bulk_sgd import basis, checks, data, losses, models, record, sharding
from bulk_sgd import config as config_lib
from bulk_sgd.metrics import MetricWriter, Progress
from bulk_sgd.objective import Objective
from bulk_sgd.steps import Programs, Task, TrainState

_PREFIX = "prefix"


def train_and_evaluate(config, workdir) -> dict:
    """Runs the experiment of a config and leaves its record and metrics in `workdir`.

    The prefix is plain training. At the switch the run forks into the arms of the
    config, which all start from the same parameters, optimizer state and subspace and
    see the same batches. An arm whose loss is not finite ends as diverged, and the
    others go on. A workdir with a finished run of the same config is left as it is;
    what an unfinished one left is moved to `attempts/`.

    Args:
      config: a ConfigDict with the fields of `bulk_sgd.config.default()`.
      workdir: folder for `run.json`, `metrics.jsonl` and `tensorboard/`; made if
        missing.

    Returns:
      The record of the run, as in `run.json`.

    Raises:
      ValueError: before anything is compiled, if a field is out of its range, the data
        cannot be read, or the workdir holds a run of another config.

    Example:
      >>> import tempfile, bulk_sgd.config, bulk_sgd.train
      >>> config = bulk_sgd.config.default()
      >>> config.data.num_train, config.model.hidden = 100, (8,)
      >>> config.num_steps, config.switch.step, config.arms = 4, 2, ("bulk_sgd",)
      >>> config.progress = config.tensorboard = False
      >>> with tempfile.TemporaryDirectory() as workdir:
      ...     bulk_sgd.train.train_and_evaluate(config, workdir)["status"]
      'complete'
    """
    config_lib.validate(config)
    experiment = _Experiment(config)
    finished = record.claim(workdir, record.plain(config))
    if finished:
        return finished
    total = config.switch.step + len(experiment.arms) * (
        config.num_steps - config.switch.step
    )
    with (
        MetricWriter(workdir, config.tensorboard) as writer,
        Progress(total, config.progress) as progress,
    ):
        return _Run(experiment, workdir, writer, progress).go()


class _Experiment:
    """Everything that a config stands for, built and checked, nothing compiled."""

    def __init__(self, config):
        self.config = config
        self.arms = arms_lib.parse_all(config.arms)
        self.layout = sharding.Layout(sharding.make_mesh(config.sharding))
        self.dataset = data.load(config.data)
        num_train = len(self.dataset.train_targets)
        checks.integer(
            "config.batch_size",
            config.batch_size,
            1,
            num_train,
            "the number of training examples",
        )
        num_test = len(self.dataset.test_targets)
        self.layout.check(config, num_train, num_test)
        self.model_fn, self.params = self.layout.born(
            lambda: models.build(
                config.model,
                self.dataset.train_inputs.shape[1:],
                self.dataset.num_classes,
                config.seed,
            )
        )
        checks.integer(
            "config.subspace.rank",
            config.subspace.rank,
            1,
            basis.size(self.params),
            "the number of parameters",
        )
        self.loss_fn = losses.build(config.loss, self.dataset.num_classes)
        self.task = self._task()
        self.programs = Programs(config, self.layout)

    def _task(self) -> Task:
        set_ = self.dataset
        train = self._objective(set_.train_inputs, set_.train_targets)
        curvature = {"full": train, "batch": None}
        space = self.config.subspace
        if space.data == "subset":
            checks.integer(
                "config.subspace.subset_size",
                space.subset_size,
                1,
                train.num_examples,
                "the number of training examples",
            )
            order = np.random.default_rng([self.config.seed, 1])
            chosen = order.permutation(train.num_examples)[: space.subset_size]
            curvature["subset"] = self._objective(
                set_.train_inputs[chosen], set_.train_targets[chosen]
            )
        return Task(
            train=train,
            test=self._objective(set_.test_inputs, set_.test_targets),
            curvature=curvature[space.data],
        )

    def _objective(self, inputs, targets):
        return Objective(
            self.model_fn,
            self.loss_fn,
            self.layout.put_examples(inputs),
            self.layout.put_examples(targets),
            self.config.microbatch_size or None,
        )

    def indices(self, first_step: int):
        """Examples of the steps of one dispatch, int32 `(eval_every, batch_size)`."""
        return data.batch_indices(
            self.config.seed,
            first_step,
            self.config.eval_every,
            len(self.dataset.train_targets),
            self.config.batch_size,
        )


class _Run:
    """One execution of an experiment: timing, rows, record."""

    def __init__(self, experiment: _Experiment, workdir, writer, progress):
        self._experiment = experiment
        self._config = experiment.config
        self._workdir = workdir
        self._writer = writer
        self._progress = progress
        self._plain_step_seconds = 0.0
        self._warned = set()
        self._record = {
            "status": record.RUNNING,
            "name": self._config.name,
            "config": record.plain(self._config),
            **record.provenance(),
            "ended": None,
            "seconds": None,
            "num_params": basis.size(experiment.params),
            "num_train": experiment.task.train.num_examples,
            "learning_rate": self._config.optimizer.learning_rate,
            "rank": self._config.subspace.rank,
            "loss_label": losses.label(self._config.loss),
            "switch": None,
            "prefix": {"status": record.PENDING, "last_step": 0},
            "arms": {
                arm.name: {
                    "label": arm.label,
                    "formula": arm.formula,
                    "dominant_scale": arm.dominant_scale,
                    "bulk_scale": arm.bulk_scale,
                    "status": record.PENDING,
                }
                for arm in experiment.arms
            },
        }

    def go(self) -> dict:
        start = time.perf_counter()
        try:
            self._save()
            status = self._train()
        except BaseException as error:
            interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
            status = record.INTERRUPTED if interrupted else record.FAILED
            raise
        finally:
            for entry in (self._record["prefix"], *self._record["arms"].values()):
                if entry["status"] == record.RUNNING:
                    entry["status"] = status
            self._record["status"] = status
            self._record["ended"] = record.now()
            self._record["seconds"] = time.perf_counter() - start
            self._save()
        return self._record

    def _train(self) -> str:
        experiment, config = self._experiment, self._config
        state = experiment.programs.init(experiment.params)
        self._calibrate(state)
        by_alignment = config.switch.alignment > 0
        entry = self._record["prefix"]
        state = self._advance(
            _PREFIX,
            entry,
            state,
            config.switch.step,
            projected=by_alignment,
            refresh_every=config.switch.measure_every,
            threshold=config.switch.alignment if by_alignment else np.inf,
        )
        if entry["status"] == record.DIVERGED:
            return record.DIVERGED
        self._record["switch"] = self._describe_switch(state)
        self._save()
        for arm in experiment.arms:
            self._advance(
                arm.name,
                self._record["arms"][arm.name],
                jax.tree.map(jnp.copy, state),
                config.num_steps,
                projected=True,
                refresh_every=config.subspace.refresh_every,
                scales=(arm.dominant_scale, arm.bulk_scale),
            )
        return record.COMPLETE

    def _describe_switch(self, state: TrainState) -> dict:
        average = float(state.subspace.alignment_average)
        threshold = self._config.switch.alignment
        step = int(state.step)
        reached = threshold > 0 and average > threshold
        by_alignment = f"average alignment {average:.3f} > {threshold:g}"
        reason = by_alignment if reached else f"step {step}"
        return {"step": step, "reason": reason}

    def _calibrate(self, state: TrainState):
        """Compiles all programs and times a step without curvature."""
        experiment = self._experiment
        indices = experiment.indices(0)
        seconds = []
        for projected, steps in ((False, 0), *[(False, len(indices))] * 3, (True, 0)):
            copy = jax.tree.map(jnp.copy, state)
            start = time.perf_counter()
            jax.block_until_ready(
                self._dispatch(copy, indices, steps, projected=projected)
            )
            if steps:
                seconds.append((time.perf_counter() - start) / steps)
        self._plain_step_seconds = statistics.median(seconds)
        self._record["plain_step_seconds"] = self._plain_step_seconds

    def _dispatch(
        self,
        state: TrainState,
        indices,
        num_steps: int,
        *,
        projected: bool,
        scales=(1.0, 1.0),
        refresh_every: int = 1,
        threshold: float = np.inf,
    ):
        """Calls the training program, always in the same form: it compiles once."""
        programs, task = self._experiment.programs, self._experiment.task
        return programs.train(
            state,
            task,
            indices,
            num_steps,
            scales,
            refresh_every,
            threshold,
            projected=projected,
        )

    def _advance(
        self, name: str, entry: dict, state: TrainState, last_step: int, **arguments
    ) -> TrainState:
        """Trains one arm (or the prefix) up to `last_step`, with a row per dispatch."""
        experiment = self._experiment
        entry.update(status=record.RUNNING, seconds=0.0, seconds_curvature=0.0)
        self._save()
        matvecs_before = int(state.subspace.total_matvecs)
        failed_before = int(state.subspace.failed_refreshes)
        step, trace = int(state.step), None
        indices = experiment.indices(step)
        row = self._row(name, entry, state, trace)
        while step < last_step and entry["status"] == record.RUNNING:
            start = time.perf_counter()
            wanted = min(len(indices), last_step - step)
            state, trace = self._dispatch(state, indices, wanted, **arguments)
            # While the device works: the last row goes out, the next batches come in.
            self._writer.write(row)
            indices = experiment.indices(step + wanted)
            taken = int(trace.num_steps)
            seconds = time.perf_counter() - start
            step += taken
            entry["seconds"] += seconds
            if arguments["projected"]:
                plain = taken * self._plain_step_seconds
                entry["seconds_curvature"] += max(0.0, seconds - plain)
            entry["matvecs"] = int(state.subspace.total_matvecs) - matvecs_before
            entry["failed_refreshes"] = (
                int(state.subspace.failed_refreshes) - failed_before
            )
            row = self._row(name, entry, state, trace)
            if not np.isfinite(row["batch_loss"]) or not np.isfinite(row["train_loss"]):
                entry["status"] = record.DIVERGED
            if entry["failed_refreshes"] and row["eigenvalues"] is None:
                self._warn_once(name)
            self._report(name, entry, row, taken)
            average = float(state.subspace.alignment_average)
            if average > arguments.get("threshold", np.inf):
                break  # maybe on the last step of the dispatch, or it would go on
        self._writer.write(row)
        if entry["status"] == record.RUNNING:
            entry["status"] = record.COMPLETE
        self._save()
        return state

    def _row(self, name, entry, state: TrainState, trace) -> dict[str, Any]:
        """Measures the state; the fields are those of `metrics.jsonl`."""
        entry.setdefault("matvecs", 0)
        entry.setdefault("failed_refreshes", 0)
        entry["last_step"] = int(state.step)
        found = self._experiment.programs.evaluate(state, self._experiment.task)
        space = state.subspace
        row = {
            "arm": name,
            "step": int(state.step),
            "train_loss": float(found.train_loss),
            "test_loss": float(found.test_loss),
            "test_accuracy": float(found.test_accuracy),
            "batch_loss": None,
            "alignment_update": None,
            "alignment_gradient": None,
            "eigenvalues": None,
            "residuals": None,
            "sharpness_ratio": None,
            "matvecs": entry["matvecs"],
            "refreshes": int(space.refreshes),
            "failed_refreshes": entry["failed_refreshes"],
            "seconds": entry["seconds"],
            "seconds_curvature": entry["seconds_curvature"],
        }
        if trace is not None:
            taken = int(trace.num_steps)
            row["batch_loss"] = float(np.mean(trace.batch_losses[:taken]))
        if int(space.refreshes) > int(space.failed_refreshes):
            sharpness = float(space.subspace.eigenvalues[0])
            row["alignment_gradient"] = float(found.alignment_gradient)
            row["eigenvalues"] = np.asarray(space.subspace.eigenvalues)
            row["residuals"] = np.asarray(space.subspace.residuals)
            row["sharpness_ratio"] = self._config.optimizer.learning_rate * sharpness
            if trace is not None:
                row["alignment_update"] = float(np.mean(trace.alignments[:taken]))
        return row

    def _report(self, name, entry, row, taken):
        facts = {"arm": name, "loss": f"{row['train_loss']:.4g}"}
        if entry["failed_refreshes"]:
            facts["failed_refreshes"] = entry["failed_refreshes"]
        self._progress.advance(taken, **facts)
        if entry["status"] == record.DIVERGED:
            self._progress.say(f"{name} diverged at step {row['step']}.")

    def _warn_once(self, name):
        if name not in self._warned:
            self._warned.add(name)
            space = self._config.subspace
            self._progress.say(
                f"{name}: no refresh has converged, so there is no subspace yet; raise "
                f"config.subspace.max_matvecs ({space.max_matvecs}) or "
                f"config.subspace.tol ({space.tol:g})."
            )

    def _save(self):
        record.write(self._workdir, self._record)
