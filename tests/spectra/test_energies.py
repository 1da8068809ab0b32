"""Energies and stability measures against dense float64 matrices."""

import dataclasses

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import count_equations, dense, equations, flat, rows, top

import bulk_sgd
from bulk_sgd.curvature import second_derivatives
from bulk_sgd.curvature.hessian import CURVATURES
from bulk_sgd.lab.training import measures
from bulk_sgd.lab.training.stability import Bisection

RANK, PROBES = 3, 4_000
NAMES = sorted(CURVATURES)


@pytest.fixture(scope="module")
def point():
    """An objective in float64, parameters, and the exact subspace of its Hessian."""
    with jax.enable_x64(True):
        objective, params = helpers.objective(
            helpers.mlp(), helpers.squared_error, dtype=jnp.float64
        )
        params = jax.tree.map(jnp.asarray, params)
        found = bulk_sgd.top_eigenpairs(
            bulk_sgd.hessian(objective, params),
            params,
            RANK,
            tol=1e-10,
            max_matvecs=200,
        )
        assert found.converged
        return objective, params, found


@pytest.mark.parametrize("name", NAMES)
def test_energies_equal_those_of_the_dense_matrix(x64, point, name):
    objective, params, found = point
    matvec = CURVATURES[name](objective, params)
    matrix = dense(matvec, params)
    basis = rows(found.eigenvectors)
    energies = bulk_sgd.energies(matvec, found, PROBES, key=jax.random.key(0))

    block = basis @ matrix @ basis.T
    np.testing.assert_allclose(energies.rayleigh, np.diag(block), rtol=1e-9)
    assert energies.trace_dominant == pytest.approx(np.trace(block), rel=1e-9)
    inside = np.sum((matrix @ basis.T) ** 2)
    assert energies.frobenius_dominant == pytest.approx(inside, rel=1e-9)
    assert energies.frobenius_block == pytest.approx(np.sum(block**2), rel=1e-9)

    # Estimates: within five of their own standard errors, which are small.
    whole = np.sum(matrix**2)
    for value, error, truth, size in (
        (energies.trace, energies.trace_error, np.trace(matrix), np.sqrt(whole)),
        (energies.frobenius, energies.frobenius_error, whole, whole),
    ):
        assert 0 < error < 0.05 * size
        assert abs(value - truth) < 5 * error
    # Equal for H, whose eigenvectors span the subspace.
    assert energies.block_share <= energies.frobenius_share * (1 + 1e-9) <= 1
    share = inside / whole
    assert energies.frobenius_share == pytest.approx(share, abs=0.1 * share)
    share = np.sum(block**2) / whole
    assert energies.block_share == pytest.approx(share, abs=0.1 * share)


def test_standard_errors_are_those_of_repeated_estimates(x64, point):
    objective, params, found = point
    matvec = bulk_sgd.hessian(objective, params)
    repeat = jax.jit(
        jax.vmap(lambda key: bulk_sgd.energies(matvec, found, 20, key=key))
    )
    energies = repeat(jax.random.split(jax.random.key(1), 200))
    for values, errors in (
        (energies.trace, energies.trace_error),
        (energies.frobenius, energies.frobenius_error),
    ):
        spread = float(jnp.std(values))
        assert float(jnp.sqrt(jnp.mean(errors**2))) == pytest.approx(spread, rel=0.2)


def test_share_of_nothing_is_unknown():
    zero = jax.tree_util.Partial(jnp.multiply, jnp.zeros(3))
    pairs = bulk_sgd.top_eigenpairs(
        jax.tree_util.Partial(jnp.multiply, jnp.arange(3.0)), jnp.ones(3), rank=1
    )
    energies = bulk_sgd.energies(zero, pairs)
    assert np.isnan(energies.trace_share)
    assert np.isnan(energies.frobenius_share)


@pytest.fixture(scope="module")
def measured(point):
    objective, params, found = point
    with jax.enable_x64(True):
        indices = jnp.arange(6).reshape(3, 2)
        batch = lambda i: objective.take(indices[i])
        measure = jax.jit(
            lambda: measures.measure(
                params, found, objective, (batch, 3), jax.random.key(0), 5
            )
        )
        return measure()


