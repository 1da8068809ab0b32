"""The preconditioned Hessian and projections in its coordinates, against matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    count_equations,
    dense,
    exact_solver,
    flat,
    largest,
    mlp,
    objective,
    operator,
    projector,
    quadratic,
    rows,
    squared_error,
    symmetric,
    top,
)
from optimizer_runs import (
    ADAM,
    OPTIMIZERS,
    STEPS,
    assert_equal_runs,
    by_hand,
    make_config,
    run,
    scale_parts,
    shaped,
)

import bulk_sgd
from bulk_sgd.curvature.operators import linearize
from bulk_sgd.lab import config as config_lib

MATRIX = symmetric([9.0, 5.0, 2.0, 1.0, 0.5], seed=1)
P = np.array([4.0, 0.25, 1.0, 100.0, 0.01])
ROOT = np.sqrt(P)
SCALED = MATRIX / np.outer(ROOT, ROOT)
PARAMS = {"a": np.array([1.0, -2.0]), "b": np.array([[0.5], [3.0], [-1.0]])}
PRECONDITIONER = {"a": P[:2], "b": P[2:, None]}
W = ROOT * np.cos(flat(PARAMS))  # the update below in its coordinates


@functools.partial(jax.jit, static_argnums=0)
def project(tx, params, preconditioner=None):
    """The update cos(params) after a transform, and the state of it."""
    return tx.update(
        jax.tree.map(jnp.cos, params),
        tx.init(params),
        params,
        value_fn=quadratic(MATRIX),
        preconditioner=preconditioner,
    )


def test_product_is_the_dense_one(x64):
    made, params = objective(mlp(), squared_error)
    matvec = bulk_sgd.hessian(made, params)
    scale = jax.tree.map(lambda p: 0.1 + p**2, params)
    found = dense(bulk_sgd.preconditioned(matvec, scale), params)
    root = np.sqrt(flat(scale))
    expected = dense(matvec, params) / np.outer(root, root)
    # Two float64 divisions around one product.
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found, found.T, atol=1e-10)


def test_solves_share_a_program_and_one_primal_pass():
    made, params = objective(mlp(), squared_error, dtype=jnp.float32)
    solve = jax.jit(functools.partial(bulk_sgd.top_eigenpairs, rank=2, tol=1e-5))
    for factor in (1.0, 4.0):
        scale = jax.tree.map(lambda p, f=factor: jnp.full_like(p, f), params)
        matvec = bulk_sgd.preconditioned(bulk_sgd.hessian(made, params), scale)
        found = solve(matvec, params).eigenvalues
        expected, _ = top(dense(bulk_sgd.hessian(made, params), params), 2)
        np.testing.assert_allclose(found, expected / factor, rtol=1e-4)
    assert solve._cache_size() == 1
    count = lambda fn: count_equations(jax.make_jaxpr(fn)(params), "tanh")
    linear = lambda v: [linearize(matvec)(v)]
    twice = lambda v: (lambda product: [product(v), product(v)])(matvec.linearize())
    assert count(linear) == count(twice) > 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_update_is_projected_in_its_coordinates(x64, dtype):
    scales = 0.25, 1.5
    tx = bulk_sgd.scale_by_subspace(2, *scales, solver=exact_solver())
    params, preconditioner = jax.tree.map(dtype, (PARAMS, PRECONDITIONER))
    found, state = project(tx, params, preconditioner)
    values, dominant = top(SCALED, 2)
    inside = dominant @ W
    expected = (scales[0] * inside + scales[1] * (W - inside)) / ROOT
    # P spans 1e4, and with it the entries of the scaled matrix.
    tolerance = {np.float32: 1e-4, np.float64: 1e-11}[dtype]
    np.testing.assert_allclose(flat(found), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(state.subspace.eigenvalues, values, rtol=tolerance)
    span = projector(rows(state.subspace.eigenvectors))
    np.testing.assert_allclose(span, dominant, atol=tolerance)
    chi = np.linalg.norm(inside) / np.linalg.norm(W)
    assert float(state.alignment) == pytest.approx(chi, rel=10 * tolerance)
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(
        lambda x: x.dtype, params
    )


def test_by_lanczos_too_and_a_preconditioner_of_ones_changes_nothing():
    params, preconditioner = jax.tree.map(np.float32, (PARAMS, PRECONDITIONER))
    tx = bulk_sgd.project_bulk(2, solver=bulk_sgd.lanczos(tol=1e-5))
    expected = (W - top(SCALED, 2)[1] @ W) / ROOT
    found, plain, ones = (
        flat(project(tx, params, scale)[0])
        for scale in (preconditioner, None, jax.tree.map(np.ones_like, params))
    )
    # A projector to 1e-5 and rounding, divided by √P = 0.1 and more.
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(ones, plain, atol=1e-6)


def test_equal_scales_leave_the_update_bit_for_bit():
    params, preconditioner = jax.tree.map(np.float32, (PARAMS, PRECONDITIONER))
    tx = bulk_sgd.scale_by_subspace(2, solver=exact_solver())
    found, _ = project(tx, params, preconditioner)
    updates = jax.jit(functools.partial(jax.tree.map, jnp.cos))(params)
    np.testing.assert_array_equal(flat(found), flat(updates))


def test_a_mask_selects_of_the_preconditioner_too(x64):
    mask = {"a": False, "b": True}
    tx = bulk_sgd.project_bulk(1, solver=exact_solver(), mask=mask)
    found, _ = project(tx, PARAMS, PRECONDITIONER)
    expected = (W[2:] - top(SCALED[2:, 2:], 1)[1] @ W[2:]) / ROOT[2:]
    np.testing.assert_allclose(flat(found)[2:], expected, rtol=1e-10)
    np.testing.assert_allclose(found["a"], np.cos(PARAMS["a"]), rtol=1e-15)


@pytest.mark.parametrize(("decay", "eps_root"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.3)])
def test_adam_steps_by_the_inverse_of_its_preconditioner(x64, decay, eps_root):
    constants = 0.8, 0.95, 1e-3, eps_root
    inner = optax.adamw(0.1, *constants, weight_decay=decay)
    tx = optax.chain(optax.clip_by_global_norm(1e9), inner)
    scale_of = jax.jit(lambda state: bulk_sgd.adam_preconditioner(state, *constants))
    state, average = tx.init(PARAMS), np.zeros(5)
    assert np.all(np.isfinite(flat(scale_of(state))))
    for step in range(3):
        grads = jax.tree.map(lambda p, s=step: np.cos(p + s), PARAMS)
        average = 0.8 * average + 0.2 * flat(grads)
        updates, state = jax.jit(tx.update)(grads, state, PARAMS)
        scale = flat(scale_of(state))
        expected = -0.1 * (average / scale + decay * flat(PARAMS))
        np.testing.assert_allclose(flat(updates), expected, rtol=1e-12)


@pytest.mark.parametrize("number", [0, 2])
def test_other_states_than_of_one_adam_are_refused(number):
    state = [optax.scale_by_adam().init(jnp.zeros(2))] * number
    with pytest.raises(ValueError, match=rf"state has {number} states of Adam in it; "):
        bulk_sgd.adam_preconditioner(state)


@pytest.mark.parametrize("wrong", [np.ones(5), {"a": P[:2], "b": P[2:]}])
def test_a_preconditioner_unlike_the_params_is_refused(wrong):
    tx = bulk_sgd.project_bulk(1)
    state = tx.init(PARAMS)
    with pytest.raises(
        ValueError, match=r"preconditioner has the shapes .* like the p"
    ):
        tx.update(
            PARAMS, state, PARAMS, value_fn=quadratic(MATRIX), preconditioner=wrong
        )


def test_it_wraps_any_matvec():
    matvec = bulk_sgd.preconditioned(operator(MATRIX), jnp.asarray(P))
    found = dense(matvec, jnp.ones(5))
    np.testing.assert_allclose(found, SCALED, rtol=1e-5)


def scale_parts_preconditioned(vector, hessian, state):
    """The same in the coordinates P^½ θ of Adam, with its numbers from its state."""
    scale = state[0]
    count = int(scale.count)
    corrected = flat(scale.nu) / (1 - 0.9**count)
    root = np.sqrt((1 - 0.8**count) * (np.sqrt(corrected) + 1e-3))
    scaled, chi = scale_parts(flat(vector) * root, hessian / np.outer(root, root))
    return shaped(scaled / root, vector), chi


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_preconditioned_run_is_a_loop_of_optax(data_file, name):
    fields, optimizer, extra = OPTIMIZERS[name]
    config = make_config(data_file, **fields)
    config.subspace.preconditioned = True
    made, state, trace = run(config)
    expected = by_hand(made, optimizer, "update", extra, scale_parts_preconditioned)
    assert_equal_runs(made, state, trace, *expected)


@pytest.fixture(scope="module")
def ran(data_file):
    """A preconditioned experiment, its state at the end, and P^½ by its formula."""
    config = make_config(data_file, name="adam", **ADAM)
    config.subspace.preconditioned = True
    made, state, _ = run(config)
    scale = optax.tree_utils.tree_get(state.inner, "nu")
    power = 1 - 0.9**STEPS, 1 - 0.8**STEPS
    root = jax.tree.map(
        lambda v: np.sqrt(power[1] * (np.sqrt(v / power[0]) + 1e-3)), scale
    )
    return made, made.programs, state, root


def test_alignment_of_the_gradient_is_measured_in_the_same_coordinates(ran):
    made, programs, state, root = ran
    found = programs.evaluate(state, made.task)
    gradient = flat(jax.jit(jax.grad(made.task.train))(state.params)) / flat(root)
    inside = rows(state.projection.subspace.eigenvectors) @ gradient
    expected = np.linalg.norm(inside) / np.linalg.norm(gradient)
    assert float(found.alignment_gradient) == pytest.approx(expected, rel=1e-4)


def test_sharpness_is_that_of_the_dense_preconditioned_hessian(ran):
    made, programs, state, root = ran
    matrix = dense(bulk_sgd.hessian(made.task.train, state.params), state.params)
    (exact,) = largest(matrix / np.outer(flat(root), flat(root)))
    assert exact > 2 * largest(matrix)[0]  # not that of H
    # Solved to residuals of 1e-2, which bound the error of the eigenvalue.
    found = programs.sharpness(state, made.task)
    assert float(found) == pytest.approx(exact, rel=1e-2)


def test_sharpness_is_unknown_before_adam_has_a_preconditioner(ran):
    made, programs, _, _ = ran
    assert np.isnan(programs.sharpness(made.start(), made.task))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "name 'sgd', .* of 'adam', 'adamw' or 'muon': SGD has none"),
        ({"name": "sophia"}, "name 'sophia', .*: Sophia clips its steps"),
        ({"name": "sam"}, "name 'sam', .*: SAM has none"),
        ({"name": "adam", "projection": "gradient"}, "projection 'gradient': the op"),
    ],
)
def test_preconditioned_is_refused_without_a_preconditioner(changes, message):
    config = config_lib.default()
    config.subspace.preconditioned = True
    config.optimizer.update(changes)
    start = r"^config\.subspace\.preconditioned is True; it must be False with config"
    with pytest.raises(ValueError, match=rf"{start}\.optimizer\.{message}"):
        config_lib.validate(config)
