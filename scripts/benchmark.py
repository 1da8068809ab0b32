"""Measures solver, training loop, peers and steps; prints tables and writes JSON.

  pip install '.[lab,bench]'   # bench: the peers, which are skipped otherwise
  python scripts/benchmark.py [--only=peers,steps] [--json=FILE] [--figure=FILE.png]

Run it on an otherwise idle machine. The speed of a machine drifts, so warm contestants
take turns in one process, in random order, and are compared by the median of their
ratios within a round. Times leave out compilation; the seconds of the first call, with
compilation, have a column of their own.
"""

import argparse
import json
import pathlib
import statistics

import benchmark_compile
import benchmark_networks
import benchmark_passes
import benchmark_peers
import benchmark_scaling
import benchmark_steps
import benchmark_sweep
import jax
import jax.numpy as jnp
import optax
from benchmark_common import (
    RANK,
    TOL,
    bare_products,
    median_ratio,
    problem,
    residuals,
    timed,
    trained,
)

import bulk_sgd
from bulk_sgd.lab.files import record
from bulk_sgd.lab.report import saving
from bulk_sgd.linalg import basis


def main(argv=None):
    """Runs the groups that the command line asks for."""
    arguments = _arguments(argv)
    setup = _setup(arguments.network, arguments.quick)
    results = {"quick": arguments.quick, "network": _describe(setup, arguments)}
    print(results["network"], "(--quick: a toy)" if arguments.quick else "")
    for group in arguments.only:
        results[group] = GROUPS[group](setup, arguments)
        print(f"\n{group}")
        _show(results[group])
    results |= record.provenance()
    results["versions"] |= benchmark_peers.versions()
    print(f"\n{results['device']}, commit {results['git']}")
    print(", ".join(f"{name} {v}" for name, v in results["versions"].items()))
    if arguments.json:
        text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
        pathlib.Path(arguments.json).write_text(text)
    if arguments.figure:
        drawing = benchmark_peers.figure(results["peers"])
        saving.save(drawing, pathlib.Path(arguments.figure))


def _arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", default=list(GROUPS), type=_groups, help=f"some of {','.join(GROUPS)}"
    )
    parser.add_argument(
        "--repeats", type=_positive, default=7, help="rounds, whose median counts (7)"
    )
    parser.add_argument(
        "--network", default="mlp", choices=("mlp", "decoder"), help="of steps (mlp)"
    )
    few = "steps: SGD, SAM and the recommended solvers alone, as for the decoder"
    parser.add_argument("--few", action="store_true", help=few)
    parser.add_argument(
        "--batch_sizes", type=_integers, help="of steps (50,250; of the decoder 32)"
    )
    parser.add_argument("--cifar", default="", help="networks: .npz of CIFAR-10")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--figure", help="PNG file for a chart of the peers")
    parser.add_argument("--quick", action="store_true", help="a toy, to try it out")
    arguments = parser.parse_args(argv)
    if "peers" in arguments.only and jax.default_backend() != "cpu":
        parser.error("peers are compared on the CPU: set JAX_PLATFORMS=cpu")
    if arguments.figure and "peers" not in arguments.only:
        parser.error("--figure shows the peers, which --only leaves out")
    if arguments.network != "mlp" and arguments.only != ["steps"]:
        parser.error(f"--network={arguments.network} is for --only=steps")
    return arguments


def _groups(text):
    groups = text.split(",")
    if not set(groups) <= GROUPS.keys():
        raise argparse.ArgumentTypeError(f"{text!r} is not among {','.join(GROUPS)}")
    return groups


def _integers(text):
    return [_positive(number) for number in text.split(",")]


def _positive(text):
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer, at least 1")
    return int(text)


def _setup(network, quick):
    """The network of all groups but `networks`, `scaling`, `sweep` and `compile`."""
    if network == "mlp":
        return problem(quick)
    # 32 pieces of 32 bytes are 1,024 tokens.
    return trained(benchmark_networks.decoder(quick, width=120, pieces=150, steps=20))


def _describe(setup, arguments):
    count, examples = basis.size(setup.params), setup.train.num_examples
    what = {"mlp": "images of MNIST", "decoder": "pieces of 32 bytes"}
    return (
        f"{arguments.network} of {count:,} parameters on {examples:,} "
        f"{what[arguments.network]}, "
        f"{int(setup.state.step):,} steps into training"
    )


def _show(rows):
    """A line per row: a number, or a dict of columns under a common header."""
    text = lambda x: f"{x:.4g}" if isinstance(x, float) else str(x)
    if not isinstance(next(iter(rows.values())), dict):
        rows = {name: {"": value} for name, value in rows.items()}
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    table = [("", *columns)] if any(columns) else []
    table += [(n, *(text(row.get(c, "")) for c in columns)) for n, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*table)]
    for name, *cells in table:
        cells = [cell.rjust(width) for cell, width in zip(cells, widths[1:])]
        print("  ".join(("", name.ljust(widths[0]), *cells)))


