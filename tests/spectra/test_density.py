"""Stochastic Lanczos quadrature against spectra that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import operator, symmetric
from scipy.stats import wasserstein_distance

import bulk_sgd
from bulk_sgd.spectra.density import SpectralDensity

N = 300
RANDOM = np.random.default_rng(0)
GAUSSIAN = RANDOM.standard_normal((N, N))
SPECTRA = {
    "uniform": np.linspace(-1, 1, N),
    "semicircle": np.linalg.eigvalsh(GAUSSIAN + GAUSSIAN.T),
    "outliers and bulk": np.append(
        0.3 * RANDOM.standard_normal(N - 10), np.linspace(5, 30, 10)
    ),
    "decaying": np.geomspace(1e-4, 1, N),
    "repeated": np.repeat([-1.0, 0, 2, 10], [30, 180, 60, 30]),
    "repeated, without zero": np.repeat([3.0, 5, 10], [90, 180, 30]),
    "low rank": np.append(np.zeros(N - 5), [1, 2, 3, 4, 50]),
}


def distance(found: SpectralDensity, eigenvalues):
    """Wasserstein distance to the true measure, relative to its width."""
    nodes, weights = (np.ravel(x).astype(float) for x in found[:2])
    return wasserstein_distance(nodes, eigenvalues, weights) / np.ptp(eigenvalues)


@pytest.mark.parametrize("name", SPECTRA)
def test_density_is_within_two_percent(name):
    eigenvalues = SPECTRA[name]
    matvec = operator(symmetric(eigenvalues), jnp.float32)
    found = bulk_sgd.spectral_density(matvec, jnp.zeros(N))
    assert distance(found, eigenvalues) < 0.02
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-5)
    # Ritz values lie within the spectrum, to rounding: no zero stands for nothing.
    slack = 1e-5 * np.abs(eigenvalues).max()
    assert found.nodes.min() >= eigenvalues.min() - slack
    assert found.nodes.max() <= eigenvalues.max() + slack
    truth = {
        "trace": (found.trace, eigenvalues.sum()),
        "frobenius": (found.frobenius, np.sum(eigenvalues**2)),
    }
    for (value, error), exact in truth.values():
        assert abs(value - exact) < 5 * error


def test_the_krylov_space_ends_with_the_distinct_eigenvalues():
    matvec = operator(symmetric(SPECTRA["repeated"]), jnp.float32)
    found = bulk_sgd.spectral_density(matvec, jnp.zeros(N), 7)
    assert found.num_matvecs == 7 * 4
    heavy = np.asarray(found.nodes)[np.asarray(found.weights) > 1e-6]
    nearest = np.array([-1.0, 0, 2, 10])
    # float32: eps times the norm, some hundred roundings.
    assert np.abs(heavy[:, None] - nearest).min(1).max() < 1e-4


def test_quadrature_is_exact_for_polynomials(x64):
    matrix = symmetric(SPECTRA["outliers and bulk"])
    for steps in (2, 5):
        found = bulk_sgd.spectral_density(operator(matrix), jnp.zeros(N), 1, steps)
        start = jax.random.split(jax.random.key(0), 1)[0]
        start = bulk_sgd.linalg.basis.unit(
            bulk_sgd.linalg.basis.random_normal(start, jnp.zeros(N))
        )
        for degree in range(2 * steps):
            power = np.linalg.matrix_power(matrix, degree)
            moment = np.asarray(start) @ power @ np.asarray(start)
            assert found.mean(lambda x, d=degree: x**d).value == pytest.approx(moment)


def test_orthogonality_holds_over_all_steps():
    """Without reorthogonalisation the outliers come back as ghosts, with weights."""
    eigenvalues = np.append(np.linspace(0, 1, N - 1), 1e3)
    matvec = operator(symmetric(eigenvalues), jnp.float32)
    found = bulk_sgd.spectral_density(matvec, jnp.zeros(N), 4, 100)
    assert np.all(np.sum(np.asarray(found.nodes) > 10, axis=1) == 1)


@pytest.mark.slow
def test_errors_are_those_of_repeated_estimates():
    matvec = operator(symmetric(SPECTRA["semicircle"]), jnp.float32)
    points, levels = jnp.array([-20.0, 0.0, 30.0]), jnp.array([0.2, 0.5, 0.9])

    @jax.jit
    def repeat(keys):
        def once(key):
            found = bulk_sgd.spectral_density(matvec, jnp.zeros(N), 10, 30, key=key)
            return (
                found.trace,
                found.density(points, 5.0),
                found.distribution(points),
                found.quantile(levels),
            )

        return jax.lax.map(once, keys)

    estimates = repeat(jax.random.split(jax.random.key(1), 200))
    for i, (values, errors) in enumerate(estimates):
        spread = np.std(values, axis=0)
        stated = np.sqrt(np.mean(np.square(errors), axis=0))
        # Quantiles move in steps of the nodes, so that theirs are rough.
        np.testing.assert_allclose(stated, spread, rtol=1 if i == 3 else 0.3)


def test_methods_on_measures_by_hand():
    found = SpectralDensity(
        nodes=jnp.array([[0.0, 1.0], [0.0, 3.0]]),
        weights=jnp.array([[0.5, 0.5], [0.25, 0.75]]),
        dimension=8,
        num_matvecs=jnp.int32(4),
    )
    grid = np.linspace(-2, 5, 2001)

    @jax.jit
    def methods():
        distribution = found.distribution([-1.0, 0.0, 1.0, 3.0])
        quantile = found.quantile([0.0, 0.375, 0.376, 1.0])
        return found.trace, distribution.value, quantile.value, found.density(grid, 0.3)

    trace, distribution, quantile, (density, _) = methods()
    np.testing.assert_allclose(trace, (8 * 1.375, 8 * 0.875))
    np.testing.assert_allclose(distribution, [0, 0.375, 0.625, 1])
    np.testing.assert_allclose(quantile, [0, 0, 1, 3])
    assert np.trapezoid(density, grid) == pytest.approx(1, rel=1e-4)
    assert np.trapezoid(grid * density, grid) == pytest.approx(1.375, rel=1e-4)
    assert found.width == pytest.approx(0.03)


def test_one_probe_has_no_error():
    found = bulk_sgd.spectral_density(
        operator(np.diag([1.0, 2.0]), jnp.float32), jnp.zeros(2), 1
    )
    assert np.isnan(found.trace.error)
    assert np.isnan(found.quantile(jnp.array([0.5])).error)


def test_what_is_not_finite_is_not_hidden():
    bad = operator(np.diag([1.0, np.nan, 2.0]), jnp.float32)
    found = bulk_sgd.spectral_density(bad, jnp.zeros(3), 2)
    assert np.isnan(found.nodes).all()
    zero = operator(np.zeros((3, 3)), jnp.float32)
    found = bulk_sgd.spectral_density(zero, jnp.zeros(3), 2)
    assert found.trace == (0, 0)
    assert found.num_matvecs == 2


def test_other_parameters_share_the_program(x64):
    def loss(params):
        return jnp.sum(params["a"] ** 4) + jnp.prod(params["b"])

    from bulk_sgd.spectra import density

    density._quadratures.clear_cache()
    for value in (1.0, 2.0):
        params = {"a": jnp.full(4, value), "b": jnp.full(2, value)}
        matvec = bulk_sgd.hessian(loss, params)
        found = bulk_sgd.spectral_density(matvec, params, 200)
        assert found.nodes.max() == pytest.approx(12 * value**2)
    assert density._quadratures._cache_size() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_probes": 0}, "num_probes is 0; it must be at least 1"),
        ({"num_steps": 4}, "num_steps is 4; it must be from 1 to 3"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    matvec = operator(np.eye(3), jnp.float32)
    with pytest.raises(ValueError, match=message):
        bulk_sgd.spectral_density(matvec, jnp.ones(3), **arguments)
    with pytest.raises(ValueError, match="must be a floating point array"):
        bulk_sgd.spectral_density(matvec, jnp.arange(3))
