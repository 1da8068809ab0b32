import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import equations, operator, projector, rows, symmetric, top

import bulk_sgd
from bulk_sgd.curvature import as_pytree
from bulk_sgd.solvers.lanczos import _expand, _initial, _restart, _solve
from bulk_sgd.subspace import empty

pytestmark = pytest.mark.usefixtures("strict_ranks")

# One size, rank and budget for almost every test, so that they share programs. The
# basis of 2 · 4 + 10 = 18 rows is far smaller than the budget: restarts happen.
SIZE, RANK, BUDGET = 40, 4, 300
TOL = 1e-5  # a hundred units of float32 rounding

BULK = np.linspace(0.5, -0.5, SIZE)
SPECTRA = {
    "gaps": [10, 8, 6, 4, *np.linspace(1, 0, 36)],
    "geometric": 10 * 0.7 ** np.arange(SIZE),
    "cluster": [10, 9.99, 9.98, 9.97, *np.linspace(5, 0, 36)],
    "multiple": [5, 5, 5, 3, *np.linspace(1, 0, 36)],
    "three values": [5, 5, 5, 3, *[1] * 36],
    "five values": [5, 5, 5, 4, 3, 2, *[1] * 34],
    "negative largest": [3, 2, 1.5, 1.2, *BULK[:33], -20, -10, -5],
    "all negative": -np.linspace(1, 10, SIZE),
    "zeros": [5, 3, *[0] * 38],
    "low rank": [5, 3, 2, 1, 0.5, *[0] * 35],
    "indefinite low rank": [2, 1, *[0] * 36, -3, -5],
    "rank 1": [7, *[0] * 39],
    "zero": [0] * SIZE,
    "identity": [1] * SIZE,
}
# The small end of a geometric spectrum is below rounding: no solver finds it.
CASES = [
    (spectrum, which)
    for spectrum in SPECTRA
    for which in ("largest", "smallest", "magnitude")
    if (spectrum, which) != ("geometric", "smallest")
]


def matrices(spectrum):
    """The float32 operator in a random frame and in the coordinate one."""
    eigenvalues = np.asarray(SPECTRA[spectrum], np.float64)
    frames = symmetric(eigenvalues), np.diag(eigenvalues)
    return [matrix.astype(np.float32) for matrix in frames]


def normal(seed, size=SIZE):
    return jax.random.normal(jax.random.key(seed), (size,))


def solve(matrix, seed=0, tol=TOL, which="largest", **options):
    return bulk_sgd.top_eigenpairs(
        operator(matrix),
        normal(seed),
        RANK,
        tol,
        BUDGET,
        which=which,
        key=jax.random.key(seed),
        **options,
    )


def true_residuals(matrix, pairs):
    """‖A u − λ u‖ in float64, row by row."""
    vectors = rows(pairs.eigenvectors)
    values = np.asarray(pairs.eigenvalues, np.float64)[:, None]
    return np.linalg.norm(
        vectors @ matrix.astype(np.float64) - values * vectors, axis=1
    )


def assert_leading_pairs(matrix, pairs, which="largest", tol=TOL):
    """Eigenvalues, orthonormality, residuals and projectors, against float64."""
    rank = pairs.rank
    expected, _ = top(matrix, rank, which)
    scale = np.linalg.norm(matrix.astype(np.float64), 2)
    vectors = rows(pairs.eigenvectors)
    assert bool(pairs.converged)
    np.testing.assert_allclose(pairs.eigenvalues, expected, rtol=0, atol=tol * scale)
    # 18 rows, combined at each restart: some ten units of float32 rounding.
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(rank), rtol=0, atol=5e-6)
    assert true_residuals(matrix, pairs).max() <= tol * scale
    # Every leading part with a gap below it. Davis and Kahan: the error of a projector
    # is at most the norm of the residuals over the gap.
    values, _ = top(matrix, len(matrix), which)
    for k in range(1, min(rank + 1, len(matrix))):
        gap = np.abs(values[:k, None] - values[None, k:]).min() - tol * scale
        if gap > 10 * tol * scale:
            error = projector(vectors[:k]) - top(matrix, k, which)[1]
            assert np.linalg.norm(error, 2) < np.sqrt(k) * tol * scale / gap


