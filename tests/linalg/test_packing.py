"""Packed vectors: nothing is lost, nothing is added, and solves are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import projector, rows, symmetric
from jax.flatten_util import ravel_pytree

import bulk_sgd
from bulk_sgd.curvature import operators
from bulk_sgd.linalg import basis, packing

LIKE = {"bias": jnp.zeros(3), "kernel": jnp.zeros((3, 50)), "scale": jnp.zeros(())}


@pytest.fixture
def form():
    return packing.Packed(LIKE)


def test_unpacked_again_a_vector_is_itself(form):
    vector = basis.random_normal(jax.random.key(0), LIKE)
    packed = form.pack(vector)
    assert packed.shape == (2, 128)
    np.testing.assert_array_equal(np.ravel(packed)[basis.size(LIKE) :], 0)
    again = form.unpack(packed)
    jax.tree.map(np.testing.assert_array_equal, again, vector)


def test_combinations_are_those_of_unpacked_rows(form):
    vectors = [basis.random_normal(jax.random.key(i), LIKE) for i in range(4)]
    packed = jnp.stack([form.pack(vector) for vector in vectors])
    coefficients = jax.random.normal(jax.random.key(9), (2, 4))
    unpacked = jax.tree.map(lambda *x: jnp.stack(x), *vectors)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6),
        form.combine(coefficients, packed),
        basis.combine(coefficients, unpacked),
    )


def test_random_vectors_are_normal_and_stay_in_the_space():
    like = [jnp.zeros((100, 100)), jnp.zeros(1)]
    form = packing.Packed(like)
    entries = np.ravel(form.random_normal(jax.random.key(0)))
    np.testing.assert_array_equal(entries[10_001:], 0)
    entries = entries[:10_001]
    assert len(np.unique(entries)) > 9_990  # no part is drawn twice
    # Four standard errors, of the mean and of the variance.
    assert abs(entries.mean()) < 4 / 100
    assert abs(entries.var() - 1) < 4 * np.sqrt(2) / 100


@pytest.mark.parametrize(
    "wrong",
    [
        {**LIKE, "kernel": jnp.zeros((50, 3))},
        {"bias": LIKE["bias"], "kernel": LIKE["kernel"]},
        {**LIKE, "bias": 1j * LIKE["bias"]},
    ],
    ids=["shape", "structure", "dtype"],
)
@pytest.mark.parametrize("spans", [False, True])
def test_a_product_that_is_no_vector_is_refused(wrong, spans, monkeypatch):
    monkeypatch.setattr(operators, "spans_devices", lambda _: spans)
    with pytest.raises(ValueError, match=r"matvec returned .*float32\[3, 50\]"):
        bulk_sgd.top_eigenpairs(lambda vector: wrong, LIKE, 1)


@pytest.mark.slow
def test_a_warm_start_of_less_precision_is_widened():
    weights = jnp.arange(1.0, 41.0)
    matvec = jax.tree_util.Partial(jnp.multiply, weights)
    found = bulk_sgd.top_eigenpairs(matvec, jnp.ones(40), 3, 1e-4)
    coarse = jax.tree.map(lambda x: x.astype(jnp.bfloat16), found.eigenvectors)
    again = bulk_sgd.top_eigenpairs(
        matvec, found._replace(eigenvectors=coarse), 3, 1e-4
    )
    assert again.eigenvectors.dtype == jnp.float32
    vectors = np.asarray(again.eigenvectors)
    residuals = vectors * np.asarray(weights) - vectors * again.eigenvalues[:, None]
    assert again.converged
    assert np.all(np.linalg.norm(residuals, axis=1) <= 2e-4 * 40)


@pytest.mark.slow
def test_a_solve_is_that_of_unpacked_vectors(monkeypatch):
    with jax.enable_x64(True):
        like = jax.tree.map(lambda x: x.astype(float), LIKE)
        start = basis.random_normal(jax.random.key(0), like)
        unravel = ravel_pytree(start)[1]
        values = np.concatenate([np.linspace(20, 11, 10), np.linspace(1, 0, 144)])
        matrix = jnp.asarray(symmetric(values))

        def matvec(matrix, vector):
            return unravel(matrix @ ravel_pytree(vector)[0])

        found = []
        for spans in (False, True):
            monkeypatch.setattr(
                operators, "spans_devices", lambda _, spans=spans: spans
            )
            operator = jax.tree_util.Partial(lambda m, v: matvec(m, v), matrix)
            found.append(bulk_sgd.top_eigenpairs(operator, start, 5, tol=1e-10))
        np.testing.assert_allclose(found[0].eigenvalues, values[:5], rtol=1e-10)
        np.testing.assert_allclose(*[x.eigenvalues for x in found], rtol=1e-10)
        # Squared residuals over gaps of a twentieth of λ_1; rounding is 1e-15.
        first, second = (projector(rows(x.eigenvectors)) for x in found)
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-8)


def test_vectors_that_may_lie_on_several_devices_stay_as_they_are():
    assert isinstance(packing.choose(LIKE, True), packing.Unpacked)
    assert isinstance(packing.choose(LIKE, False), packing.Packed)
    assert isinstance(packing.choose(jnp.ones((2, 3)), False), packing.Unpacked)
    assert isinstance(packing.choose(jnp.ones(3), False), packing.Unpacked)
    vast = [jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)] * 2
    assert isinstance(packing.choose(vast, False), packing.Unpacked)