def test_batch_sharpness(x64, point, measured):
    objective, params, _ = point
    quotients = []
    for pair in ([0, 1], [2, 3], [4, 5]):
        loss = objective.take(jnp.asarray(pair))
        gradient = flat(jax.grad(loss)(params))
        matrix = dense(bulk_sgd.hessian(loss, params), params)
        quotients.append(gradient @ matrix @ gradient / (gradient @ gradient))
    assert measured.batch_sharpness == pytest.approx(np.mean(quotients), rel=1e-9)


def test_forms_overlap_and_sum_rule(x64, point, measured):
    objective, params, found = point
    gradient = flat(jax.grad(objective)(params))
    basis = rows(found.eigenvectors)
    inside = basis.T @ (basis @ gradient)
    squared = gradient @ gradient
    for name, make in CURVATURES.items():
        matrix = dense(make(objective, params), params)
        forms = measured.curvatures[name]
        expected = inside @ matrix @ inside / squared
        assert forms.form_dominant == pytest.approx(expected, rel=1e-8)
        outside = gradient - inside
        expected = outside @ matrix @ outside / squared
        assert forms.form_bulk == pytest.approx(expected, rel=1e-8)
    assert measured.sum_rule_error < 1e-12
    _, projector = top(dense(bulk_sgd.gauss_newton(objective, params), params), RANK)
    overlap = np.trace(basis @ projector @ basis.T) / RANK
    assert measured.eigenspace_overlap == pytest.approx(overlap, rel=1e-4)


def test_sum_rule_catches_a_wrong_part(x64, point, monkeypatch):
    objective, params, found = point
    wrong = dict(CURVATURES, functional_hessian=bulk_sgd.gauss_newton)
    monkeypatch.setattr(measures, "CURVATURES", wrong)
    batch = lambda i: objective.take(jnp.arange(2))
    arguments = params, found, objective, (batch, 1), jax.random.key(0), 2
    # XLA drops the programs of all else.
    assert jax.jit(lambda: measures.measure(*arguments).sum_rule_error)() > 0.1


def no_choice(*args, **kwargs):
    raise AssertionError("a mode was asked for")


def whole(objective, params, found):
    matvec = bulk_sgd.hessian(objective, params, mode=second_derivatives.REVERSE)
    return bulk_sgd.energies(matvec, found, 2)


def measured_on(objective, params, found, sharding=None):
    batch = lambda i: objective.take(jnp.arange(2))
    key = jax.random.key(0)
    return measures.measure(
        params,
        found,
        objective,
        (batch, 1),
        key,
        2,
        mode=second_derivatives.REVERSE,
        sharding=sharding,
    )


def missed(objective, params, found, sharding=None):
    return bulk_sgd.subsampling_error(
        objective,
        params,
        params,
        RANK,
        100,
        mode=second_derivatives.REVERSE,
        sharding=sharding,
    )


@pytest.mark.parametrize("measure", [whole, measured_on, missed])
def test_products_are_exact_and_in_the_mode_asked_for(point, monkeypatch, measure):
    monkeypatch.setattr(second_derivatives, "choose", no_choice)
    with jax.enable_x64(True):
        jaxpr = jax.make_jaxpr(measure)(*point)
    highest = (jax.lax.Precision.HIGHEST,) * 2
    products = [e for e in equations(jaxpr) if e.primitive.name == "dot_general"]
    assert products
    assert {e.params["precision"] for e in products} == {highest}


@pytest.mark.parametrize("measure", [measured_on, missed])
def test_solves_are_laid_out(x64, point, measure):
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P())
    count = lambda *more: count_equations(
        jax.make_jaxpr(lambda *args: measure(*args, *more))(*point),
        "sharding_constraint",
    )
    assert count() == 0
    assert count(sharding) > 0


@pytest.mark.parametrize(
    ("threshold", "stable", "unstable"),
    [(2.0, 2.0, 2.0), (0.05, None, 0.1), (50.0, 10.0, None)],
)
def test_bisection_encloses_the_threshold(threshold, stable, unstable):
    search = Bisection(0.1, 10.0, rounds=8)
    tried = []
    while search.rate is not None:
        tried.append(search.rate)
        search.answer(search.rate < threshold)
    if stable == unstable:
        assert search.stable < threshold <= search.unstable
        assert search.unstable / search.stable == pytest.approx(100 ** (1 / 2**8))
        assert len(tried) == 10
    else:
        assert (search.stable, search.unstable) == (stable, unstable)
        assert dataclasses.astuple(search)[3:] == (stable, unstable)