@pytest.mark.parametrize(("spectrum", "which"), CASES)
def test_leading_eigenpairs_of_prescribed_spectra(spectrum, which):
    for matrix in matrices(spectrum):
        for seed in range(2):
            assert_leading_pairs(matrix, solve(matrix, seed, which=which), which)


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
def test_converged_is_never_claimed_above_the_tolerance(which):
    claims = []
    for name in SPECTRA:
        for seed, matrix in enumerate(matrices(name)):
            scale = np.linalg.norm(matrix.astype(np.float64), 2)
            # 1e-6 and 2e-6 are at the edge of what float32 (eps = 1.2e-7) holds.
            for tol in (0, 1e-7, 1e-6, 2e-6, 1e-5, 1e-3, 1e-1):
                pairs = solve(matrix, seed, tol, which)
                claims.append(bool(pairs.converged))
                error = true_residuals(matrix, pairs)
                assert not pairs.converged or error.max() <= tol * scale, (name, tol)
                # The estimate is honest where the solver gave up, too. Each of some
                # 40 restarts turns rows and quotients: about two units of rounding.
                rounding = 80 * np.finfo(np.float32).eps * scale
                assert np.all(error <= np.asarray(pairs.residuals) + rounding)
    # Neither never nor always: 4 of the 7 tolerances can be held.
    assert 0.5 < np.mean(claims) < 0.7


def test_zero_tolerance_is_never_met_except_by_the_zero_operator():
    for name in SPECTRA:
        pairs = solve(matrices(name)[0], tol=0)
        assert bool(pairs.converged) == (name == "zero")


def test_float64(x64):
    matrix = symmetric(SPECTRA["gaps"])
    pairs = bulk_sgd.top_eigenpairs(
        operator(matrix), normal(0).astype(float), RANK, 1e-12, BUDGET
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(pairs[:3])} == {jnp.dtype("float64")}
    assert bool(pairs.converged)
    expected, expected_projector = top(matrix, RANK)
    # The tolerance, and the tolerance over a gap of a fifth of λ_1.
    np.testing.assert_allclose(pairs.eigenvalues, expected, rtol=0, atol=1e-11)
    error = projector(rows(pairs.eigenvectors)) - expected_projector
    assert np.linalg.norm(error, 2) < 1e-10


def test_float32_vectors_stay_float32_where_float64_is_enabled(x64):
    matrix = matrices("gaps")[0]
    start = normal(0).astype(jnp.float32)
    pairs = bulk_sgd.top_eigenpairs(operator(matrix), start, RANK, TOL, BUDGET)
    assert {leaf.dtype for leaf in jax.tree.leaves(pairs[:3])} == {jnp.dtype("float32")}
    assert_leading_pairs(matrix, pairs)


@pytest.mark.parametrize("max_basis", [RANK + 2, SIZE])
def test_basis_size_changes_the_cost_and_not_the_answer(max_basis):
    for name in ("gaps", "cluster", "negative largest", "low rank", "identity"):
        matrix = matrices(name)[0]
        assert_leading_pairs(matrix, solve(matrix, max_basis=max_basis))


@pytest.mark.parametrize(
    ("size", "rank", "eigenvalues"),
    [
        (1, 1, [[3], [-3], [0]]),
        (5, 4, [[5, 4, 3, 2, 1], [1, 1, 1, 1, 0]]),
        (5, 5, [[5, 4, 3, 2, -1], [1, 1, 1, 1, 1], [3, 0, 0, 0, 0], [0] * 5]),
    ],
)
def test_rank_up_to_the_dimension(size, rank, eigenvalues):
    for spectrum in eigenvalues:
        matrix = symmetric(spectrum).astype(np.float32)
        start = normal(3, size)
        pairs = bulk_sgd.top_eigenpairs(operator(matrix), start, rank, TOL)
        assert_leading_pairs(matrix, pairs)
        assert int(pairs.num_matvecs) <= size


