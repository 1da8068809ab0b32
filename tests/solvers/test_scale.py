"""Solvers and transforms in any unit of the loss, of the parameters and of the updates.

Units are powers of two, so that a result in other units differs by no more than sums
taken in another order.
"""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bulk_sgd
from bulk_sgd.linalg import basis

SIZE, RANK = 24, 3
RNG = np.random.default_rng(0)
MATRIX = jnp.asarray(
    helpers.symmetric([10, 7, 5, *np.linspace(1, -1, SIZE - 3)]), jnp.float32
)
NOISE = jnp.asarray(RNG.standard_normal((12, SIZE, SIZE)) / 30, jnp.float32)
UPDATES = jnp.asarray(RNG.standard_normal((12, SIZE)), jnp.float32)
# Squares of float32 leave it at 2^±64. A product rounds to 2⁻¹²⁶, whatever its unit.
SCALES = [2.0**e for e in (-100, -80, -60, 60, 80, 110)]
# Loss, parameters and updates: the Hessian scales by the first over the second squared.
UNITS = [
    *((scale, 1.0, 1.0) for scale in SCALES),
    *((1.0, scale, 1 / scale) for scale in (2.0**-40, 2.0**40)),
    *((1.0, 1.0, scale) for scale in SCALES),
]
SOLVERS = {
    "lanczos": bulk_sgd.lanczos(),
    "lanczos, cold": bulk_sgd.lanczos(warm_start=False, max_basis=6),
    "power": bulk_sgd.power(),
    "power along the update": bulk_sgd.power("update"),
    "streaming": bulk_sgd.streaming(),
    "streaming, all columns": bulk_sgd.streaming(0),
    "update_pca": bulk_sgd.update_pca(5),
    "streaming_pca": bulk_sgd.streaming_pca(),
    "krylov_filter": bulk_sgd.krylov_filter(8),
    "on_drift": bulk_sgd.on_drift(bulk_sgd.power(), 0.05),
    "adaptive": bulk_sgd.adaptive(bulk_sgd.lanczos()),
    "blockwise": bulk_sgd.blockwise(bulk_sgd.power()),
}


def split(x):
    return {"a": x[:10].reshape(2, 5), "b": x[10:], "empty": jnp.zeros((0, 3))}


def loss(params, matrix, scale, length):
    x = jnp.concatenate([params["a"].ravel(), params["b"]]) / length
    return scale * 0.5 * (x @ matrix @ x)


@functools.cache
def trained(name):
    """A program: twelve steps of a transform in given units, and what it measures."""
    tx = bulk_sgd.project_bulk(RANK, solver=SOLVERS[name])

    @jax.jit
    def run(scale, length, update):
        params = jax.tree.map(lambda x: length * x, split(UPDATES[0]))

        def step(state, given):
            noise, vector = given
            value_fn = jax.tree_util.Partial(
                loss, matrix=MATRIX + noise + noise.T, scale=scale, length=length
            )
            vector = jax.tree.map(lambda x: update * x, split(vector))
            found, state = tx.update(vector, state, params, value_fn=value_fn)
            measured = state.alignment, basis.norm(found) / update
            return state, (*measured, state.subspace.eigenvalues)

        return jax.lax.scan(step, tx.init(params), (NOISE, UPDATES))

    return run


@pytest.mark.parametrize("name", SOLVERS)
def test_transforms_are_the_same_in_all_units(name):
    run = trained(name)
    expected, rows = run(1.0, 1.0, 1.0)
    assert expected.failed_refreshes == 0
    for scale, length, update in UNITS:
        state, found = run(scale, length, update)
        counts = "total_matvecs", "refreshes", "failed_refreshes"
        for count in counts:
            assert getattr(state, count) == getattr(expected, count), (scale, length)
        unit = update if "pca" in name else scale / length**2
        *found, values = (np.asarray(x, np.float64) for x in found)
        found.append(values / unit)
        # Sums of 24 numbers in another order, in solves to 1e-3 of the gaps.
        for got, right in zip(found, rows):
            largest = np.abs(right).max()
            np.testing.assert_allclose(got, right, rtol=0, atol=1e-4 * largest)
        got, right = (
            helpers.projector(helpers.rows(each.subspace.eigenvectors))
            for each in (state, expected)
        )
        np.testing.assert_allclose(got, right, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"which": "smallest"}, {"repeated": True}])
def test_eigenpairs_are_the_same_in_all_units(options):
    matrix = np.diag([9.0, 9, 4, 1, *np.linspace(0.5, -2, SIZE - 4)])
    solve = lambda scale: bulk_sgd.top_eigenpairs(
        helpers.operator(scale * matrix, jnp.float32), UPDATES[0], RANK, **options
    )
    right = solve(1.0)
    assert right.converged
    for scale in SCALES:
        found = solve(scale)
        assert found.converged
        if not options.get("repeated"):  # whose searches end in rounding
            assert found.num_matvecs == right.num_matvecs
        values = np.asarray(found.eigenvalues, np.float64) / scale
        np.testing.assert_allclose(values, right.eigenvalues, rtol=1e-5)
        assert np.max(found.residuals) <= 1e-3 * np.max(np.abs(found.eigenvalues))
        assert found.overlap(right) == pytest.approx(1, abs=1e-5)


def test_differences_are_the_same_in_all_units():
    def product(scale, length):
        bent = lambda x: scale * jnp.sum(jnp.tanh(x / length) ** 2)
        matvec = bulk_sgd.hessian(bent, length * UPDATES[0], mode="finite_differences")
        return np.asarray(matvec(length**2 * UPDATES[1]), np.float64) / scale

    right = product(1.0, 1.0)
    for scale, length, _ in UNITS:
        # The rounding of differences.
        np.testing.assert_allclose(product(scale, length), right, rtol=0, atol=1e-3)
