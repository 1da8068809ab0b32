import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bulk_sgd
from bulk_sgd.linalg import basis
from bulk_sgd.linalg.orthogonalization import orthogonalize, orthonormal


def test_a_vector_of_less_precision_is_made_orthogonal_in_that_of_the_rows():
    rows = jnp.eye(2, 5)
    left, along = orthogonalize(jnp.arange(1, 6, dtype=jnp.bfloat16), rows)
    assert left.dtype == along.dtype == jnp.float32
    assert [*along, *left] == [1, 2, 0, 0, 3, 4, 5]


@pytest.mark.parametrize("outside", [300, 1, 1e-3, 1e-6])
def test_what_remains_is_orthogonal_however_little_it_is(outside):
    frame = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 6)))[0].T
    rows = jnp.asarray(frame[:5], jnp.float32)
    vector = jnp.asarray(frame[:5].sum(0) + outside * frame[5], jnp.float32)
    left, along = jax.jit(orthogonalize)(vector, rows)
    left, rows, vector = (np.asarray(x, np.float64) for x in (left, rows, vector))
    length = np.linalg.norm(vector)
    # One pass leaves 1e-7 of the length of the vector: of the least part 0.1, of one
    # that it is enough for, as 300 is, no more than two leave.
    bound = 1e-6 if outside == 300 else 1e-5
    assert np.linalg.norm(rows @ left) < bound * np.linalg.norm(left)
    np.testing.assert_allclose(left + along @ rows, vector, rtol=0, atol=4e-7 * length)


@pytest.mark.parametrize("dtypes", [("bfloat16",) * 2, ("bfloat16", "float32")])
def test_rows_of_less_precision_are_made_orthonormal_in_that_of_work(dtypes):
    rng = np.random.default_rng(0)
    rows = {name: jnp.asarray(rng.normal(size=(3, 5)), name) for name in dtypes}
    made = orthonormal(rows)
    assert {leaf.dtype for leaf in made.values()} == {jnp.dtype("float32")}
    np.testing.assert_allclose(basis.gram(made, made), np.eye(3), atol=1e-6)


@pytest.fixture
def passes(monkeypatch):
    """A list that gets an entry for each pass over a basis while a program runs."""
    seen, inner = [], basis.inner

    def counted(rows, vector):
        jax.debug.callback(lambda: seen.append(basis.num_rows(rows)))
        return inner(rows, vector)

    monkeypatch.setattr(basis, "inner", counted)
    return seen


@pytest.mark.parametrize(("along", "expected"), [(1e-3, 1), (0.1, 2), (1e3, 2)])
def test_a_second_pass_is_for_a_vector_that_needs_it(passes, along, expected):
    vector = jnp.array([along, 0, 0, 0.6, 0.8])
    orthogonalize(vector, jnp.eye(2, 5))
    jax.effects_barrier()
    assert len(passes) == expected


@pytest.mark.slow
def test_one_pass_over_the_basis_does_for_nearly_every_step_of_a_solve(passes):
    diagonal = jnp.arange(1.0, 200.0) ** 2

    def matvec(vector):
        return diagonal * vector

    start = basis.random_normal(jax.random.key(0), diagonal)
    pairs = bulk_sgd.top_eigenpairs(matvec, start, 3, 1e-5, max_basis=20)
    jax.effects_barrier()
    assert pairs.converged
    assert pairs.num_matvecs > 25  # beyond a restart, after which a step takes two
    assert pairs.num_matvecs <= len(passes) <= 1.2 * int(pairs.num_matvecs)


def test_orthonormal_rows_of_any_length_and_of_dependent_rows():
    rng = np.random.default_rng(0)
    one, two, three = rng.standard_normal((3, 50))
    rows = np.stack([1e3 * one, 0 * one, 1e-6 * two, one + 1e-6 * three, 2 * one, two])
    made = np.asarray(orthonormal(jnp.asarray(rows, jnp.float32)))
    expected = np.diag([1.0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(made @ made.T, expected, atol=2e-6)
    np.testing.assert_allclose(
        made[2] @ two, np.linalg.norm(two - one * (one @ two) / (one @ one)), rtol=1e-4
    )
    for row in (0 * one, 1e-6 * one):
        made = orthonormal(jnp.asarray(row[None], jnp.float32))
        assert np.linalg.norm(made) == pytest.approx(float(row.any()), abs=1e-6)
