"""Estimates and their standard errors: honest, in all units, for all shapes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import operator, symmetric
from jax.tree_util import Partial

import bulk_sgd
from bulk_sgd.solvers import subspace
from bulk_sgd.spectra import energies
from bulk_sgd.spectra.energies import Estimate

SIZE, REPEATS = 100, 300
RNG = np.random.default_rng(0)
OUTLIERS = np.append([20.0, 12, 8], RNG.standard_normal(SIZE - 3))
# Squares of float32 leave it at 2^±64.
SCALES = [2.0**e for e in (-100, -80, 80, 110)]


@jax.jit
def repeat(estimate):
    """Values and errors of many seeds."""
    return jax.lax.map(estimate, jax.random.split(jax.random.key(1), REPEATS))


def scores(values, errors, truth):
    """How far values are off, in their own errors."""
    return (np.asarray(values, np.float64) - truth) / np.asarray(errors)


def honest(scores):
    """Whether z-scores are like normal ones; 300 of them spread by 4 % of it."""
    return np.all((np.std(scores, axis=0) > 0.8) & (np.std(scores, axis=0) < 1.2))


@pytest.mark.parametrize("probes", [2, 4, pytest.param(10, marks=pytest.mark.slow)])
def test_errors_of_a_density_are_honest_for_few_probes(probes):
    matvec, points = operator(np.diag(OUTLIERS), jnp.float32), np.array([-0.5, 0.5])

    def estimates(key):
        found = bulk_sgd.spectral_density(matvec, jnp.zeros(SIZE), probes, 40, key=key)
        return found.trace, found.frobenius, found.distribution(jnp.asarray(points))

    trace, frobenius, distribution = repeat(Partial(estimates))
    assert honest(scores(*trace, np.sum(OUTLIERS)))
    assert honest(scores(*frobenius, np.sum(OUTLIERS**2)))
    below = np.mean(points[:, None] >= OUTLIERS, axis=1)
    assert honest(scores(*distribution, below))


def shares(matvec, pairs, key):
    """Three shares, and their errors."""
    found = bulk_sgd.energies(matvec, pairs, key=key)
    values = found.trace_share, found.frobenius_share, found.block_share
    errors = (
        found.trace_share_error,
        found.frobenius_share_error,
        found.block_share_error,
    )
    return jnp.stack(values), jnp.stack(errors)


# The trace, all of it in three known directions, is so many times its standard error.
@pytest.mark.parametrize("clear", [4, 8, 30])
def test_shares_and_their_errors_are_honest(clear):
    bulk = np.random.default_rng(1).standard_normal(SIZE - 3)
    bulk -= bulk.mean()
    error = np.sqrt(2 * np.sum(bulk**2) / 30)
    known = np.array([3.0, 2, 1]) * clear * error / 6
    matrix = symmetric([*known, *bulk])
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((SIZE, SIZE)))[0]
    pairs = subspace.empty(jnp.zeros(SIZE), 3)
    pairs = pairs._replace(eigenvectors=jnp.asarray(vectors.T[:3], jnp.float32))
    matvec = operator(matrix, jnp.float32)
    block = np.sum(known**2) / np.sum([*known**2, *bulk**2])
    truth = np.array([1, block, block])
    values, errors = repeat(Partial(shares, matvec, pairs))
    assert honest(scores(values, errors, truth))
    # Without its correction the first share is 1.09 on average at clear = 4.
    assert np.all(np.abs(values.mean(0) / truth - 1) < 0.04)


@pytest.mark.parametrize("unit", [1.0, *SCALES])
def test_the_share_of_a_total_that_may_be_zero_is_unknown(unit):
    def share(*numbers):
        part, total, error = (jnp.float32(unit * x) for x in numbers)
        return [float(x) for x in energies._share(part, Estimate(total, error))]

    assert share(2, 3, 1) == pytest.approx([0.6, 0.25])  # 2 / 2 and 2 / 4 are 0.5 apart
    assert share(-2, -3, 1) == pytest.approx([0.6, 0.25])
    assert share(2, 1, 1) == [1, np.inf]
    assert share(2, 0, 1) == [0, np.inf]
    assert share(2, 4, 0) == [0.5, 0]
    assert np.isnan(share(2, 0, 0)).all()
    value, error = share(2, 4, np.nan)  # of one probe
    assert value == 0.5
    assert np.isnan(error)


@functools.cache
def measures(scale):
    """Of a matrix in other units: what stays, and the rest in the units of before."""
    matvec = operator(scale * symmetric([5, 3, *np.linspace(-1, 1, 18)]), jnp.float32)
    like = jnp.ones(20)
    pairs = bulk_sgd.top_eigenpairs(matvec, like, 2, tol=1e-5)
    found = bulk_sgd.energies(matvec, pairs)
    density = bulk_sgd.spectral_density(matvec, like, 5, 6)
    points = jnp.linspace(-1, 5, 7) * scale
    plain = density.distribution(points), density.weights, pairs.eigenvectors**2
    scaled = (
        *(pairs.eigenvalues, density.nodes, found.rayleigh),
        *(found.trace, found.trace_error, found.trace_dominant),
        *(density.trace, density.quantile(jnp.array([0.3, 0.9]))),
        *(bulk_sgd.trace(matvec, like), bulk_sgd.trace(matvec, like, sketch=0)),
        1 / density.density(points).value,
    )
    return [*plain, *found[-6:]], jax.tree.map(lambda x: x / scale, scaled)


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
def test_measures_are_the_same_in_all_units(scale):
    for got, right in zip(measures(scale), measures(1.0)):
        got, right = (
            np.hstack([np.ravel(x) for x in jax.tree.leaves(y)]) for y in (got, right)
        )
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_subsampling_is_the_same_in_all_units():
    inputs = jnp.asarray(RNG.standard_normal((20, 6)), jnp.float32)

    def loss_fn(outputs, targets):
        unit, target = targets
        return unit * (outputs - target) ** 2

    model_fn = lambda w, x: x @ w

    def measure(scale):
        targets = jnp.full(20, scale), inputs[:, 0]
        sample = bulk_sgd.Objective(model_fn, loss_fn, inputs, targets)
        found = bulk_sgd.subsampling_error(sample, jnp.ones(6), jnp.ones(6), 2, 100)
        return found._replace(eigenvalues=found.eigenvalues / scale)

    right = measure(1.0)
    for scale in SCALES:
        np.testing.assert_allclose(measure(scale), right, rtol=1e-4)


@pytest.fixture
def quartic():
    """A loss whose Hessian is diagonal and of rank three."""
    weights = jnp.zeros(12).at[:3].set(1)
    return lambda w: jnp.sum(weights * w**4)


@pytest.mark.parametrize("sketch", [0, 2, 10, 12])
def test_a_trace_has_a_derivative(quartic, sketch):
    def trace(w):
        return bulk_sgd.trace(bulk_sgd.hessian(quartic, w), w, sketch=sketch).value

    value, slope = jax.jit(jax.value_and_grad(trace))(jnp.ones(12))
    # Random signs are exact for a diagonal matrix as long as nothing is projected.
    tol = 0.5 if sketch == 2 else 1e-4
    assert value == pytest.approx(36, rel=tol)
    np.testing.assert_allclose(slope, [24] * 3 + [0] * 9, rtol=tol, atol=tol)


@pytest.mark.slow
def test_derivatives_of_a_trace_are_unbiased(x64):
    frame = jnp.asarray(np.linalg.qr(RNG.standard_normal((12, 12)))[0])
    loss = lambda w: jnp.sum(jnp.arange(12) * (frame @ w) ** 4)
    exact = jax.grad(lambda w: jnp.trace(jax.hessian(loss)(w)))(jnp.ones(12))

    def slope(key):
        trace = lambda w: (
            bulk_sgd.trace(bulk_sgd.hessian(loss, w), w, 5, 3, key=key).value
        )
        return jax.grad(trace)(jnp.ones(12))

    slopes = jax.jit(lambda keys: jax.lax.map(slope, keys))(
        jax.random.split(jax.random.key(0), REPEATS)
    )
    error = slopes.std(0) / REPEATS**0.5
    assert np.all(np.abs(slopes.mean(0) - exact) < 4 * error)


@pytest.mark.parametrize("size", [1, 2, 4, 9])
def test_a_trace_of_few_parameters_needs_no_other_sketch(size):
    found = bulk_sgd.trace(operator(np.diag(np.arange(1.0, size + 1))), jnp.ones(size))
    assert found.value == pytest.approx(size * (size + 1) / 2, rel=1e-5)


EMPTY = {"layer": {"a": jnp.ones(3), "none": jnp.zeros((0, 4))}, "e": jnp.zeros((2, 0))}


def quadratic(params):
    return jnp.sum(params["layer"]["a"] ** 2) + sum(
        map(jnp.sum, jax.tree.leaves(params))
    )


@pytest.mark.slow
def test_leaves_without_entries_are_no_block():
    matvec = bulk_sgd.hessian(quadratic, EMPTY)
    found = bulk_sgd.block_eigenpairs(matvec, EMPTY, rank=2)
    assert list(found) == ["layer"]
    np.testing.assert_allclose(found["layer"].eigenvalues, 2, rtol=1e-5)
    tx = bulk_sgd.project_bulk(2, solver=bulk_sgd.blockwise(bulk_sgd.power()))
    _, state = tx.update(EMPTY, tx.init(EMPTY), EMPTY, value_fn=quadratic)
    assert state.failed_refreshes == 0
    np.testing.assert_allclose(state.subspace.eigenvalues, 2, rtol=1e-5)


@pytest.mark.slow
def test_measures_broadcast_no_ranks_and_take_empty_leaves(strict_ranks):
    matvec = bulk_sgd.hessian(quadratic, EMPTY)
    pairs = bulk_sgd.top_eigenpairs(matvec, EMPTY, rank=2)
    assert bulk_sgd.trace(matvec, EMPTY).value == pytest.approx(6, rel=1e-5)
    # Two of three equal eigenvalues are known, and one is in random signs.
    assert bulk_sgd.energies(matvec, pairs).frobenius == pytest.approx(12, abs=2)
    density = bulk_sgd.spectral_density(matvec, EMPTY)
    assert density.trace.value == pytest.approx(6, rel=1e-5)
    assert density.distribution(jnp.array([1.0, 3.0])).value.tolist() == [0, 1]
    assert np.isfinite(density.density(jnp.array([1.0, 3.0])).value).all()
    assert density.quantile(jnp.array([0.5])).value == pytest.approx(2, rel=1e-5)
    assert bulk_sgd.rank_profile(pairs).whole.shape == (2, 5)
