"""How much of ten eigenvectors remains in q directions each, and in q shared ones.

  python scripts/shared_directions.py --config=configs/char_lm.py [--steps=500]

The Hessian is that of all training examples after some steps of SGD. The table holds
the mean share of the squared length that remains, as `rank_profile` and
`Subspace.factored` measure it.
"""

import argparse
import runpy
import sys

import jax
from benchmark_common import RANK, trained

import bulk_sgd
from bulk_sgd.lab.files import record

_COUNTS = 1, 2, 4, 8, 16


def main():
    """Trains, solves and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="a file with get_config")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--examples", type=int, default=500)
    arguments = parser.parse_args()
    sys.path.append(".")  # configs import one another
    fields = runpy.run_path(arguments.config)["get_config"]()
    fields.num_steps, fields.data.num_train = arguments.steps, arguments.examples
    fields.optimizer.learning_rate, fields.optimizer.warmup_steps = arguments.rate, 0
    found = trained(fields)
    pairs = jax.jit(bulk_sgd.top_eigenpairs, static_argnums=2)(
        found.matvec, found.params, RANK
    )
    alone = bulk_sgd.rank_profile(pairs, _COUNTS).whole.mean(axis=0)
    shared = [pairs.factored(count)[1].mean() for count in _COUNTS]
    size = sum(leaf.size for leaf in jax.tree.leaves(found.params))
    print(f"{fields.name}: {size:,} parameters, {arguments.steps} steps")
    for name, row in (("q", _COUNTS), ("each", alone), ("shared", shared)):
        print(f"{name:8s}" + "".join(f"{x:8.4g}" for x in row))
    facts = record.provenance()
    print(f"{facts['device']}, jax {facts['versions']['jax']}")


if __name__ == "__main__":
    main()