@pytest.mark.parametrize("budget", [RANK, 11, 21])  # within and beyond a restart
def test_budget_bounds_the_matvecs(budget):
    matrix = matrices("cluster")[0]
    start = normal(0)
    pairs = bulk_sgd.top_eigenpairs(operator(matrix), start, RANK, TOL, budget)
    assert int(pairs.num_matvecs) == budget
    assert not pairs.converged
    # What there is then is still orthonormal, with honest residuals.
    vectors = rows(pairs.eigenvectors)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(RANK), rtol=0, atol=5e-6)
    np.testing.assert_allclose(
        pairs.residuals, true_residuals(matrix, pairs), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(("rank", "bound"), [(1, 60), (10, 150), (30, 350)])
def test_default_budget_grows_with_the_rank(rank, bound):
    matrix = np.diag(np.linspace(1, 2, 500))
    pairs = bulk_sgd.top_eigenpairs(operator(matrix), normal(0, 500), rank, tol=0)
    assert int(pairs.num_matvecs) == bound


def test_num_matvecs_counts_the_products():
    calls = []

    @jax.tree_util.Partial
    def counted(vector):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.arange(1.0, 13.0) * vector

    pairs = bulk_sgd.top_eigenpairs(counted, normal(0, 12), 2, 1e-4)
    jax.effects_barrier()
    assert int(pairs.num_matvecs) == len(calls)


def test_warm_start_needs_fewer_matvecs():
    for name in ("gaps", "geometric", "all negative"):
        matrix = matrices(name)[0].astype(np.float64)
        nearby = matrix + 1e-3 * symmetric(BULK, seed=5)
        cold = solve(nearby, tol=1e-3)
        previous = solve(matrix, tol=1e-3)
        warm = bulk_sgd.top_eigenpairs(operator(nearby), previous, RANK, 1e-3, BUDGET)
        assert_leading_pairs(nearby, warm, tol=1e-3)
        assert int(warm.num_matvecs) < int(cold.num_matvecs)


def test_warm_start_finds_a_direction_that_the_previous_subspace_lacks():
    # Two blocks without coupling: a sequence from the first never enters the second,
    # and converges within the first long before it has exhausted it.
    matrix = np.zeros((SIZE, SIZE))
    matrix[:30, :30] = symmetric([5, 4, 3, 2, *np.linspace(1, 0, 26)])
    matrix[30:, 30:] = symmetric([9, *np.linspace(1, 0, 9)])
    previous = empty(jnp.zeros(SIZE), RANK)._replace(
        eigenvectors=jnp.eye(RANK, SIZE), eigenvalues=jnp.array([5.0, 4, 3, 2])
    )
    pairs = bulk_sgd.top_eigenpairs(operator(matrix), previous, RANK, TOL, BUDGET)
    assert_leading_pairs(matrix, pairs)


def test_useless_starts_are_replaced():
    matrix = matrices("gaps")[0]
    for start in (jnp.zeros(SIZE), jnp.full(SIZE, jnp.nan), jnp.full(SIZE, jnp.inf)):
        pairs = bulk_sgd.top_eigenpairs(operator(matrix), start, RANK, TOL, BUDGET)
        assert_leading_pairs(matrix, pairs)


def test_start_orthogonal_to_the_leading_eigenvector():
    # An exact invariant subspace without the leading direction, in three steps.
    matrix = np.diag([9.0, 5, 3, 2, *[0] * 36]).astype(np.float32)
    start = jnp.zeros(SIZE).at[jnp.array([1, 2, 3])].set(1)
    pairs = bulk_sgd.top_eigenpairs(operator(matrix), start, RANK, TOL, BUDGET)
    assert_leading_pairs(matrix, pairs)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_operator_with_values_that_are_not_finite_does_not_converge(value):
    matrix = matrices("gaps")[0].copy()
    matrix[3, 4] = value
    pairs = solve(matrix)
    assert not pairs.converged
    assert int(pairs.num_matvecs) < BUDGET


def test_operator_that_turns_bad_later_does_not_converge():
    # The entry is reached in the second product alone.
    matrix = np.diag(np.arange(40.0, 0, -1)).astype(np.float32)
    matrix[0, 1] = matrix[1, 0] = 1
    matrix[1, 1] = np.nan
    start = jnp.zeros(SIZE).at[0].set(1)
    pairs = bulk_sgd.top_eigenpairs(operator(matrix), start, RANK, TOL, BUDGET)
    assert not pairs.converged


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
    before = _solve._cache_size()
    for seed, name in enumerate(SPECTRA):
        solve(matrices(name)[1], seed, tol=10.0 ** (-seed))
    assert _solve._cache_size() == before


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


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("spectrum", ["gaps", "geometric", "low rank", "identity"])
def test_lanczos_decomposition_holds(x64, spectrum, restart):
    """A Vᵀ − Vᵀ T = v sᵀ, with v the next vector: Lanczos, and s = β e_j, if plain."""
    num_rows, matrix = 12, symmetric(SPECTRA[spectrum])
    state = decompose(jnp.asarray(matrix), num_rows, restart)
    size = int(state.size)
    assert size == (8 if restart else num_rows)
    basis = np.asarray(state.rows)
    vectors, after = basis[:size], basis[size]
    gram = basis[: size + 1] @ basis[: size + 1].T
    # float64 to rounding, 2e-16, where the second pass has its effect: at small β a
    # single one leaves 1e-16 ‖A‖ / β.
    np.testing.assert_allclose(gram, np.eye(size + 1), rtol=0, atol=1e-14)
    assert not basis[size + 1 :].any()
    defect = matrix @ vectors.T - vectors.T @ np.asarray(state.projected)[:size, :size]
    coupling = after @ defect
    scale = np.linalg.norm(matrix, 2)
    # Where an invariant subspace is left, what is dropped is below the rounding floor.
    np.testing.assert_allclose(
        defect, np.outer(after, coupling), rtol=0, atol=1e-14 * scale
    )
    if not restart:
        assert np.abs(coupling[:-1]).max() <= 1e-14 * scale
    # Unreached rows never show up as eigenvalues.
    ritz_values, lowest = np.asarray(state.ritz_values), np.linalg.eigvalsh(matrix)[0]
    assert ritz_values[:size].min() >= lowest - 1e-14 * scale
    assert ritz_values[size:].max(initial=-np.inf) < lowest


@functools.partial(jax.jit, static_argnums=(1, 2))
def decompose(matrix, num_rows, restart):
    step = functools.partial(
        _expand,
        apply=lambda vector: matrix @ vector,
        tol=0.0,
        rank=RANK,
        max_matvecs=num_rows + 2 * restart,
        order=lambda x: x,
        dimension=len(matrix),
    )
    start = jax.random.normal(jax.random.key(1), (len(matrix),), float)
    start = start / jnp.linalg.norm(start)
    state = _initial(start, jax.random.key(0), num_rows, RANK)
    run = lambda count, state: jax.lax.fori_loop(0, count, lambda _, s: step(s), state)
    state = run(num_rows, state)
    if restart:
        state = run(2, _restart(state, keep=6))
    return state


def test_basis_stays_orthonormal_in_float32_where_beta_is_small():
    matrix = jnp.asarray(symmetric(10.0 * 0.2 ** np.arange(SIZE)), jnp.float32)
    state = decompose(matrix, 12, False)
    basis = np.asarray(state.rows, np.float64)
    # Some units of float32 rounding; one pass alone leaves 1e-7 ‖A‖ / β, about 0.01.
    np.testing.assert_allclose(basis @ basis.T, np.eye(13), rtol=0, atol=2e-6)


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
    before = _solve._cache_size()
    second = bulk_sgd.top_eigenpairs(bulk_sgd.hessian(value_fn, x), x, 1, TOL)
    assert _solve._cache_size() == before
    np.testing.assert_allclose([first.eigenvalues[0], second.eigenvalues[0]], [8, 16])


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
        ({"tol": -1e-3}, "tol is -0.001; it must be a number, at least 0"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tol": -1}, "tol is -1; it must be a number, at least 0"),
        ({"max_matvecs": 0}, "max_matvecs is 0; it must be at least 1"),
        ({"which": "top"}, "which is 'top'; it must be one of"),
    ],
)
def test_solver_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        bulk_sgd.lanczos(**options)


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
