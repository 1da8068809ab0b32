"""Preconditioners of matrices, and projections in their coordinates, against dense."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dense_muon import by_formula, power
from helpers import (
    dense,
    exact_solver,
    flat,
    mlp,
    objective,
    quadratic,
    squared_error,
    symmetric,
    top,
)
from optax import contrib

import bulk_sgd
from bulk_sgd.curvature import preconditioning

NUMBERS = contrib.MuonDimensionNumbers
SHAPES = {  # of a parameter, with the axes that are rows and columns for Muon
    "square": ((3, 3), NUMBERS()),
    "wide": ((2, 4), NUMBERS()),
    "tall": ((4, 2), NUMBERS()),
    "stack": ((2, 3, 2), NUMBERS(1, 2)),
    "kernel": ((2, 2, 1, 3), NUMBERS((0, 1, 2), 3)),
    "turned": ((3, 2, 2), NUMBERS(2, (0, 1))),
}
STEPS, BETA, RATE = 3, 0.9, 0.1


def positive(size, seed):
    return symmetric(np.geomspace(0.1, 10, size), seed)


def as_matrix(preconditioner, like):
    """The dense P: its square root, twice."""
    root = preconditioning.root(preconditioner)
    half = dense(functools.partial(preconditioning.multiply, root), like)
    back = dense(functools.partial(preconditioning.divide, root), like)
    np.testing.assert_allclose(half @ back, np.eye(len(half)), atol=1e-10)
    return half @ half


@pytest.mark.parametrize("name", SHAPES)
def test_muon_steps_by_the_inverse_of_its_preconditioner(x64, name):
    shape, numbers = SHAPES[name]
    params = {"w": jnp.ones(shape), "b": jnp.ones(3)}
    axes = {"w": numbers, "b": None}
    # Newton's iteration for U Vᵀ, with enough steps to converge.
    iteration = {"ns_coeffs": (1.5, -0.5, 0.0), "ns_steps": 40}
    given = {"adam_b1": 0.8, "adam_b2": 0.95, "eps": 1e-6}
    optimizer = contrib.muon(
        RATE,
        beta=BETA,
        nesterov=False,
        adam_learning_rate=RATE / 4,
        muon_weight_dimension_numbers=axes,
        **iteration,
        **given,
    )
    state = optimizer.init(params)
    average = {"w": np.zeros(shape), "b": np.zeros(3)}
    for seed in range(STEPS):
        draw = np.random.default_rng(seed).standard_normal
        grads = jax.tree.map(lambda p, draw=draw: jnp.asarray(draw(p.shape)), params)
        updates, state = optimizer.update(grads, state, params)
        for key, decay in (("w", BETA), ("b", 0.8)):
            average[key] = decay * average[key] + (1 - decay) * np.asarray(grads[key])
    scale = bulk_sgd.muon_preconditioner(
        state,
        iteration["ns_steps"],
        adam_scale=4.0,
        muon_weight_dimension_numbers=axes,
        **given,
    )
    matrix = as_matrix(scale, params)
    expected = -RATE * np.linalg.solve(matrix, flat(average))
    # The iteration stops at singular values of 1 to about 1e-9.
    np.testing.assert_allclose(flat(updates), expected, rtol=1e-6, atol=1e-8)
    formula = by_formula(average["w"], numbers, 1.5**40, 1e-6)
    np.testing.assert_allclose(matrix[3:, 3:], formula, rtol=1e-6, atol=1e-9)


def test_small_singular_values_end_at_the_gain_of_the_iteration(x64):
    momentum = np.outer([1.0, 2.0, 2.0], [3.0, 4.0])  # of rank one
    state = contrib.muon(RATE).init({"w": jnp.ones((3, 2))})
    state = optax.tree_utils.tree_set(state, mu={"w": jnp.asarray(momentum)})
    scale = bulk_sgd.muon_preconditioner(state)["w"]
    formula = by_formula(momentum, NUMBERS(), 3.4445**5)
    np.testing.assert_allclose(as_matrix(scale, jnp.ones((3, 2))), formula, rtol=1e-5)
    values = np.unique(np.linalg.eigvalsh(formula).round(6))
    np.testing.assert_allclose(values, 15 * 3.4445 ** -np.array([5, 2.5, 0]), rtol=1e-4)


def test_shampoo_and_soap_are_the_dense_products(x64):
    left, right = (np.stack([positive(n, seed) for seed in (0, n)]) for n in (3, 2))
    like = jnp.ones((2, 3, 2))  # a stack of two
    expected = np.zeros((12, 12))
    for i in range(2):
        block = slice(6 * i, 6 * i + 6)
        expected[block, block] = np.kron(power(left[i], 0.5), power(right[i], 0.5))
    scale = bulk_sgd.kronecker_preconditioner(left, right, 0.5)
    np.testing.assert_allclose(as_matrix(scale, like), expected, rtol=1e-10, atol=1e-12)

    values = np.random.default_rng(0).uniform(1, 2, (2, 3, 2))
    frames = [np.linalg.eigh(x)[1] for x in (left, right)]
    for i in range(2):
        block, frame = slice(6 * i, 6 * i + 6), np.kron(*(f[i] for f in frames))
        expected[block, block] = (frame * values[i].ravel()) @ frame.T
    scale = bulk_sgd.eigenbasis_preconditioner(*frames, values)
    np.testing.assert_allclose(as_matrix(scale, like), expected, rtol=1e-10, atol=1e-12)


def test_a_singular_factor_ends_at_a_share_of_its_largest_eigenvalue(x64):
    left, right = np.diag([16.0, 0.0]), np.eye(1)
    scale = bulk_sgd.kronecker_preconditioner(left, right, 0.25, eps=1e-4)
    found = np.diag(as_matrix(scale, jnp.ones((2, 1))))
    np.testing.assert_allclose(found, [2, 0.2], rtol=1e-10)


def test_factors_of_zeros_leave_the_projection_finite(x64):
    zeros = np.zeros((2, 2)), np.zeros((3, 3))
    scale = bulk_sgd.kronecker_preconditioner(*zeros)
    params, update = jnp.ones((2, 3)), jnp.cos(jnp.arange(6.0)).reshape(2, 3)
    tx = bulk_sgd.project_bulk(1, solver=exact_solver())
    given = {"value_fn": quadratic(MATRIX[:6, :6]), "preconditioner": scale}
    found, _ = tx.update(update, tx.init(params), params, **given)
    _, dominant = top(MATRIX[:6, :6], 1)  # P is a multiple of the identity
    expected = flat(update) - dominant @ flat(update)
    np.testing.assert_allclose(flat(found), expected, rtol=1e-10, atol=1e-11)


def test_product_with_a_network_is_the_dense_one(x64):
    made, params = objective(mlp(), squared_error)
    scale = jax.tree.map(lambda p: 1 + p**2, params)
    factors = positive(3, 0), positive(4, 1)
    scale["hidden"]["w"] = bulk_sgd.kronecker_preconditioner(*factors)
    matvec = bulk_sgd.hessian(made, params)
    found = dense(bulk_sgd.preconditioned(matvec, scale), params)
    root = np.diag(np.sqrt(1 + flat(params) ** 2))
    root[4:16, 4:16] = np.kron(*(power(x, 0.125) for x in factors))
    inverse = np.linalg.inv(root)
    expected = inverse @ dense(matvec, params) @ inverse
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


MATRIX = symmetric([9.0, 5.0, 4.0, 2.0, 1.5, 1.0, 0.5, 0.1], seed=1)
PARAMS = {"a": np.array([1.0, -2.0]), "b": np.arange(1.0, 7).reshape(2, 3)}
FACTORS = positive(2, 3), positive(3, 4)
DIAGONAL = np.array([4.0, 0.25])
ROOT = np.zeros((8, 8))
ROOT[:2, :2] = np.diag(DIAGONAL**0.5)
ROOT[2:, 2:] = np.kron(*(power(x, 0.125) for x in FACTORS))


@pytest.mark.parametrize(
    ("dtype", "mask", "chosen"),
    [
        (jnp.float64, None, slice(8)),
        (jnp.float32, None, slice(8)),
        (jnp.float64, {"a": False, "b": True}, slice(2, 8)),
        (jnp.float64, {"a": True, "b": False}, slice(2)),
    ],
)
def test_update_is_projected_in_its_coordinates(x64, dtype, mask, chosen):
    cast = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, dtype))
    params = cast(PARAMS)
    updates = jax.tree.map(jnp.cos, params)
    factors = [cast(x) for x in FACTORS]
    scale = {"a": cast(DIAGONAL), "b": bulk_sgd.kronecker_preconditioner(*factors)}
    tx = bulk_sgd.scale_by_subspace(1, 0.25, 1.5, solver=exact_solver(), mask=mask)
    update = jax.jit(functools.partial(tx.update, value_fn=quadratic(MATRIX)))
    found, state = update(updates, tx.init(params), params, preconditioner=scale)
    root, matrix = (x[chosen, chosen] for x in (ROOT, MATRIX))
    inverse = np.linalg.inv(root)
    values, dominant = top(inverse @ matrix @ inverse, 1)
    w = root @ flat(updates)[chosen]
    inside = dominant @ w
    expected = flat(updates).copy()
    expected[chosen] = inverse @ (0.25 * inside + 1.5 * (w - inside))
    # A few products in float32 with matrices of condition number 10.
    tolerance = {jnp.float32: 1e-5, jnp.float64: 1e-11}[dtype]
    np.testing.assert_allclose(flat(found), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(state.subspace.eigenvalues, values, rtol=tolerance)
    chi = np.linalg.norm(inside) / np.linalg.norm(w)
    assert float(state.alignment) == pytest.approx(chi, rel=10 * tolerance)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((np.ones((2, 3)), np.eye(2)), r"left is of shape \(2, 3\); .*square"),
        ((np.eye(2), np.ones(3)), r"right is of shape \(3,\); .*square"),
        ((np.eye(2), np.eye(2), -1.0), "power is -1.0; it must be a number, at least"),
        ((np.eye(2), np.eye(2), 1, 0), "eps is 0; it must be a number above 0"),
    ],
)
def test_wrong_arguments_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        bulk_sgd.kronecker_preconditioner(*given)


def test_eigenvalues_of_another_shape_are_refused():
    with pytest.raises(
        ValueError, match=r"right is of shape \(2, 2\); .*\(3, 3\), bec"
    ):
        bulk_sgd.eigenbasis_preconditioner(np.eye(2), np.eye(2), np.ones((2, 3)))


def test_a_kronecker_of_another_parameter_is_refused():
    scale = {"a": jnp.ones(2), "b": bulk_sgd.kronecker_preconditioner(*FACTORS[::-1])}
    tx = bulk_sgd.project_bulk(1)
    given = PARAMS, tx.init(PARAMS), PARAMS
    with pytest.raises(
        ValueError, match=r"preconditioner has the shapes .*\(3, 2\).*p"
    ):
        tx.update(*given, value_fn=quadratic(MATRIX), preconditioner=scale)


def test_a_state_without_muon_is_refused():
    state = optax.adam(0.1).init(jnp.zeros(2))
    with pytest.raises(ValueError, match="state has 0 states of Muon in it; "):
        bulk_sgd.muon_preconditioner(state)
