"""Weights of an Objective against dense matrices of Σ w ℓ / Σ w."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import dense

import bulk_sgd
from bulk_sgd.curvature.hessian import CURVATURES

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((8, 3)), RNG.standard_normal((8, 2))
PARAMS = RNG.standard_normal((3, 2))
WEIGHTS = RNG.uniform(0.5, 2, (8, 2))
WEIGHTS[[1, 3, 5]] = 0  # a whole microbatch of size 3, and a group of size 4
# float64 rounds to 2e-16, sums of 16 terms to a few units.
EXACT = {"rtol": 0, "atol": 1e-13}
SPLITS = [(None, 1), (1, 1), (3, 1), (4, 2), (20, 1)]


def model_fn(params, x):
    return jnp.tanh(x @ params)


def loss_fn(outputs, y):
    return (outputs - y) ** 4


def made(weights=WEIGHTS, size=None, groups=1):
    data = map(jnp.asarray, (X, Y))
    return bulk_sgd.Objective(
        model_fn, loss_fn, *data, size, groups, weights=jnp.asarray(weights)
    )


def mean(f, rows=slice(None), weights=WEIGHTS):
    return jnp.sum(weights[rows] * loss_fn(f, Y[rows])) / weights[rows].sum()


VALUE_AND_GRAD = jax.jit(lambda made, params: jax.value_and_grad(made)(params))


@functools.cache
def reference():
    return jax.jit(_reference)()


def _reference():
    outputs = lambda w: model_fn(w.reshape(3, 2), X)
    w = PARAMS.ravel()
    f, jacobian = outputs(w), jax.jacobian(outputs)(w)
    whole = jax.hessian(lambda w: mean(outputs(w)))(w)
    outer = jnp.einsum("aip,aibj,bjq->pq", jacobian, jax.hessian(mean)(f), jacobian)
    return {
        "value": mean(f),
        "gradient": jax.grad(lambda w: mean(outputs(w)))(w),
        "hessian": whole,
        "gauss_newton": outer,
        "functional_hessian": whole - outer,
    }


@pytest.mark.parametrize(("size", "groups"), SPLITS)
def test_weighted_parts_equal_the_dense_matrices(x64, size, groups):
    params, expected = jnp.asarray(PARAMS), reference()
    objective = made(size=size, groups=groups)
    value, gradient = VALUE_AND_GRAD(objective, params)
    np.testing.assert_allclose(value, expected["value"], **EXACT)
    np.testing.assert_allclose(gradient.ravel(), expected["gradient"], **EXACT)
    for kind, curvature in CURVATURES.items():
        found = dense(curvature(objective, params), params)
        np.testing.assert_allclose(found, expected[kind], **EXACT)


def test_what_is_made_of_a_weighted_objective_keeps_the_weights(x64):
    params, objective = jnp.asarray(PARAMS), made(size=3)
    rows = np.array([0, 7, 1])
    np.testing.assert_allclose(
        VALUE_AND_GRAD(objective.take(rows), params)[0],
        mean(model_fn(PARAMS, X[rows]), rows),
        **EXACT,
    )
    half = objective.reparametrize(lambda x: 2 * x)(params / 2)
    line = bulk_sgd.loss_slice(objective, params, [params], [jnp.zeros(1)])
    for value in half, line[0]:
        np.testing.assert_allclose(value, reference()["value"], **EXACT)
    bulk_sgd.check_deterministic(objective, params)
    assert jax.tree.map(lambda x: x, objective).weights is objective.weights


def test_a_mask_of_bools_is_the_mean_over_what_it_keeps(x64):
    mask = WEIGHTS > 0
    expected = mean(model_fn(PARAMS, X), weights=mask)
    for size, groups in SPLITS:
        value, _ = VALUE_AND_GRAD(made(mask, size, groups), PARAMS)
        np.testing.assert_allclose(value, expected, **EXACT)


@pytest.mark.parametrize("size", [None, 3])
def test_weights_without_a_positive_sum_are_refused_or_nan(size):
    params = jnp.asarray(PARAMS, jnp.float32)
    for wrong in 0 * WEIGHTS, WEIGHTS - 1, WEIGHTS * np.nan:
        objective = made(wrong, size)
        for use in objective, functools.partial(bulk_sgd.gauss_newton, objective):
            with pytest.raises(ValueError, match="weights has the sum"):
                use(params)
    traced = jax.jit(lambda objective, w: objective(w))
    assert np.isnan(traced(made(0 * WEIGHTS, size), params))
    assert np.isfinite(traced(made(size=size), params))


def test_weights_have_the_shape_of_the_losses():
    params = jnp.asarray(PARAMS)
    with pytest.raises(ValueError, match=r"weights is of shape \(8,\).*\(8, 2\)"):
        made(WEIGHTS[:, 0])(params)
    averaged = lambda f, y: jnp.mean(loss_fn(f, y))
    with pytest.raises(ValueError, match=r"\(8, 2\).*\(\)"):
        dataclasses.replace(made(), loss_fn=averaged)(params)
    with pytest.raises(ValueError, match="common leading axis"):
        made(WEIGHTS[:7])
