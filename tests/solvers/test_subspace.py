import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import equations, flat, projector, rows

from bulk_sgd.linalg import basis
from bulk_sgd.solvers import subspace

pytestmark = pytest.mark.usefixtures("strict_ranks")

LIKE = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(()), "empty": None}
SIZE, RANK = 7, 3
project, complement, coefficients, alignment, overlap = (
    jax.jit(getattr(subspace.Subspace, name))
    for name in ("project", "complement", "coefficients", "alignment", "overlap")
)


def orthonormal(rank=RANK, seed=0):
    """A Subspace with random orthonormal rows."""
    rng = np.random.default_rng(seed)
    frame, _ = np.linalg.qr(rng.standard_normal((SIZE, rank)))
    return subspace.empty(LIKE, rank)._replace(eigenvectors=shaped(frame.T))


def shaped(frame):
    """Rows of seven numbers as a basis."""
    w, b = frame[:, 1:].reshape(-1, 2, 3), frame[:, 0]
    return {"w": np.float32(w), "b": np.float32(b), "empty": None}


def without(space, *missing):
    """A Subspace with rows of zeros in the place of some."""
    frame = rows(space.eigenvectors)
    frame[list(missing)] = 0
    return space._replace(eigenvectors=shaped(frame))


def vector(seed=1, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {
        "w": np.asarray(rng.standard_normal((2, 3)), dtype),
        "b": np.asarray(rng.standard_normal(), dtype),
        "empty": None,
    }


# float32 rounds to 6e-8; sums of seven products of order 1 lose a few units.
CLOSE = {"rtol": 0, "atol": 1e-6}


def test_project_and_complement_equal_the_dense_projector():
    space, v = orthonormal(), vector()
    P = projector(rows(space.eigenvectors))
    np.testing.assert_allclose(flat(project(space, v)), P @ flat(v), **CLOSE)
    np.testing.assert_allclose(
        flat(complement(space, v)), flat(v) - P @ flat(v), **CLOSE
    )
    np.testing.assert_allclose(
        coefficients(space, v), rows(space.eigenvectors) @ flat(v), **CLOSE
    )
    assert space.rank == RANK


def test_parts_add_up_and_projecting_twice_changes_nothing():
    space, v = orthonormal(), vector()
    inside, outside = project(space, v), complement(space, v)
    np.testing.assert_allclose(flat(inside) + flat(outside), flat(v), **CLOSE)
    np.testing.assert_allclose(flat(project(space, inside)), flat(inside), **CLOSE)
    np.testing.assert_allclose(flat(project(space, outside)), 0, **CLOSE)


def test_signs_and_rotations_of_the_rows_change_nothing():
    space, v = orthonormal(), vector()
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    turned = space._replace(eigenvectors=shaped(turn @ rows(space.eigenvectors)))
    np.testing.assert_allclose(
        flat(project(turned, v)), flat(project(space, v)), **CLOSE
    )
    np.testing.assert_allclose(alignment(turned, v), alignment(space, v), **CLOSE)
    np.testing.assert_allclose(overlap(turned, space), 1, **CLOSE)


def test_alignment_is_the_share_of_the_norm():
    space, v = orthonormal(), vector()
    P = projector(rows(space.eigenvectors))
    expected = np.linalg.norm(P @ flat(v)) / np.linalg.norm(flat(v))
    np.testing.assert_allclose(alignment(space, v), expected, **CLOSE)
    np.testing.assert_allclose(alignment(space, complement(space, v)), 0, **CLOSE)


def test_alignment_never_exceeds_one():
    for seed in range(50):
        space = orthonormal(seed=seed)
        assert float(alignment(space, project(space, vector(seed)))) <= 1
    # Rows that are orthonormal only to rounding, and longer than 1.
    longer = space._replace(
        eigenvectors=jax.tree.map(lambda x: 1.0001 * x, space.eigenvectors)
    )
    assert float(alignment(longer, project(space, vector()))) == 1


def test_alignment_of_the_zero_vector_is_zero():
    zero = jax.tree.map(np.zeros_like, vector())
    assert float(alignment(orthonormal(), zero)) == 0
    slope = jax.jit(jax.grad(alignment, 1))(orthonormal(), vector())
    assert float(slope["b"]) != 0


def test_alignment_is_independent_of_scale():
    space, v = orthonormal(), vector()
    expected = alignment(space, v)
    for factor in (1e-12, 1e12):
        scaled = jax.tree.map(lambda x, factor=factor: factor * x, v)
        np.testing.assert_allclose(alignment(space, scaled), expected, **CLOSE)


def test_overlap_is_between_zero_and_one():
    space = orthonormal()
    full, _ = np.linalg.qr(rows(space.eigenvectors).T, mode="complete")
    rest = space._replace(eigenvectors=shaped(full.T[RANK : 2 * RANK]))
    np.testing.assert_allclose(overlap(space, space), 1, **CLOSE)
    np.testing.assert_allclose(overlap(space, rest), 0, **CLOSE)
    other = orthonormal(seed=5)
    cosines = rows(space.eigenvectors) @ rows(other.eigenvectors).T
    np.testing.assert_allclose(overlap(space, other), (cosines**2).mean() * 3, **CLOSE)


def test_overlap_goes_by_the_rows_that_are_kept():
    space = orthonormal()
    two, one, none = (without(space, *rows) for rows in ([1], [0, 1], [0, 1, 2]))
    assert [int(s.kept) for s in (space, two, one, none)] == [3, 2, 1, 0]
    np.testing.assert_allclose(overlap(two, two), 1, **CLOSE)
    # Equal spans alone give 1: what one of them lacks counts, whichever it is.
    np.testing.assert_allclose(overlap(two, space), 2 / 3, **CLOSE)
    np.testing.assert_allclose(overlap(space, one), 1 / 3, **CLOSE)
    assert float(overlap(none, space)) == float(overlap(none, none)) == 0


def test_empty_subspace_projects_everything_to_zero():
    space, v = subspace.empty(LIKE, RANK), vector()
    assert not flat(project(space, v)).any()
    np.testing.assert_array_equal(flat(complement(space, v)), flat(v))
    assert float(alignment(space, v)) == 0
    assert jax.tree.map(jnp.shape, space.eigenvectors) == {
        "w": (3, 2, 3),
        "b": (3,),
        "empty": None,
    }
    assert not space.converged
    assert int(space.num_matvecs) == 0
    assert np.isinf(space.residuals).all()


def test_zero_rows_are_ignored():
    space, v = orthonormal(), vector()
    fewer = without(space, 1)
    P = projector(rows(space.eigenvectors)[[0, 2]])
    np.testing.assert_allclose(flat(project(fewer, v)), P @ flat(v), **CLOSE)


def test_bfloat16_vectors_are_projected_in_float32():
    space, v = orthonormal(), vector(dtype=jnp.bfloat16)
    parts = project(space, v), complement(space, v)
    assert {x.dtype for x in jax.tree.leaves(parts)} == {jnp.dtype("float32")}
    P = projector(rows(space.eigenvectors))
    # The vector is what bfloat16 made of it; nothing more is lost.
    np.testing.assert_allclose(flat(parts[0]), P @ flat(v), **CLOSE)
    # A hundred times the rounding of float32, a hundredth of that of bfloat16.
    assert abs(float(alignment(space, parts[0])) - 1) < 1e-5


def test_methods_work_under_jit_and_vmap():
    space = orthonormal()
    batch = jax.tree.map(lambda *x: np.stack(x), *(vector(s) for s in range(4)))
    alignments = jax.jit(jax.vmap(alignment, (None, 0)))(space, batch)
    for seed, found in enumerate(alignments):
        np.testing.assert_allclose(found, alignment(space, vector(seed)), **CLOSE)


def test_every_product_has_highest_precision():
    space, v = orthonormal(), vector()
    for method in (space.project, space.complement, space.alignment):
        jaxpr = jax.make_jaxpr(method)(v)
        found = [e for e in equations(jaxpr) if e.primitive.name == "dot_general"]
        assert found
        highest = jax.lax.Precision.HIGHEST
        assert all(e.params["precision"] == (highest, highest) for e in found)


@pytest.mark.parametrize("num_rows", [1, 3])
def test_gram_of_two_bases_also_under_vmap(num_rows):
    rng = np.random.default_rng(0)
    draw = lambda m: (rng.standard_normal((2, m, 4, 5)), rng.standard_normal((2, m, 3)))
    first, second = draw(num_rows), draw(2)
    grams = jax.jit(jax.vmap(basis.gram))(*jax.tree.map(jnp.float32, (first, second)))
    for lane in range(2):
        x, y = (rows([leaf[lane] for leaf in b]) for b in (first, second))
        np.testing.assert_allclose(grams[lane], x @ y.T, atol=1e-5)
