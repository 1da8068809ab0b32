"""Everyone who solves for the top eigenpairs in the benchmark: bulk_sgd and its peers.

Each function takes the problem, imports the library that it needs, and returns a
`Contestant`.
"""

import functools
import sys
import unittest.mock
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_common import RANK, TOL
from jax.flatten_util import ravel_pytree

import bulk_sgd


class Contestant(NamedTuple):
    """One way to the eigenpairs.

    Attributes:
      solve: `solve(budget) -> (eigenvalues, eigenvectors, matvecs)`.
      knob: name of the budget.
      budgets: cheapest first.
      as_basis: turns its eigenvectors into a basis of bulk_sgd.
    """

    solve: Callable
    knob: str
    budgets: Sequence
    as_basis: Callable = lambda eigenvectors: eigenvectors


def ours(problem):
    def solve(tol):
        pairs = bulk_sgd.top_eigenpairs(problem.matvec, start, RANK, tol)
        return pairs.eigenvalues, pairs.eigenvectors, pairs.num_matvecs

    start = problem.start
    return Contestant(solve, "tol", (TOL,))


def _matfree(problem):
    from matfree import decomp, eig

    @functools.partial(jax.jit, static_argnums=0)
    def run(length, train, params, start):
        _, matvec = jax.linearize(jax.grad(train), params)
        solver = eig.eigh_partial(decomp.tridiag_sym(length))
        values, vectors = solver(matvec, start)
        return values[-RANK:], jax.tree.map(lambda x: x[-RANK:], vectors)

    def solve(length):
        return *run(length, problem.train, problem.params, start), length

    start = problem.start
    return Contestant(solve, "length", range(RANK, 20 * RANK + 1))


def _scipy(problem):
    from scipy.sparse import linalg

    @jax.jit
    def product(train, params, vector):
        _, result = jax.jvp(jax.grad(train), (params,), (unravel(vector),))
        return ravel_pytree(result)[0]

    def matvec(vector):
        return np.asarray(product(problem.train, problem.params, vector))

    start, unravel = ravel_pytree(problem.start)
    solve = functools.partial(_eigsh, linalg, matvec, np.asarray(start))
    return Contestant(solve, "tol", (TOL,), _rows_like(problem))


def _curvlinops(problem):
    import benchmark_torch
    import curvlinops
    from scipy.sparse import linalg

    network, criterion, data = benchmark_torch.in_torch(problem)
    operator = curvlinops.HessianLinearOperator(
        network, criterion, [*network.parameters()], [data], check_deterministic=False
    ).to_scipy(np.float32)
    start = np.random.default_rng(0).standard_normal(operator.shape[0], np.float32)
    solve = functools.partial(_eigsh, linalg, operator.matvec, start)
    return Contestant(solve, "tol", (TOL,), _rows_like(problem))


def _eigenthings(problem):
    import benchmark_torch
    import hessian_eigenthings as eigenthings

    network, criterion, data = benchmark_torch.in_torch(problem)
    operator = eigenthings.HessianOperator(
        network, [data], eigenthings.supervised_loss(criterion)
    )

    def solve(length):
        found = eigenthings.lanczos(
            operator, k=RANK, max_iter=length, which="LA", seed=0
        )
        return found.eigenvalues, found.eigenvectors, found.iterations

    budgets = range(RANK, 6 * RANK + 1)
    return Contestant(solve, "length", budgets, _rows_like(problem))


def _pyhessian(problem):
    import benchmark_torch
    import pyhessian
    import torch

    network, criterion, data = benchmark_torch.in_torch(problem)
    module = sys.modules["pyhessian.hessian"]  # the package hides it by a class

    def solve(tol):
        torch.manual_seed(0)
        product = _Counted(module.hessian_vector_product)
        with (
            unittest.mock.patch.object(module, "hessian_vector_product", product),
            warnings.catch_warnings(action="ignore"),  # about what the next line mends
        ):
            values, vectors = pyhessian.hessian(
                network, criterion, data, cuda=False
            ).eigenvalues(maxIter=1000, tol=tol, top_n=RANK)
        network.zero_grad(set_to_none=True)  # else gradients add up, and their graphs
        rows = [torch.cat([part.flatten() for part in row]) for row in vectors]
        return values, torch.stack(rows), product.calls

    budgets = [10 ** (-exponent / 4) for exponent in range(12, 29)]
    return Contestant(solve, "tol", budgets, _rows_like(problem))


PEERS = {
    "matfree": _matfree,
    "scipy eigsh on a JAX matvec": _scipy,
    "hessian-eigenthings": _eigenthings,
    "curvlinops and scipy eigsh": _curvlinops,
    "PyHessian": _pyhessian,
}


class _Counted:
    """A function that counts its calls."""

    def __init__(self, fn):
        self.fn, self.calls = fn, 0

    def __call__(self, *args):
        self.calls += 1
        return self.fn(*args)


def _eigsh(linalg, matvec, start, tol):
    counted = _Counted(matvec)
    shape = (start.size, start.size)
    operator = linalg.LinearOperator(shape, matvec=counted, dtype=start.dtype)
    values, vectors = linalg.eigsh(operator, RANK, which="LA", tol=tol, v0=start)
    return values, vectors.T, counted.calls


def _rows_like(problem):
    """From rows over flat parameters `(k, n)` to a basis."""
    unravel = jax.vmap(ravel_pytree(problem.start)[1])
    return lambda rows: unravel(jnp.asarray(np.asarray(rows)))
