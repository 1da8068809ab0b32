"""Bases in factors against dense ones, cut by NumPy's SVD in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import exact_solver, flat, projector, quadratic, rows, symmetric
from jax.flatten_util import ravel_pytree

import bulk_sgd
from bulk_sgd.linalg import basis, factors
from bulk_sgd.solvers import subspace

pytestmark = pytest.mark.usefixtures("strict_ranks")

LIKE = {
    "bias": jnp.zeros(4),
    "conv": jnp.zeros((2, 2, 3, 5)),
    "kernel": jnp.zeros((6, 5)),
    "stack": jnp.zeros((3, 5, 4)),
}
SIZE, RANK = basis.size(LIKE), 3
MUON = optax.contrib.MuonDimensionNumbers
# Every matrix in factors, whatever they save; columns before rows in the convolution.
AXES = {
    "bias": None,
    "conv": MUON((-1,), (0, 2, -3)),
    "kernel": MUON(),
    "stack": MUON(-2, 2),
}
# As (number, m, n), by default: what NumPy cuts.
SHAPES = {"conv": (1, 12, 5), "kernel": (1, 6, 5), "stack": (3, 5, 4)}


def unravel(vector):
    return ravel_pytree(LIKE)[1](jnp.asarray(vector))


def dense(seed=0, rank=RANK):
    """A Subspace with random orthonormal rows."""
    frame = np.linalg.qr(np.random.default_rng(seed).standard_normal((SIZE, rank)))[0]
    return subspace.empty(LIKE, rank)._replace(
        eigenvectors=jax.vmap(unravel)(jnp.asarray(frame.T))
    )


def vector(seed=1):
    return unravel(np.random.default_rng(seed).standard_normal(SIZE))


def unfolded(found):
    """The rows of a basis of any form as a float64 matrix."""
    return rows(basis.dense(found))


def lowest(space, rank):
    """The rows of a subspace, each matrix cut to a rank by NumPy."""
    leaves = dict(space.eigenvectors)
    for name, shape in SHAPES.items():
        leaf = np.asarray(leaves[name], np.float64)
        left, values, right = np.linalg.svd(leaf.reshape(-1, *shape), False)
        values[..., rank:] = 0
        leaves[name] = ((left * values[..., None, :]) @ right).reshape(leaf.shape)
    return rows(leaves)


def best_cut(space, rank):
    """The rows of a subspace in the best shared directions, by NumPy."""
    leaves = dict(space.eigenvectors)
    for name, (number, m, n) in SHAPES.items():
        leaf = np.asarray(leaves[name], np.float64)
        matrices = leaf.reshape(-1, number, m, n)
        beside = np.moveaxis(matrices, 0, 2).reshape(number, m, -1)
        shared = np.linalg.svd(beside)[0][..., :rank]
        leaves[name] = (shared @ (shared.swapaxes(1, 2) @ matrices)).reshape(leaf.shape)
    return rows(leaves)


def of_rank(rank):
    """A solver whose basis is exact and then cut."""
    exact = exact_solver()

    def solve(*args):
        found, state = exact.solve(args[0], subspace.empty(LIKE, RANK), *args[2:])
        return found.factored(rank)[0], state

    zeros = lambda like, count: factors.zeros(like, count, rank)
    return bulk_sgd.Solver(exact.init, solve, zeros=zeros)


def test_at_full_rank_all_is_as_with_dense_rows(x64):
    space, v = dense(), vector()
    found, kept = space.factored(12, AXES)
    np.testing.assert_allclose(kept, 1, rtol=1e-12)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    close(unfolded(found.eigenvectors), unfolded(space.eigenvectors))
    for method in ("coefficients", "project", "complement", "alignment"):
        parts = (getattr(s, method)(v) for s in (found, space))
        close(*map(flat, parts))
    other = dense(5)
    for pair in ((found, found), (found, space), (space, found), (found, other)):
        close(pair[0].overlap(pair[1]), pair[0].overlap(pair[1]))
    cut, apart = other.factored(1)[0], other.factored(12, AXES)[0]
    expected = unfolded(cut.eigenvectors) @ unfolded(found.eigenvectors).T
    # One with other sides, one with fewer directions, and one with dense leaves.
    close(basis.gram(cut.eigenvectors, found.eigenvectors), expected)
    close(basis.gram(found.eigenvectors, cut.eigenvectors), expected.T)
    close(found.overlap(apart), space.overlap(other))
    turn = jnp.asarray(np.random.default_rng(2).standard_normal((2, RANK)))
    for fn in (
        lambda rows: basis.combine(turn, rows),
        lambda rows: basis.take_rows(rows, 1, 2),
        lambda rows: basis.scale_rows(turn[0], rows),
        lambda rows: basis.where_rows(turn[0] > 0, rows),
    ):
        close(*(unfolded(fn(s.eigenvectors)) for s in (found, space)))


@pytest.mark.parametrize("rank", [1, 2])  # 3 saves nothing in the stack
def test_the_cut_is_the_best_and_p_projects_onto_its_span(rank):
    space = dense()
    found, kept = jax.jit(lambda s: s.factored(rank))(space)
    wanted = best_cut(space, rank)
    np.testing.assert_allclose(kept, np.sum(wanted**2, axis=1), rtol=1e-5)
    project = jax.jit(jax.vmap(lambda x: ravel_pytree(found.project(unravel(x)))[0]))
    P = np.asarray(project(jnp.eye(SIZE)), np.float64)
    # A few roundings of float32, times the condition of the cut rows.
    np.testing.assert_allclose(P, projector(np.linalg.qr(wanted.T)[0].T), atol=1e-5)
    np.testing.assert_allclose(P @ P, P, atol=1e-5)
    np.testing.assert_allclose(P, P.T, atol=1e-5)
    # As many numbers as directions and coordinates, and no leaf larger than before.
    found = found.eigenvectors
    sizes = {n: basis.size((found.coordinates[n], found.frames[n])) for n in LIKE}
    shapes = {"bias": (0, 0, 4), "conv": (1, 12, 5), "kernel": (1, 6, 5)}
    shapes["stack"] = (3, 5, 4)
    expected = {n: c * rank * (m + RANK * k) for n, (c, m, k) in shapes.items()}
    assert sizes == expected | {"bias": RANK * 4}
    assert all(sizes[n] <= RANK * leaf.size for n, leaf in LIKE.items())


def test_a_row_that_depends_on_others_is_missing():
    # Apart in the second of two directions, and equal in the first.
    x, y, z = np.eye(6)[0], np.eye(6)[1], np.eye(5)[:3]
    kernel = np.stack([3 * np.outer(x, z[0]) + np.outer(y, z[i]) for i in (1, 2)])
    leaves = {name: jnp.zeros((2, *leaf.shape)) for name, leaf in LIKE.items()}
    space = subspace.empty(LIKE, 2)
    space = space._replace(eigenvectors=leaves | {"kernel": jnp.asarray(kernel)})
    found, kept = space.factored(1)
    np.testing.assert_allclose(kept, 0.9, rtol=1e-6)
    assert int(found.kept) == 1
    part = np.asarray(found.project(vector())["kernel"], np.float64)
    np.testing.assert_allclose(part[0, 0], vector()["kernel"][0, 0], rtol=1e-6)
    assert np.count_nonzero(np.abs(part) > 1e-6) == 1
    empty = subspace.empty(LIKE, 2).factored(1)
    assert (int(empty[0].kept), *empty[1]) == (0, 0, 0)


def test_inner_products_of_leaves_of_two_dtypes():
    found = dense().factored(2, axes=AXES)[0].eigenvectors
    wide = {x: y.astype(jnp.bfloat16).astype(y.dtype) for x, y in vector().items()}
    mixed = wide | {"bias": wide["bias"].astype(jnp.bfloat16)}
    np.testing.assert_array_equal(found.inner(mixed), found.inner(wide))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_transform_scales_by_a_factored_subspace(dtype):
    values = [10, 8, 6, *np.linspace(1, 0.1, SIZE - RANK)]
    loss = quadratic(symmetric(values))
    tx = bulk_sgd.scale_by_subspace(RANK, 0.5, 2.0, solver=of_rank(2))
    params = basis.cast_like(vector(), jax.tree.map(lambda x: x.astype(dtype), LIKE))
    state = tx.init(params)
    step = jax.jit(lambda u, s: tx.update(u, s, params, value_fn=loss))
    updates, state = step(params, state)
    P = projector(unfolded(state.subspace.eigenvectors))
    expected = 2 * flat(params) - 1.5 * P @ flat(params)
    # A rounding of the result to the dtype of the parameters.
    np.testing.assert_allclose(flat(updates), expected, rtol=jnp.finfo(dtype).eps * 4,
                               atol=1e-5)  # fmt: skip
    lanes = jax.tree.map(lambda *x: jnp.stack(x), params, basis.scale(2, params))
    both = jax.vmap(lambda u: tx.update(u, state, params, value_fn=loss)[1].alignment)
    np.testing.assert_allclose(both(lanes), float(state.alignment), rtol=1e-4)


def test_rank_profile_is_that_of_the_singular_values():
    space, ranks = dense(), (1, 2, 9)
    found = bulk_sgd.rank_profile(space, ranks)
    whole = [np.sum(lowest(space, rank) ** 2, axis=1) for rank in ranks]
    np.testing.assert_allclose(found.whole, np.stack(whole, axis=1), rtol=1e-5)
    leaf = np.linalg.svd(space.eigenvectors["stack"], compute_uv=False) ** 2
    kept = [leaf[..., :rank].sum((1, 2)) / leaf.sum((1, 2)) for rank in ranks]
    np.testing.assert_allclose(found.leaves["stack"], np.stack(kept, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(found.leaves["bias"], 1)
    # In two directions no matrix has a higher rank.
    again = bulk_sgd.rank_profile(space.factored(2)[0], (2,))
    np.testing.assert_allclose(again.whole[0], 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("axes", "match"),
    [
        (3, "axes is 3; it must be optax"),
        (AXES | {"kernel": 1}, "axes is 1; it must be optax"),
        (AXES | {"kernel": MUON(0, -2)}, r"must name different axes .* has 2"),
        (AXES | {"kernel": MUON(0, ())}, r"must name different axes .* has 2"),
        (MUON(0, 2), r"must name different axes .* has 2"),
    ],
)
def test_axes_that_do_not_fit_are_named(axes, match):
    with pytest.raises(ValueError, match=match):
        dense().factored(1, axes)


def test_adaptive_factors_are_the_smallest_that_keep_enough():
    space = dense()
    # Only the convolution gains from three factors; the others then lose nothing.
    kept = {rank: np.min(space.factored(rank)[1]) for rank in (1, 2, 3)}
    within = [1 - kept[rank] + 1e-3 for rank in (1, 2, 3)]
    assert within[2] < 1 - np.min(np.sum(best_cut(space, 3) ** 2, axis=1))
    for lost, expected in ((1, 1), *zip(within, (1, 2, 3)), (1 - kept[1] - 1e-3, 2)):
        found, left = space.factored("adaptive", lost=float(lost))
        assert found.eigenvectors.factors == expected
        np.testing.assert_array_equal(left, space.factored(expected)[1])
    found, left = space.factored("adaptive", AXES, lost=1e-4)
    assert found.eigenvectors.factors == 6  # as many as rows
    np.testing.assert_allclose(left, 1, rtol=1e-5)
    assert space.factored("adaptive", lost=0, max_factors=1)[1].min() == kept[1]
    # Where no matrix gains, all stay dense, and nothing is lost.
    assert space.factored("adaptive", lost=0)[0].eigenvectors.factors == 0
    assert subspace.empty(LIKE, 2).factored("adaptive", lost=0)[0].kept == 0


def test_adaptive_factors_of_shared_directions_are_their_number():
    rng = np.random.default_rng(0)
    for rank in (1, 3):
        ends = (rng.standard_normal(s) for s in ((1, 40, rank), (2, rank, 30)))
        leaves = {"kernel": jnp.asarray(np.matmul(*ends), jnp.float32)}
        space = subspace.empty({"kernel": jnp.zeros((40, 30))}, 2)
        space = space._replace(eigenvectors=leaves)
        found = space.factored("adaptive", lost=0, max_factors=4)[0]
        assert found.eigenvectors.factors == rank


def test_a_basis_in_factors_can_be_cut_again():
    once = dense().factored(2)[0]
    whole = once._replace(eigenvectors=basis.dense(once.eigenvectors))
    for cut in (2, "adaptive"):
        (found, kept), (expected, also) = (x.factored(cut) for x in (once, whole))
        assert found.eigenvectors.factors == expected.eigenvectors.factors
        np.testing.assert_allclose(found.overlap(expected), 1, rtol=1e-5)
        np.testing.assert_allclose(kept, also, rtol=1e-5)


def test_adaptive_factors_need_values():
    space = dense()
    with pytest.raises(ValueError, match="factors is 'adaptive'; inside jit"):
        jax.jit(lambda s: s.factored("adaptive"))(space)
    for solver in (bulk_sgd.power, bulk_sgd.streaming):
        with pytest.raises(ValueError, match="factors is 'adaptive'; it must be"):
            solver(factors="adaptive")
    with pytest.raises(ValueError, match="lost is 2; it must be"):
        space.factored("adaptive", lost=2)


def test_what_needs_dense_rows_refuses_factors():
    with pytest.raises(ValueError, match=r"factors is 0; it must be at least 1"):
        dense().factored(0)
    with pytest.raises(ValueError, match=r"solver is .* it must be one with a dense"):
        bulk_sgd.blockwise(of_rank(1))
    found = dense().factored(1)[0].eigenvectors
    for change in (
        lambda: basis.set_row(found, 0, vector()),
        lambda: basis.add_outer(found, jnp.ones(RANK), vector()),
        lambda: basis.put(found, 0, found, jnp.asarray(True)),
        lambda: basis.where_rows(jnp.ones(RANK, bool), found, found),
    ):
        with pytest.raises(TypeError, match="needs dense rows"):
            change()
