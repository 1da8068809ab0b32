"""The decomposition that thick restarts keep, and how orthonormal it stays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import symmetric
from lanczos_spectra import RANK, SIZE, SPECTRA

from bulk_sgd.solvers.thick_restart import _expand, _initial, _restart

pytestmark = pytest.mark.usefixtures("strict_ranks")


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("spectrum", ["gaps", "geometric", "low rank", "identity"])
def test_lanczos_decomposition_holds(x64, spectrum, restart):
    """A Vᵀ − Vᵀ T = v sᵀ, with v the next vector: Lanczos, and s = β e_j, if plain."""
    num_rows, matrix = 12, symmetric(SPECTRA[spectrum])
    state = decompose(jnp.asarray(matrix), num_rows, restart)
    matrix = matrix / float(state.unit)
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
        draw=lambda key: jax.random.normal(key, (len(matrix),), float),
        tol=0.0,
        scale=0.0,
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
