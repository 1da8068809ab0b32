"""What is measured at one state: losses, alignment, sharpness, and all of `measures`.

`steps.Programs` compiles each function, with its config and layout.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.curvature import preconditioning
from bulk_sgd.curvature.hessian import hessian
from bulk_sgd.curvature.objective import Objective
from bulk_sgd.curvature.operators import sharded
from bulk_sgd.lab import plugins
from bulk_sgd.lab.from_config import optimizers
from bulk_sgd.lab.from_config.losses import accuracy
from bulk_sgd.lab.training import measures
from bulk_sgd.lab.training.state import Task, TrainState
from bulk_sgd.solvers.lanczos import top_eigenpairs
from bulk_sgd.spectra.along_step import step_measures
from bulk_sgd.spectra.eigenvectors import localization
from bulk_sgd.spectra.subsampling import subsampling_error


class Evaluation(NamedTuple):
    """Measurements at one point, all scalars; losses are means over all examples."""

    train_loss: jax.Array
    test_loss: jax.Array
    test_accuracy: jax.Array  # between 0 and 1
    alignment_gradient: jax.Array | None  # χ_k of the full gradient, in its coordinates
    kept: jax.Array  # int32, rows of the subspace that are not zero


def own_column(path: str) -> str:
    """The column of a function in `config.measures.own`; a dict has one per key."""
    return f"own/{path.rpartition(':')[2]}"


def preconditioner(config, inner):
    """P of the optimizer's last update; None if the subspace is that of H itself."""
    if not config.subspace.preconditioned:
        return None
    return optimizers.preconditioner(config.optimizer, inner)


def evaluate(config, layout, state: TrainState, task: Task) -> Evaluation:
    """The `Evaluation` of a state."""
    del layout
    subspace, chi = state.projection.subspace, None
    if config.measures.full_gradient:
        train_loss, gradient = jax.value_and_grad(task.train)(state.params)
        chi = gradient_alignment(config, subspace, state.inner, gradient)
    else:
        train_loss = task.train(state.params)
    score = functools.partial(_loss_and_accuracy, params=state.params)
    test_loss, test_accuracy = task.test.mean_over_microbatches(score)
    return Evaluation(
        train_loss=train_loss,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        alignment_gradient=chi,
        kept=subspace.kept,
    )


def gradient_alignment(config, subspace, inner, gradient):
    """χ_k of a gradient in the coordinates P^½ θ of the subspace."""
    root = preconditioning.root(preconditioner(config, inner))
    return subspace.alignment(preconditioning.divide(root, gradient))


def own(config, layout, state: TrainState, task: Task, start) -> dict:
    """The values of the functions in `config.measures.own`, by column.

    `start` has the parameters at step 0. A function gets the fields of
    `config.measures.options` that it names.
    """
    del layout
    field, columns = "config.measures.own", {}
    given = {"params": state.params, "start": start, "step": state.step}
    given |= {"subspace": state.projection.subspace, "objective": task.train}
    for path in config.measures.own:
        names = plugins.taken(field, path)
        options = {k: v for k, v in config.measures.options.items() if k in names}
        found = plugins.call(field, path, options, **given)
        name = own_column(path)
        parts = found if isinstance(found, dict) else {"": found}
        for key, value in parts.items():
            if not (checks.is_data(value) or isinstance(value, list | tuple)):
                got = type(value).__name__ + f" at {key!r}" * bool(key)
                raise plugins.PluginError(
                    f"{field} has {path!r}, which returned a {got}; it must return a "
                    "number, an array or a dict of them."
                )
            with plugins.telling(field, path):
                columns[f"{name}/{key}".rstrip("/")] = jnp.asarray(value)
    return columns


def sharpness(config, layout, state: TrainState, task: Task):
    """λ_1 of the (preconditioned) Hessian of the training loss to 1 %, or NaN."""
    matvec = hessian(task.train, state.params, mode=config.subspace.mode)
    scale = preconditioner(config, state.inner)
    known = scale is None or state.step > 0
    matvec = preconditioning.preconditioned(matvec, scale)
    matvec = sharded(matvec, layout.parameters(state.params))
    # The start is the whole subspace, because eigenvalues change places.
    found = top_eigenpairs(matvec, state.projection.subspace, 1, tol=1e-2)
    return jnp.where(found.converged & known, found.eigenvalues[0], jnp.nan)


