"""Operators of prescribed spectra, and their solves; shared by the tests of Lanczos."""

import jax
import numpy as np
from helpers import operator, projector, rows, symmetric, top

import bulk_sgd

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
