"""How well each solver follows the dominant subspace along training, and its price.

  python scripts/tracking.py [--steps=200] [--only=power,krylov] [--json=FILE]
      [--loss=cross_entropy]

SGD on 1,000 images of MNIST with a tanh MLP (26,506 parameters), squared error summed
over the classes (or cross-entropy), batch 50, rate 0.05, from step 500 on. At every
step the projector P̂
of each solver is compared with the exact P of the full-data Hessian (Lanczos to 1e-5):
the error ‖(P̂ − P) u‖ / ‖u‖ for u the full-batch and the mini-batch gradient, averaged
over the second half of the steps. χ is the alignment ‖P̂ u‖ / ‖u‖ of the latter.

The last rows compare true errors of samples of the data with what `subsampling_error`
states.
"""

import argparse
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

import bulk_sgd
from bulk_sgd.lab import config
from bulk_sgd.lab.data import sources
from bulk_sgd.lab.data.batches import batch_indices
from bulk_sgd.lab.files import record
from bulk_sgd.lab.from_config import losses
from bulk_sgd.lab.models.build import build_model
from bulk_sgd.linalg import basis
from bulk_sgd.solvers import subspace

_RANK, _BATCH, _RATE, _BEFORE = 10, 50, 0.05, 500


def main():
    """Runs every solver along the same path and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--only", default="", help="rows with one of these in their names"
    )
    parser.add_argument("--loss", default="mse", choices=("mse", "cross_entropy"))
    parser.add_argument("--json", help="file for the results")
    arguments = parser.parse_args()
    path = _Path(arguments.steps, arguments.loss)
    wanted = arguments.only.split(",")
    head = ("solver", "matvecs/step", "of images", "error full", "mini", "overlap", "χ")
    print("{:36s}{:>14s}{:>11s}{:>12s}{:>8s}{:>9s}{:>7s}".format(*head))
    results = {}
    for name, (solver, images, every) in _contestants().items():
        if not any(part in name for part in wanted):
            continue
        found = path.follow(solver, images, every)
        results[name] = found
        print(
            f"{name:36s}{found['matvecs']:14.2f}{images or path.size:11d}"
            f"{found['full']:12.3f}{found['mini']:8.3f}{found['overlap']:9.3f}"
            f"{found['alignment']:7.3f}",
            flush=True,
        )
    for size in (100, 250, 500):
        name = f"sample of {size}"
        if any(part in name for part in wanted):
            results[name] = path.sample(size)
            print(name, {key: f"{x:.3g}" for key, x in results[name].items()})
    facts = record.provenance()
    print(f"{facts['device']}, jax {facts['versions']['jax']}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"results": results, **facts}, file, indent=2)


def _contestants() -> dict:
    """Solver, images per matvec (0: all) and steps per refresh, by the row's name."""
    lanczos, streaming = bulk_sgd.lanczos, bulk_sgd.streaming
    seldom = functools.partial(streaming, every=4, gain=0.2)
    power, on_drift, adaptive = bulk_sgd.power, bulk_sgd.on_drift, bulk_sgd.adaptive
    krylov, blockwise = bulk_sgd.krylov_filter, bulk_sgd.blockwise
    update_pca, streaming_pca = bulk_sgd.update_pca, bulk_sgd.streaming_pca
    above = adaptive(power(), 1, learning_rate=_RATE)
    return {
        "lanczos, tol 1e-2": (lanczos(1e-2), 0, 1),
        "lanczos, tol 1e-3": (lanczos(), 0, 1),
        "lanczos, every 10 steps": (lanczos(), 0, 10),
        "lanczos, every 50 steps": (lanczos(), 0, 50),
        "power, of the basis": (power(), 0, 1),
        "power, or lanczos by residuals": (power(tol=0.1), 0, 1),
        "power, along the update": (power("update"), 0, 1),
        "power, along the update, every 2": (power("update"), 0, 2),
        "lanczos on drift": (on_drift(lanczos(), every=4), 0, 1),
        "power on drift": (on_drift(power(), every=4), 0, 1),
        "power on drift, probed every step": (on_drift(power(), 0.07), 0, 1),
        "power, cut at the largest ratio": (adaptive(power()), 0, 1),
        "power, above 1 / learning rate": (above, 0, 1),
        "krylov, 5 steps": (krylov(5), 0, 1),
        "krylov, 10 steps": (krylov(10), 0, 1),
        "krylov, 20 steps": (krylov(20), 0, 1),
        "lanczos by layer": (blockwise(lanczos()), 0, 1),
        "lanczos by layer, repeated": (blockwise(lanczos(repeated=True)), 0, 1),
        "power by layer": (blockwise(power()), 0, 1),
        "lanczos of the batch": (lanczos(), _BATCH, 1),
        "streaming, 1 column": (streaming(), _BATCH, 1),
        "streaming, 1 column, every 4 steps": (seldom(), _BATCH, 1),
        "streaming, 2 columns": (streaming(2), _BATCH, 1),
        "streaming, all columns": (streaming(0), _BATCH, 1),
        "streaming, 1 column, batch 250": (streaming(), 5 * _BATCH, 1),
        "streaming, all columns, batch 250": (streaming(0), 5 * _BATCH, 1),
        **{
            f"streaming, factors {r}{when}": (kind(factors=r), _BATCH, 1)
            for kind, when in ((streaming, ""), (seldom, ", every 4 steps"))
            for r in (4, 8, 16)
        },
        **{
            f"streaming, factors {r}, every 16 steps": (
                streaming(factors=r, every=16, gain=0.4),
                _BATCH,
                1,
            )
            for r in (4, 8, 16)
        },
        "streaming, every 16 steps": (streaming(every=16, gain=0.4), _BATCH, 1),
        "streaming, quarter of the batch": (streaming(), _BATCH // 4, 1),
        "streaming, factors 8, quarter": (streaming(factors=8), _BATCH // 4, 1),
        "update PCA, window 20": (update_pca(20), 0, 1),
        "update PCA, window 50": (update_pca(50), 0, 1),
        "update PCA, window 100": (update_pca(100), 0, 1),
        "streaming PCA, gain 0.05": (streaming_pca(0.05), 0, 1),
        "streaming PCA, gain 0.01": (streaming_pca(0.01), 0, 1),
    }


class _Path:
    """A path of SGD, with the gradients and exact subspaces along it."""

    def __init__(self, num_steps: int, loss: str = "mse"):
        fields = config.default()
        fields.loss.name = loss
        fields.data.num_train, fields.model.hidden = 1000, (32, 32)
        dataset = sources.load(fields.data)
        shape = dataset.train_inputs.shape[1:]
        model_fn, params = build_model(fields.model, shape, dataset.num_classes, 0)
        self.objective = bulk_sgd.Objective(
            model_fn,
            losses.build(fields.loss, dataset.num_classes),
            jnp.asarray(dataset.train_inputs),
            jnp.asarray(dataset.train_targets),
        )
        self.size = self.objective.num_examples
        order = batch_indices(0, 0, _BEFORE + num_steps, self.size, _BATCH)
        walk = jax.jit(_walk)
        params, _ = walk(params, self.objective, order[:_BEFORE])
        self.indices = jnp.asarray(order[_BEFORE:])
        _, self.points = walk(params, self.objective, self.indices)
        self.params, self.exact = jax.jit(_exact)(self.points, self.objective)

    def follow(self, solver, images: int, every: int) -> dict:
        """Errors, overlap and matvecs per step of one solver along the path."""

        def step(carry, at):
            index, params, chosen, exact = at
            batch = self.objective.take(chosen)
            full_gradient = jax.grad(self.objective)(params)
            gradient = jax.grad(batch)(params)
            key = jax.random.fold_in(jax.random.key(0), index)
            value_fn = self.objective
            if images:
                more = max(images - _BATCH, 0)
                more = jax.random.randint(key, (more,), 0, self.size)
                sample = jnp.append(chosen[:images], more)
                value_fn = self.objective.take(sample)

            def refresh(carry):
                matvec = bulk_sgd.hessian(value_fn, params)
                return solver.solve(matvec, *carry, gradient, key)

            carry = jax.lax.cond(index % every == 0, refresh, lambda c: c, carry)
            found = carry[0]
            spent = jnp.where(index % every == 0, found.num_matvecs, 0)
            measured = {
                "full": _error(found, exact, full_gradient),
                "mini": _error(found, exact, gradient),
                "overlap": found.overlap(exact),
                "alignment": found.alignment(gradient),
                "matvecs": spent,
            }
            return carry, measured

        empty = subspace.empty(self.params, _RANK, solver.zeros)
        start = empty, solver.init(self.params, _RANK)
        count = len(self.indices)
        along = (jnp.arange(count), self.points, self.indices, self.exact)
        scan = jax.jit(lambda start, along: jax.lax.scan(step, start, along)[1])
        trace = scan(start, along)
        half = count // 2
        return {name: float(np.mean(x[half:])) for name, x in trace.items()}

    def sample(self, size: int, count: int = 20) -> dict:
        """Root mean squares of the true and stated errors of samples along the path."""

        def draw(at):
            index, params, exact = at
            order = jax.random.permutation(jax.random.key(index), self.size)
            sample = self.objective.take(order[:size])
            gradient = jax.grad(self.objective)(params)
            said = bulk_sgd.subsampling_error(
                sample, params, gradient, _RANK, self.size, max_matvecs=300
            )
            matvec = bulk_sgd.hessian(sample, params)
            own = bulk_sgd.top_eigenpairs(matvec, gradient, _RANK, 1e-4, 300)
            gaps = own.eigenvalues - exact.eigenvalues
            return {
                "eigenvalues": jnp.mean(gaps**2),
                "eigenvalues, stated": said.eigenvalues**2,
                "overlap": 1 - own.overlap(exact),
                "overlap, stated": 1 - said.overlap,
                "projection": _error(own, exact, gradient) ** 2,
                "projection, stated": said.projection**2,
            }

        every = max(len(self.indices) // count, 1)
        points, exact = jax.tree.map(lambda x: x[::every], (self.points, self.exact))
        index = jnp.arange(len(exact.eigenvalues))
        found = jax.jit(lambda at: jax.lax.map(draw, at))((index, points, exact))
        means = {name: float(np.mean(x)) for name, x in found.items()}
        return {k: 1 - x if "overlap" in k else x**0.5 for k, x in means.items()}


def _walk(params, objective, indices):
    def step(params, chosen):
        grads = jax.grad(objective.take(chosen))(params)
        return jax.tree.map(lambda p, g: p - _RATE * g, params, grads), params

    return jax.lax.scan(step, params, indices)


def _exact(points, objective):
    first = jax.tree.map(lambda x: x[0], points)

    def step(found, params):
        matvec = bulk_sgd.hessian(objective, params)
        found = bulk_sgd.top_eigenpairs(matvec, found, _RANK, 1e-5, 300)
        return found, found

    return first, jax.lax.scan(step, subspace.empty(first, _RANK), points)[1]


def _error(found, exact, vector):
    gap = basis.subtract(found.project(vector), exact.project(vector))
    return basis.norm(gap) / basis.norm(vector)


if __name__ == "__main__":
    main()