def measure(config, layout, state: TrainState, task: Task, feed, key):
    """`measures.measure` on the data of the curvature, and further columns."""
    found = measures.measure(
        state.params,
        state.projection.subspace,
        task.curvature or task.train,
        (lambda i: task.batch(feed, i), len(jax.tree.leaves(feed)[0])),
        key,
        config.measures.num_probes,
        mode=config.subspace.mode,
        sharding=layout.parameters(state.params),
        preconditioner=preconditioner(config, state.inner),
    )
    profile = measures.ranks(state.params, state.projection.subspace)
    columns = {"": profile["whole"], **profile["leaves"]}
    shares = {
        f"rank_profile/{name}".rstrip("/"): jnp.nanmean(x, axis=0)
        for name, x in columns.items()
    }
    return found, fidelity(config, layout, state, task) | shares


def along_step(config, layout, state: TrainState, task: Task, feed, rate) -> dict:
    """Columns about the next step, whose mini-batch is the first of a feed.

    `step_measures` takes the update at this learning rate, before it is scaled, and the
    data of the curvature. The batch sharpness is that of the feed, along gradients and
    along updates. The last column is the localization of the eigenvectors.
    """
    params, mode = state.params, config.subspace.mode
    subspace, batch = state.projection.subspace, functools.partial(task.batch, feed)

    def directions(loss):
        gradient = jax.grad(loss)(params)
        given = config.optimizer, rate, loss, state.inner, params, gradient
        return [gradient, optimizers.update(*given)[0]]

    found = step_measures(
        task.curvature or task.train,
        params,
        directions(batch(0))[1],
        subspace,
        mode=mode,
        sharding=layout.parameters(params),
    )
    count = len(jax.tree.leaves(feed)[0])
    operator = functools.partial(hessian, params=params, mode=mode)
    sharpness = measures.batch_sharpness(batch, count, operator, directions)
    columns = {f"step/{name}": value for name, value in found._asdict().items()}
    return columns | {
        "step/critical_sharpness": 2 / (rate * found.critical_scale),
        "batch_sharpness": sharpness[0],
        "batch_sharpness_update": sharpness[1],
        "localization": localization(subspace),
    }


def fidelity(config, layout, state: TrainState, task: Task) -> dict:
    """How far the subspace in use is from the one it stands for, as scalars by name.

    They are NaN where a solve fails. They compare it with a Lanczos solve on the data
    of the curvature. Where these are a subset, `subsampling_error` adds what the subset
    misses.
    """
    space, params = config.subspace, state.params
    objective = task.curvature or task.train
    scale, places = preconditioner(config, state.inner), layout.parameters(params)
    gradient = jax.grad(task.train)(params)
    gradient = preconditioning.divide(preconditioning.root(scale), gradient)
    matvec = hessian(objective, params, mode=space.mode)
    matvec = sharded(preconditioning.preconditioned(matvec, scale), places)
    # The overlap errs by the tolerance over the gap to λ_{k+1}, squared.
    exact = top_eigenpairs(matvec, gradient, space.rank, tol=1e-4)
    overlap = state.projection.subspace.overlap(exact)
    alignment = exact.alignment(gradient)
    facts = {
        "exact_overlap": jnp.where(exact.converged, overlap, jnp.nan),
        "exact_alignment": jnp.where(exact.converged, alignment, jnp.nan),
    }
    if space.data == "subset":
        total = task.num_train or task.train.num_examples
        ways = {"mode": space.mode, "sharding": places, "preconditioner": scale}
        missed = subsampling_error(
            objective, params, gradient, space.rank, total, **ways
        )
        for name in ("eigenvalues", "overlap", "projection"):
            value = jnp.where(missed.converged, getattr(missed, name), jnp.nan)
            facts[f"subsampling_{name}"] = value
    return facts


def _loss_and_accuracy(part: Objective, params):
    outputs = part.outputs(params)
    return part.loss(outputs), accuracy(outputs, part.targets)
