"""Measures the solver and the training loop on MNIST-5k; prints a table and JSON.

  python scripts/benchmark.py [--repeats=5] [--json=FILE]

Contestants are interleaved in one process and compared by the median of their
paired ratios, because the speed of a shared machine drifts. Compilation is left out of
the times and printed by itself.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import optax

import bulk_sgd
from bulk_sgd import basis, config, curvature, data, losses, models, record, steps

_RANK, _TOL, _BATCH, _STEPS = 10, 1e-3, 50, 500


def main():
    """Runs all measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", help="file for the results")
    arguments = parser.parse_args()
    problem = _problem()
    results = {
        "eigenpairs": _eigenpairs(problem, arguments.repeats),
        "training_loop": _training_loop(problem, arguments.repeats),
        **record.provenance(),
    }
    for group in ("eigenpairs", "training_loop"):
        print(group)
        for name, value in results[group].items():
            print(f"  {name:52s} {value:.4g}")
    print(f"{results['device']}, jax {results['versions']['jax']}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=2)


def _problem():
    """The MLP of Song et al. on MNIST-5k after 500 steps of SGD."""
    fields = config.default()
    fields.loss.reduction = "half_sum"
    fields.num_steps = fields.eval_every = _STEPS
    dataset = data.load(fields.data)
    model_fn, params = models.build(
        fields.model, dataset.train_inputs.shape[1:], dataset.num_classes, fields.seed
    )
    loss_fn = losses.build(fields.loss, dataset.num_classes)
    objective = lambda inputs, targets: bulk_sgd.Objective(
        model_fn, loss_fn, jnp.asarray(inputs), jnp.asarray(targets)
    )
    train = objective(dataset.train_inputs, dataset.train_targets)
    test = objective(dataset.test_inputs, dataset.test_targets)
    task = steps.Task(train=train, test=test, curvature=train)
    indices = data.batch_indices(0, 0, _STEPS, train.num_examples, _BATCH)
    programs = steps.Programs(fields)
    state, _ = programs.train(
        programs.init(params), task, indices, _STEPS, projected=False
    )
    return fields, programs, task, indices, state


def _eigenpairs(problem, repeats):
    _, programs, task, indices, state = problem
    solve = lambda matvec, start: bulk_sgd.top_eigenpairs(
        matvec, start, rank=_RANK, tol=_TOL
    )
    products = jax.jit(_bare_products)
    here = bulk_sgd.hessian(task.train, state.params)
    cold = basis.random_normal(jax.random.key(0), state.params)
    found, compile_seconds = _timed(solve, here, cold)
    _timed(products, here, cold, 1)
    ratios, solve_seconds = [], []
    for _ in range(repeats):
        pairs, seconds = _timed(solve, here, cold)
        _, bare = _timed(products, here, cold, int(pairs.num_matvecs))
        solve_seconds.append(seconds)
        ratios.append(seconds / bare)
    results = {
        "matvecs from a random start": int(found.num_matvecs),
        "largest residual over λ_1": float(
            jnp.max(_true_residuals(here, found)) / found.eigenvalues[0]
        ),
        "seconds of a solve": statistics.median(solve_seconds),
        "seconds of a solve over those of its bare matvecs": statistics.median(ratios),
        "seconds of the first solve, with compilation": compile_seconds,
    }
    for ahead in (1, 10, 50):
        copy = jax.tree.map(jnp.copy, state)
        moved, _ = programs.train(copy, task, indices, ahead, projected=False)
        warm = solve(bulk_sgd.hessian(task.train, moved.params), found)
        name = f"matvecs from the subspace {ahead} steps before"
        results[name] = int(warm.num_matvecs)
    return results


def _bare_products(matvec, vector, count):
    """`count` linearized products in one program, nothing else."""
    apply = curvature.linearize(matvec)
    return jax.lax.fori_loop(0, count, lambda _, v: basis.scale(1e-2, apply(v)), vector)


def _true_residuals(matvec, pairs):
    apply = lambda vector: matvec(vector)
    rows = [basis.row(pairs.eigenvectors, i) for i in range(pairs.rank)]
    return jnp.stack(
        [
            basis.norm(basis.subtract(apply(row), basis.scale(value, row)))
            for row, value in zip(rows, pairs.eigenvalues)
        ]
    )


def _training_loop(problem, repeats):
    """The binary's loop without curvature against a scan written by hand."""
    fields, programs, task, indices, state = problem
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

    ours = lambda state: programs.train(state, task, indices, _STEPS, projected=False)
    hand = lambda: by_hand(state.params, task.train.inputs, task.train.targets, indices)
    fresh = lambda: jax.block_until_ready(jax.tree.map(jnp.copy, state))
    _timed(ours, fresh())
    _timed(hand)
    ratios, hand_seconds = [], []
    for _ in range(repeats):
        (end, _), mine = _timed(ours, fresh())
        (other, _), seconds = _timed(hand)
        ratios.append(mine / seconds)
        hand_seconds.append(seconds / _STEPS)
    gap = basis.norm(basis.subtract(end.params, other)) / basis.norm(other)
    return {
        "seconds of a hand-written SGD step": statistics.median(hand_seconds),
        "seconds of the binary's over the hand-written scan": statistics.median(ratios),
        "relative difference of their parameters": float(gap),
    }


def _timed(fn, *args):
    start = time.perf_counter()
    result = jax.block_until_ready(fn(*args))
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()
