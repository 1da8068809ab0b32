"""The preconditioner of Muon as a dense matrix in float64."""

import numpy as np
import scipy.linalg
from optax import contrib


def power(matrix, exponent):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**exponent) @ vectors.T


def by_formula(momentum, numbers, gain, eps=1e-8):
    """(M Mᵀ)^¼ ⊗ (Mᵀ M)^¼ / c for each matrix of a parameter, in its entries."""
    axes = [np.atleast_1d(numbers[i]) % momentum.ndim for i in (0, 1)]
    size = momentum.size
    others = [i for i in range(momentum.ndim) if i not in np.concatenate(axes)]
    order = [*others, *axes[0], *axes[1]]
    m, n = (int(np.prod([momentum.shape[i] for i in part])) for part in axes)
    places = np.arange(size).reshape(momentum.shape).transpose(order).reshape(-1, m * n)
    found = np.zeros((size, size))
    for place in places:
        matrix = momentum.ravel()[place].reshape(m, n)
        left, values, right = np.linalg.svd(matrix)
        floor = (np.linalg.norm(matrix) + eps) / gain
        rows, columns = (
            np.maximum(np.pad(values, (0, k - len(values))), floor) for k in (m, n)
        )
        a = (left * rows**0.5) @ left.T
        b = (right.T * columns**0.5) @ right
        factor = max(1, n / m) ** 0.5
        found[np.ix_(place, place)] = np.kron(a, b) / factor
    return found


def root_of_muon(state):
    """P^½ of Muon from its momentum and Adam's average of squares, as a matrix."""
    muon, adam = (state.inner_states[name].inner_state[0] for name in ("muon", "adam"))
    count = int(adam.count)
    blocks = []
    for layer in muon.mu:
        squares = np.asarray(adam.nu[layer]["bias"], np.float64) / (1 - 0.9**count)
        blocks.append(np.diag((1 - 0.8**count) * (np.sqrt(squares) + 1e-3)))
        momentum = np.asarray(muon.mu[layer]["kernel"], np.float64)
        blocks.append(
            by_formula(momentum, contrib.MuonDimensionNumbers(), 3.4445**5, eps=1e-3)
        )
    return power(scipy.linalg.block_diag(*blocks), 0.5)
