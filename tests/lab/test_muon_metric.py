"""Runs of Muon whose subspace is in its own metric, against dense matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_muon import root_of_muon
from helpers import dense, flat, rows, top
from jax.flatten_util import ravel_pytree
from optimizer_runs import (
    OPTIMIZERS,
    assert_equal_runs,
    by_hand,
    make_config,
    run,
    scale_parts,
)

import bulk_sgd
from bulk_sgd.curvature.hessian import CURVATURES

pytestmark = pytest.mark.slow  # each test trains, or compiles solves of its own


def scale_parts_of_muon(vector, hessian, state):
    """The parts in the coordinates P^½ θ of Muon."""
    flat, unravel = ravel_pytree(vector)
    root = root_of_muon(state)
    inverse = np.linalg.inv(root)
    matrix = inverse @ np.asarray(hessian, np.float64) @ inverse
    scaled, chi = scale_parts(root @ np.asarray(flat, np.float64), matrix)
    return unravel(jnp.asarray(inverse @ scaled, jnp.float32)), chi


@pytest.fixture(scope="module")
def ran(data_file):
    """A run of Muon in its own metric, and its state at the end."""
    config = make_config(data_file, **OPTIMIZERS["muon"][0])
    config.subspace.preconditioned = True
    return run(config)


def test_a_run_of_muon_is_a_loop_of_optax(ran):
    made, state, trace = ran
    _, optimizer, extra = OPTIMIZERS["muon"]
    expected = by_hand(made, optimizer, "update", extra, scale_parts_of_muon)
    assert_equal_runs(made, state, trace, *expected)


def test_sharpness_and_alignment_are_those_of_muons_metric(ran):
    made, state, _ = ran
    inverse = np.linalg.inv(root_of_muon(state.inner))
    matrix = dense(bulk_sgd.hessian(made.task.train, state.params), state.params)
    (exact,), _ = top(inverse @ matrix @ inverse, 1)
    # Solved to residuals of 1e-2, which bound the error of the eigenvalue.
    found = made.programs.sharpness(state, made.task)
    assert float(found) == pytest.approx(exact, rel=1e-2)
    gradient = inverse @ flat(jax.grad(made.task.train)(state.params))
    frame = rows(state.projection.subspace.eigenvectors)
    chi = np.linalg.norm(frame @ gradient) / np.linalg.norm(gradient)
    found = made.programs.evaluate(state, made.task).alignment_gradient
    assert float(found) == pytest.approx(chi, rel=1e-3)


def test_energies_are_those_of_muons_metric(ran):
    made, state, _ = ran
    task, params, indices = made.task, state.params, made.indices(0)[:2]
    inverse = np.linalg.inv(root_of_muon(state.inner))
    key = jax.random.key(0)
    found, facts = made.programs.measure(state, task, indices, key)
    frame = rows(state.projection.subspace.eigenvectors)
    gradient = inverse @ flat(jax.grad(task.train)(params))
    inside = frame.T @ (frame @ gradient)
    for name, make in CURVATURES.items():
        matrix = inverse @ dense(make(task.train, params), params) @ inverse
        measured = found.curvatures[name]
        # Float32 products with a matrix whose entries are up to its largest.
        near = functools.partial(pytest.approx, rel=1e-3, abs=1e-4 * abs(matrix).max())
        expected = np.diag(frame @ matrix @ frame.T)
        assert measured.energies.rayleigh.tolist() == near(expected.tolist())
        form = inside @ matrix @ inside / (gradient @ gradient)
        assert float(measured.form_dominant) == near(form)
    assert found.sum_rule_error < 1e-4
    matrix = inverse @ dense(bulk_sgd.hessian(task.train, params), params) @ inverse
    _, exact = top(matrix, len(frame))
    chi = np.linalg.norm(exact @ gradient) / np.linalg.norm(gradient)
    # A solve to 1e-4.
    assert float(facts["exact_alignment"]) == pytest.approx(chi, rel=1e-2)
    quotients = []
    for index in indices:
        batch = task.train.take(index)
        g = inverse @ flat(jax.grad(batch)(params))
        curved = inverse @ dense(bulk_sgd.hessian(batch, params), params) @ inverse
        quotients.append(g @ curved @ g / (g @ g))
    assert float(found.batch_sharpness) == pytest.approx(np.mean(quotients), rel=1e-3)
