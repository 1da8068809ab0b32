"""Counts solves that claim to have converged but lack an eigenpair.

Each family draws operators of known spectra: outliers over a bulk, evenly spread
eigenvalues, bulks with heavy tails. Cold solves start from a random vector; warm ones
from a basis that lacks one of the vectors wanted, the others exact or turned a little.
A solve is wrong where `converged` is True and an eigenvalue is off by more than
2 tol · λ_1.

    python scripts/completeness.py                    2,000 cold and 2,000 warm solves
    python scripts/completeness.py --repeated         with `repeated=True`
    python scripts/completeness.py --seed=7 --solves=10000
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

import bulk_sgd

SIZE, TOL = 1000, 1e-3


def outliers(rng, count, rank):
    """`count` eigenvalues from 1 to 10 over a normal bulk: (SIZE,), and the rank."""
    bulk = 0.05 * rng.standard_normal(SIZE - count)
    return np.concatenate([rng.uniform(1, 10, count), bulk]), rank


def spread(rng, count, rank, largest):
    """`count` outliers with gaps of 10 to `largest` tolerances over a wide bulk."""
    gaps = 10 * TOL * rng.uniform(10, largest, count - 1)
    first = 10 - np.cumsum([0, *gaps])
    bulk = first[-1] / 4 * rng.uniform(-1, 1, SIZE - count)
    return np.concatenate([first, bulk]), rank


def heavy_tail(rng):
    """Nine outliers, and a bulk that falls like a power, some of it negative."""
    first = 10 * rng.uniform(0.03, 1, 9) ** 1.5
    tail = 0.6 * np.arange(1, SIZE - 8) ** -0.7
    return np.concatenate([first, tail * rng.choice([1, 1, -0.3], tail.size)]), 10


FAMILIES = {
    "10 of 12 outliers": lambda rng: outliers(rng, 12, 10),
    "10 of 10 outliers": lambda rng: outliers(rng, 10, 10),
    "3 of 4 outliers": lambda rng: outliers(rng, 4, 3),
    "10 of 14, gaps to 100 tol": lambda rng: spread(rng, 14, 10, 100),
    "5 of 24, gaps to 60 tol": lambda rng: spread(rng, 24, 5, 60),
    "heavy tail": heavy_tail,
}


@functools.partial(jax.jit, static_argnames=("rank", "repeated"))
def solve(spectrum, start, key, *, rank, repeated):
    matvec = jax.tree_util.Partial(jnp.multiply, spectrum)
    found = bulk_sgd.top_eigenpairs(
        matvec, start, rank, TOL, repeated=repeated, key=key
    )
    return found.eigenvalues, found.converged, found.num_matvecs


def lacking(rng, spectrum, rank) -> bulk_sgd.Subspace:
    """The leading eigenpairs but one, and the next one, half of the times turned."""
    index = np.delete(np.arange(rank + 1), rng.integers(rank))
    rows = np.eye(SIZE)[index]
    if rng.integers(2):
        rows += 0.1 * rng.standard_normal(rows.shape) / np.sqrt(SIZE)
        missing = np.setdiff1d(np.arange(rank + 1), index)
        rows[:, missing] = 0
        rows = np.linalg.qr(rows.T)[0].T
    values = jnp.asarray(spectrum[index], jnp.float32)
    return bulk_sgd.Subspace(
        eigenvalues=values,
        eigenvectors=jnp.asarray(rows, jnp.float32),
        residuals=jnp.zeros(rank),
        converged=jnp.array(True),
        num_matvecs=jnp.int32(0),
    )


def count(family, warm, repeated, solves, seed) -> tuple[int, int, float]:
    """Solves that converged, wrong ones among them, and the mean of matvecs."""
    converged = wrong = matvecs = 0
    for index in range(solves):
        rng = np.random.default_rng([seed, index])
        spectrum, rank = family(rng)
        spectrum = np.sort(spectrum)[::-1].copy()
        start = jnp.asarray(rng.standard_normal(SIZE), jnp.float32)
        if warm:
            start = lacking(rng, spectrum, rank)
        key = jax.random.key(int(rng.integers(2**31)))
        here = jnp.asarray(spectrum, jnp.float32)
        values, claim, spent = solve(here, start, key, rank=rank, repeated=repeated)
        off = np.abs(np.asarray(values, np.float64) - spectrum[:rank]).max()
        converged += bool(claim)
        wrong += bool(claim) and bool(off > 2 * TOL * spectrum[0])
        matvecs += int(spent)
    return converged, wrong, matvecs / solves


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--solves", type=int, default=2000, help="cold, and warm")
    parser.add_argument("--repeated", action="store_true", help="search further")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    each = -(-given.solves // len(FAMILIES))
    print(
        f"{each} solves each, float32, tol {TOL}, seed {given.seed}, {jax.__version__}"
    )
    print(f"{'family':26}{'start':8}{'converged':>10}{'wrong':>8}{'matvecs':>9}")
    for warm in (False, True):
        start, total, began = "warm" if warm else "cold", 0, time.perf_counter()
        for name, family in FAMILIES.items():
            converged, wrong, matvecs = count(
                family, warm, given.repeated, each, given.seed
            )
            print(
                f"{name:26}{start:8}{converged:10}{wrong:8}{matvecs:9.1f}", flush=True
            )
            total += wrong
        print(f"{total} wrong ({time.perf_counter() - began:.0f} s)")


if __name__ == "__main__":
    main()
