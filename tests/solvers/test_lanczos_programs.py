"""Solves as programs: under jit, scan and vmap, on any pytree; and refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import equations, operator, projector, rows
from lanczos_spectra import BUDGET, RANK, SPECTRA, TOL, matrices, normal, solve

import bulk_sgd
from bulk_sgd.curvature.operators import as_pytree
from bulk_sgd.solvers import thick_restart

pytestmark = pytest.mark.usefixtures("strict_ranks")


def test_scan_jit_and_vmap_equal_single_solves():
    # Dense products of a batch round differently, by units of 1e-7: what is compared
    # are counts, eigenvalues and projectors.
    stack = np.stack(matrices("gaps") + matrices("low rank"))
    starts = jnp.stack([normal(seed) for seed in range(len(stack))])

    def one(matrix, start):
        return bulk_sgd.top_eigenpairs(operator(matrix), start, RANK, 1e-3, BUDGET)

    @jax.jit
    def scanned(stack, starts):
        return jax.lax.scan(lambda _, pair: (None, one(*pair)), None, (stack, starts))[
            1
        ]

    singles = [one(*pair) for pair in zip(stack, starts)]
    counts = [int(single.num_matvecs) for single in singles]
    assert len(set(counts)) > 1
    for run in (jax.jit(jax.vmap(one)), scanned):
        batch = run(stack, starts)
        assert batch.num_matvecs.tolist() == counts
        assert batch.converged.all()
        for lane, single in enumerate(singles):
            found = jax.tree.map(lambda x, lane=lane: x[lane], batch)
            np.testing.assert_allclose(
                found.eigenvalues, single.eigenvalues, rtol=0, atol=1e-5
            )
            # The residual, 1e-3, over a gap of a tenth of λ_1, squared by chance.
            np.testing.assert_allclose(
                projector(rows(found.eigenvectors)),
                projector(rows(single.eigenvectors)),
                rtol=0,
                atol=1e-3,
            )


def test_solves_with_other_arrays_share_one_program():
    solve(matrices("gaps")[0])
    before = thick_restart.solve._cache_size()
    for seed, name in enumerate(SPECTRA):
        solve(matrices(name)[1], seed, tol=10.0 ** (-seed))
    assert thick_restart.solve._cache_size() == before


def test_vectors_are_any_pytree():
    weights = {"a": np.arange(1.0, 7).reshape(2, 3), "b": 9.0, "c": (np.full(2, 4.0),)}
    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weights)

    def matvec(vector):
        assert vector["empty"] is None
        products = {
            k: jax.tree.map(jnp.multiply, weights[k], vector[k]) for k in weights
        }
        return {**products, "empty": None}

    start = jax.tree.map(jnp.ones_like, weights) | {"empty": None}
    pairs = bulk_sgd.top_eigenpairs(matvec, start, rank=3, tol=TOL)
    np.testing.assert_allclose(pairs.eigenvalues, [9, 6, 5], rtol=TOL)
    shapes = jax.tree.map(jnp.shape, pairs.eigenvectors)
    assert shapes == {"a": (3, 2, 3), "b": (3,), "c": ((3, 2),), "empty": None}
    expected = np.zeros((9, 9))
    expected[[4, 5, 6], [4, 5, 6]] = 1  # a[1, 1], a[1, 2] and b
    np.testing.assert_allclose(
        projector(rows(pairs.eigenvectors)), expected, rtol=0, atol=1e-4
    )


def test_bfloat16_vectors_are_widened():
    seen = []

    def matvec(vector):
        seen.append(vector.dtype)
        return jnp.arange(1.0, 9.0) * vector

    pairs = bulk_sgd.top_eigenpairs(matvec, jnp.ones(8, jnp.bfloat16), 2, TOL)
    assert {*seen, pairs.eigenvectors.dtype} == {jnp.dtype("float32")}
    np.testing.assert_allclose(pairs.eigenvalues, [8, 7], rtol=TOL)


def test_every_product_has_highest_precision():
    jaxpr = jax.make_jaxpr(lambda matrix: solve(matrix))(matrices("gaps")[0])
    highest = jax.lax.Precision.HIGHEST
    products = [e for e in equations(jaxpr) if e.primitive.name == "dot_general"]
    assert len(products) > 4
    assert all(e.params["precision"] == (highest, highest) for e in products)


def test_functional_curvature_is_solved_at_every_call_afresh():
    # A matvec of data that is an argument, not a constant of the compiled program.
    value_fn = jax.tree_util.Partial(
        lambda data, x: 0.5 * jnp.sum(data * x**2), jnp.arange(1.0, 9.0)
    )
    x = jnp.ones(8)
    first = bulk_sgd.top_eigenpairs(bulk_sgd.hessian(value_fn, x), x, 1, TOL)
    value_fn = jax.tree_util.Partial(value_fn.func, 2 * value_fn.args[0])
    before = thick_restart.solve._cache_size()
    second = bulk_sgd.top_eigenpairs(bulk_sgd.hessian(value_fn, x), x, 1, TOL)
    assert thick_restart.solve._cache_size() == before
    found = [first.eigenvalues[0], second.eigenvalues[0]]
    np.testing.assert_allclose(found, [8, 16], rtol=1e-6)  # a few roundings


def test_plain_functions_are_matvecs():
    matvec = as_pytree(lambda v: 2 * v)
    assert as_pytree(matvec) is matvec
    assert jax.tree.leaves(matvec) == []
    pairs = bulk_sgd.top_eigenpairs(lambda v: 2 * v, jnp.ones(3), 1, TOL)
    np.testing.assert_allclose(pairs.eigenvalues, [2], rtol=TOL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"rank is 0; it must be from 1 to 8 \(the number of parameters"),
        ({"rank": 9}, "rank is 9; it must be from 1 to 8"),
        ({"rank": 2.0}, "rank is 2.0; it must be an integer"),
        ({"rank": True}, "rank is True; it must be an integer"),
        ({"tol": -1e-3}, "tol is -0.001; it must be a number from 0 to 1"),
        ({"tol": 1.5}, "tol is 1.5; it must be a number from 0 to 1"),
        ({"tol": float("nan")}, "tol is nan; it must be"),
        ({"tol": "tight"}, "tol is 'tight'; it must be"),
        ({"max_matvecs": 1}, "max_matvecs is 1; it must be at least 2"),
        ({"max_basis": 3}, "max_basis is 3; it must be at least 4"),
        ({"which": "LA"}, "which is 'LA'; .* largest, magnitude, smallest"),
    ],
)
def test_arguments_out_of_range(options, message):
    options = {"rank": 2} | options
    with pytest.raises(ValueError, match=message):
        bulk_sgd.top_eigenpairs(lambda v: v, jnp.ones(8), **options)


def test_traced_rank_names_the_remedy():
    solve_at = lambda rank: bulk_sgd.top_eigenpairs(lambda v: v, jnp.ones(8), rank)
    with pytest.raises(ValueError, match=r"rank is a traced array.*static_args"):
        jax.jit(solve_at)(2)


def test_memory_is_that_of_one_basis_and_three_vectors():
    """The next vector is a row of that basis; the result is not among temporaries."""
    width, rank, max_basis = 256, 4, 20
    params = [jnp.ones((width, width))] * 4

    def loss(params):
        return jnp.mean(functools.reduce(jnp.matmul, params, jnp.ones((2, width))) ** 2)

    def solve(params, start):
        matvec = bulk_sgd.hessian(loss, params)
        return bulk_sgd.top_eigenpairs(matvec, start, rank, max_basis=max_basis)

    def product(params, vector):
        return bulk_sgd.hessian(loss, params).linearize()(vector)

    temporaries = [
        jax.jit(fn).lower(params, params).compile().memory_analysis().temp_size_in_bytes
        for fn in (solve, product)
    ]
    vectors = (temporaries[0] - temporaries[1]) / (4 * len(params) * width**2)
    assert max_basis < vectors <= max_basis + 1 + 3
