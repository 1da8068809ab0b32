"""Norms over the whole range of their dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bulk_sgd.linalg import basis, units
from bulk_sgd.linalg.orthogonalization import orthonormal


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_norms_hold_over_the_range_of_their_dtype(x64, dtype):
    info, tol = np.finfo(dtype), 4 * float(np.finfo(dtype).eps)
    vector = {"a": np.array([3.0, 0]), "b": np.array([[-4.0]]), "c": np.zeros((0, 2))}
    norm = jax.jit(basis.norm)
    for scale in (8 * info.tiny, info.tiny**0.5 / 9, 1, info.max**0.5, info.max / 8):
        scaled = jax.tree.map(lambda x: jnp.asarray(x, dtype), vector)
        scaled = basis.scale(jnp.asarray(scale, dtype), scaled)
        rows = jax.tree.map(lambda x: jnp.stack([x, 0 * x, x]), scaled)
        assert norm(scaled) == pytest.approx(5 * scale, rel=tol)
        np.testing.assert_allclose(
            basis.norms(rows), [5 * scale, 0, 5 * scale], rtol=tol
        )
        np.testing.assert_allclose(basis.unit(scaled)["a"], [0.6, 0], rtol=tol)
        slope = jax.grad(norm)(scaled)
        np.testing.assert_allclose(slope["a"], [0.6, 0], rtol=tol)
        numbers = jnp.asarray([[3 * scale, 4 * scale], [0, scale]], dtype)
        found = units.length(numbers, 1)
        np.testing.assert_allclose(found, [5 * scale, scale], rtol=tol)
    for wrong in (jnp.nan, jnp.inf):
        assert not np.isfinite(norm({"a": jnp.asarray([1, wrong], dtype)}))
    zero = {"a": jnp.zeros(2, dtype)}
    assert norm(zero) == 0
    np.testing.assert_array_equal(jax.grad(norm)(zero)["a"], 0)


def test_a_unit_is_a_power_of_two_with_an_inverse():
    sizes = np.float32([2e-38, 3e-30, 1, 1.4, 1.6, 5e9, 3e38])
    found = np.asarray(units.power_of_two(jnp.asarray(sizes)), np.float64)
    np.testing.assert_array_equal(np.frexp(found)[0], 0.5)
    assert np.all(np.abs(np.log2(found / sizes)) <= 2)
    np.testing.assert_array_equal(jnp.float32(1 / found) > 0, True)
    nothing = jnp.array([0, jnp.nan, jnp.inf])
    np.testing.assert_array_equal(units.power_of_two(nothing), 1)


def test_rows_of_any_length_become_orthonormal():
    rows = np.random.default_rng(0).standard_normal((3, 9))
    right = np.linalg.qr(rows.T)[0].T
    for scales in ([1e-35, 1e-35, 1e-36], [1e30, 1, 1e-30], [1e36] * 3, [1e-20, 1, 1]):
        found = orthonormal(jnp.asarray(rows * np.array(scales)[:, None], jnp.float32))
        # Of independent rows in order: Gram and Schmidt's, up to signs.
        np.testing.assert_allclose(np.abs(found), np.abs(right), atol=1e-5)
