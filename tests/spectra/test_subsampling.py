"""The stated error of a sample's curvature against the dense truth in float64."""

import dataclasses

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bulk_sgd

pytestmark = pytest.mark.slow  # each test trains, or compiles solves of its own

TOTAL, RANK = 2000, 3
MODEL_FN, PARAMS, _ = helpers.mlp()
INPUTS = np.random.default_rng(5).standard_normal((TOTAL, 3)) * [3, 2, 1]
TARGETS = np.tanh(INPUTS[:, :2]) + 0.3 * np.random.default_rng(6).standard_normal(
    (TOTAL, 2)
)
PARAMS = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)


def sample(indices, microbatch_size=None):
    arrays = (jnp.asarray(x[indices], jnp.float32) for x in (INPUTS, TARGETS))
    return bulk_sgd.Objective(MODEL_FN, helpers.squared_error, *arrays, microbatch_size)


def exact(objective):
    return helpers.top(helpers.dense(bulk_sgd.hessian(objective, PARAMS), PARAMS), RANK)


ALL = sample(slice(None))
VECTOR = jax.grad(ALL)(PARAMS)
ESTIMATE = jax.jit(
    lambda objective: bulk_sgd.subsampling_error(
        objective, PARAMS, VECTOR, RANK, TOTAL, tol=1e-5
    )
)


@pytest.mark.parametrize("drawn", [100, pytest.param(1600, marks=pytest.mark.slow)])
def test_estimates_are_within_a_factor_of_the_truth(drawn):
    values, projector = exact(ALL)
    vector = helpers.flat(VECTOR)
    true, stated = [], []
    for seed in range(20):
        indices = np.random.default_rng(seed).permutation(TOTAL)[:drawn]
        objective = sample(indices)
        found = ESTIMATE(objective)
        assert bool(found.converged)
        own_values, own = exact(objective)
        gap = np.linalg.norm((own - projector) @ vector) / np.linalg.norm(vector)
        true.append(
            [
                np.mean((own_values - values) ** 2),
                1 - np.sum(own * projector) / RANK,
                gap**2,
            ]
        )
        stated.append([found.eigenvalues**2, 1 - found.overlap, found.projection**2])
    # The factor that the docstring states; over 20 samples a root mean square is itself
    # known to some 15 %.
    ratio = np.sqrt(np.mean(stated, axis=0) / np.mean(true, axis=0))
    assert np.all(ratio > 1 / 1.5), ratio
    assert np.all(ratio < 1.5), ratio


def test_all_of_the_data_has_no_error():
    found = bulk_sgd.subsampling_error(ALL, PARAMS, VECTOR, RANK, TOTAL)
    assert float(found.overlap) == 1
    assert float(found.eigenvalues) == float(found.projection) == 0


def test_halves_are_microbatched_like_the_sample():
    indices = np.arange(50)
    whole, parts = ESTIMATE(sample(indices)), ESTIMATE(sample(indices, 10))
    # Residuals of 1e-5 λ_1 either way.
    np.testing.assert_allclose(parts[:3], whole[:3], rtol=1e-2)
    # Two groups of 25, of which a half has no even share.
    groups = dataclasses.replace(sample(indices, 10), num_groups=2)
    np.testing.assert_allclose(ESTIMATE(groups)[:3], whole[:3], rtol=1e-2)


@pytest.mark.parametrize(
    ("objective", "total", "error", "match"),
    [
        (lambda p: 0.0, 9, TypeError, "needs a bulk_sgd.Objective"),
        (sample([0]), 9, ValueError, "of objective is 1; it must be at least 2"),
        (sample([0, 1]), 1, ValueError, "num_examples is 1; it must be at least 2"),
    ],
)
def test_wrong_arguments_are_named(objective, total, error, match):
    with pytest.raises(error, match=match):
        bulk_sgd.subsampling_error(objective, PARAMS, VECTOR, RANK, total)