def _eigenpairs(setup, repeats):
    solve = lambda matvec, start: bulk_sgd.top_eigenpairs(
        matvec, start, rank=RANK, tol=TOL
    )
    products = jax.jit(bare_products)
    here, cold = setup.matvec, setup.start
    found, compile_seconds = timed(solve, here, cold)
    timed(products, here, cold, 1)
    solve_seconds, bare_seconds = [], []
    for _ in range(repeats):
        pairs, seconds = timed(solve, here, cold)
        solve_seconds.append(seconds)
        bare_seconds.append(timed(products, here, cold, int(pairs.num_matvecs))[1])
    largest = jnp.max(residuals(here, found.eigenvalues, found.eigenvectors))
    results = {
        "matvecs from a random start": int(found.num_matvecs),
        "largest residual over λ_1": float(largest / found.eigenvalues[0]),
        "seconds of a solve": statistics.median(solve_seconds),
        "seconds of a solve over those of its bare matvecs": median_ratio(
            solve_seconds, bare_seconds
        ),
        "seconds of the first solve, with compilation": compile_seconds,
    }
    for ahead in (1, 10, 50):
        copy = jax.tree.map(jnp.copy, setup.state)
        moved, _ = setup.programs.train(
            copy, setup.task, setup.indices, ahead, projected=False
        )
        warm = solve(bulk_sgd.hessian(setup.train, moved.params), found)
        name = f"matvecs from the subspace {ahead} steps before"
        results[name] = int(warm.num_matvecs)
    return results


def _training_loop(setup, repeats):
    """The binary's loop without curvature against a scan written by hand."""
    fields, programs, task, indices, state = setup
    optimizer = optax.sgd(fields.optimizer.learning_rate)
    model_fn, loss_fn = task.train.model_fn, task.train.loss_fn

    @jax.jit
    def by_hand(params, inputs, targets, indices):
        def step(params, index):
            def loss(params):
                outputs = model_fn(params, inputs[index])
                return jnp.mean(loss_fn(outputs, targets[index]))

            value, grads = jax.value_and_grad(loss)(params)
            updates, _ = optimizer.update(grads, optimizer.init(params))
            return optax.apply_updates(params, updates), value

        return jax.lax.scan(step, params, indices)

    count = fields.num_steps
    ours = lambda state: programs.train(state, task, indices, count, projected=False)
    hand = lambda: by_hand(state.params, task.train.inputs, task.train.targets, indices)
    fresh = lambda: jax.block_until_ready(jax.tree.map(jnp.copy, state))
    timed(ours, fresh())
    timed(hand)
    our_seconds, hand_seconds = [], []
    for _ in range(repeats):
        (end, _), seconds = timed(ours, fresh())
        our_seconds.append(seconds)
        (other, _), seconds = timed(hand)
        hand_seconds.append(seconds)
    gap = basis.norm(basis.subtract(end.params, other)) / basis.norm(other)
    return {
        "seconds of a hand-written SGD step": statistics.median(hand_seconds) / count,
        "seconds of the binary's over the hand-written scan": median_ratio(
            our_seconds, hand_seconds
        ),
        "relative difference of their parameters": float(gap),
    }


def _steps(setup, given):
    if given.network == "mlp":
        sizes = given.batch_sizes or (50, 250)
        only = benchmark_steps.FEW if given.few else None
        return benchmark_steps.measure(setup, sizes, given.repeats, only)
    names = benchmark_steps.FEW
    if given.quick:
        names = names[0], names[-1]
    few = {"only": names, "steps": 20}
    return benchmark_steps.measure(
        setup, given.batch_sizes or (32,), given.repeats, **few
    )


GROUPS = {  # in this order by default
    "eigenpairs": lambda setup, given: _eigenpairs(setup, given.repeats),
    "training_loop": lambda setup, given: _training_loop(setup, given.repeats),
    "peers": lambda setup, given: benchmark_peers.measure(setup, given.repeats),
    "networks": lambda _, given: benchmark_networks.measure(
        given.repeats, given.cifar, given.quick
    ),
    "steps": _steps,
    "passes": lambda setup, given: benchmark_passes.measure(setup, given.repeats),
    "scaling": lambda _, given: benchmark_scaling.measure(given.repeats, given.quick),
    "sweep": lambda _, given: benchmark_sweep.measure(given.repeats, given.quick),
    "compile": lambda _, given: benchmark_compile.measure(given.quick),
}


if __name__ == "__main__":
    main()
