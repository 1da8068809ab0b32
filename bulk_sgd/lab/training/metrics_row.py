"""A row of metrics: what is measured at one state of a run."""

import jax
import numpy as np
import optax

from bulk_sgd.curvature.hessian import CURVATURES
from bulk_sgd.lab import plugins
from bulk_sgd.lab.files.record import PREFIX
from bulk_sgd.lab.from_config import arms, optimizers, solvers
from bulk_sgd.lab.training import evaluation
from bulk_sgd.lab.training.experiment import Experiment
from bulk_sgd.lab.training.run import Entry
from bulk_sgd.lab.training.state import TrainState

# Fields that are None in a row without them.
_OPTIONAL = (
    *("batch_loss", "alignment_update", "alignment_gradient", "descent_ratio"),
    *("eigenvalues", "residuals", "kept", "energy_lost", "sharpness"),
    *("sharpness_ratio", "scaled"),
)


def measure(
    experiment: Experiment, name: str, state: TrainState, entry: Entry, trace=None
) -> dict:
    """Measures a state, with the fields of `metrics.jsonl`.

    `name` is `PREFIX` or an arm; `trace` is the trace of the steps up to the state.
    """
    step, projection = int(state.step), state.projection
    has_subspace = arms.keeps_subspace(experiment.config, name)
    has_subspace &= int(projection.refreshes) > int(projection.failed_refreshes)
    fields = experiment.config.optimizer  # the rate of the last step
    rate = float(optimizers.rate_at(fields, fields.learning_rate, max(step - 1, 0)))
    found = experiment.programs.evaluate(state, experiment.task)
    row = {
        "arm": name,
        "step": step,
        "train_loss": float(found.train_loss),
        "test_loss": float(found.test_loss),
        "test_accuracy": float(found.test_accuracy),
        "learning_rate": rate,
        **dict.fromkeys(_OPTIONAL),
        **_own(experiment, state, has_subspace),
        "matvecs": entry.matvecs,
        "refreshes": int(projection.refreshes),
        "failed_refreshes": entry.failed_refreshes,
        "seconds": entry.seconds,
        "seconds_curvature": entry.seconds_curvature,
    }
    taken = 0 if trace is None else int(trace.num_steps)
    if taken:
        row["batch_loss"] = float(np.mean(trace.batch_losses[:taken]))
        if name != PREFIX and arms.parse(name).guarded:
            row["scaled"] = float(np.mean(trace.scaled[:taken]))
    if has_subspace:
        row["kept"] = int(found.kept)
        row["energy_lost"] = _energy_lost(state)
        if found.alignment_gradient is not None:
            row["alignment_gradient"] = float(found.alignment_gradient)
        if taken:
            row["alignment_update"] = float(np.mean(trace.alignments[:taken]))
            row["descent_ratio"] = float(np.mean(trace.descent_ratios[:taken]))
        row |= _eigenvalues(experiment, state) | _measures(experiment, state)
        row |= _along_step(experiment, state, trace)
    return row | _sharpness(experiment, name, state, rate)


def _own(experiment, state, has_subspace) -> dict:
    """The columns of the user's functions, None if one takes a missing subspace."""
    own = experiment.config.measures.own
    if not own:
        return {}
    given = experiment.task, experiment.params  # those at step 0
    found = experiment.programs.own(state, *given)
    row = {name: np.asarray(value) for name, value in found.items()}
    for path in () if has_subspace else own:
        if "subspace" in plugins.taken("config.measures.own", path):
            column = evaluation.own_column(path)
            row |= {x: None for x in row if x == column or x.startswith(f"{column}/")}
    return row


def _eigenvalues(experiment, state) -> dict:
    if not solvers.finds_leading(experiment.config.subspace):
        return {}
    subspace = state.projection.subspace
    values = np.asarray(subspace.eigenvalues)
    order = np.argsort(-values)
    residuals = np.asarray(subspace.residuals)
    return {"eigenvalues": values[order], "residuals": residuals[order]}


def _energy_lost(state):
    """The mean share of the squared length of vectors outside of frames, or None."""
    lost = optax.tree_utils.tree_get(state.projection.solver_state, "lost")
    return None if lost is None else float(np.mean(lost))


def _sharpness(experiment, name, state, rate) -> dict:
    """λ_1 at the steps that ask for it and, if wanted, at the end of every arm."""
    config, step = experiment.config, int(state.step)
    every = config.measures.sharpness_every
    ends = name != PREFIX and step == config.num_steps
    last = ends and config.measures.last_sharpness
    if not (last or (every and step % every == 0)):
        return {}
    found = float(experiment.programs.sharpness(state, experiment.task))
    return {"sharpness": found, "sharpness_ratio": rate * found}


def _measures(experiment, state) -> dict:
    config, step = experiment.config, int(state.step)
    if not config.measures.every or step % config.measures.every:
        return {}
    found, more = experiment.programs.measure(
        state,
        experiment.task,
        experiment.feed(step),
        jax.random.fold_in(jax.random.key(config.seed), step),
    )
    row = {
        "eigenspace_overlap": float(found.eigenspace_overlap),
        "sum_rule_error": float(found.sum_rule_error),
        "batch_sharpness": float(found.batch_sharpness),
    }
    row |= {name: np.asarray(value) for name, value in more.items()}
    for operator in CURVATURES:
        curvature = found.curvatures[operator]
        values = curvature.energies._asdict() | {
            "form_dominant": curvature.form_dominant,
            "form_bulk": curvature.form_bulk,
        }
        row |= {f"{operator}/{k}": np.asarray(v) for k, v in values.items()}
    return row


def _along_step(experiment, state, trace) -> dict:
    config, step = experiment.config, int(state.step)
    if not config.measures.step_every or step % config.measures.step_every:
        return {}
    fields = config.optimizer
    rate = optimizers.rate_at(fields, fields.learning_rate, step)
    given = experiment.task, experiment.feed(step), rate
    found = experiment.programs.along_step(state, *given)
    if trace is not None and trace.displacement is not None:
        found["displacement"] = trace.displacement.vectors
        found["displacement_subspace"] = trace.displacement.subspace
    return {name: np.asarray(value) for name, value in found.items()}
