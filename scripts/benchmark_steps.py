"""The time of one training step inside a compiled loop, optimizer by optimizer."""

import dataclasses
import functools
import statistics

import jax
import jax.numpy as jnp
import optax
from benchmark_common import RANK, gradient_and_matvec, interleaved, median_ratio, timed

import bulk_sgd
from bulk_sgd.lab.data.batches import batch_indices
from bulk_sgd.linalg import basis
from bulk_sgd.solvers.streaming import eager_calls

_RATE = 0.01
_STEPS = 200  # per call
_EAGER = eager_calls(RANK, 1, 0.1)  # the most that `streaming` has; not timed
_SGD, _STREAMING = "SGD", "Bulk-SGD, streaming()"
_MORE = "the same, 10 times the data"
_IDLE = "Bulk-SGD, projection alone"
_FACTORED = "Bulk-SGD, projection alone, factors=8"
_OFTEN = "Bulk-SGD, streaming(factors=8, every=4)"
_RECOMMENDED = "Bulk-SGD, streaming(factors=8, every=16)"
FEW = _SGD, "SAM", _IDLE, _FACTORED, _STREAMING, _OFTEN, _RECOMMENDED


def measure(
    problem, batch_sizes, repeats: int, only=None, steps=_STEPS
) -> dict[str, dict]:
    """One row per batch size and optimizer, with the ratio to SGD of that size.

    Bulk-SGD gets the loss of the mini-batch, or products that share its pass. Each call
    of a contestant takes so many steps and continues from the last one, in the same
    buffers. `only` names some contestants.
    """
    rows = {}
    for size in batch_sizes:
        loops = _loops(problem, size, steps)
        loops = {name: loops[name] for name in only or loops}
        first = {name: timed(loop)[1] for name, loop in loops.items()}
        for loop in loops.values():
            for _ in range(-(-_EAGER // steps)):
                timed(loop)
        seconds = interleaved(loops, repeats)
        for name, times in seconds.items():
            row = {
                "ms a step": 1e3 * statistics.median(times) / steps,
                "over SGD": median_ratio(times, seconds[_SGD]),
                "first call s": first[name],
            }
            if name == _MORE:
                row["over once the data"] = median_ratio(times, seconds[_STREAMING])
            rows[f"batch {size}: {name}"] = row
    return rows


def _loops(problem, batch_size, steps):
    train = problem.train
    tenfold = dataclasses.replace(
        train,
        inputs=_tenfold(train.inputs),
        targets=_tenfold(train.targets),
    )

    def loop(optimizer, objective=train, gradient=_gradient):
        params = problem.params
        return _Loop(optimizer, params, objective, batch_size, gradient, steps)

    def bulk(solver, objective=train, gradient=_shared):
        return loop(bulk_sgd.bulk_sgd(_RATE, RANK, solver=solver), objective, gradient)

    return {
        _SGD: loop(optax.sgd(_RATE)),
        "SGD with momentum": loop(optax.sgd(_RATE, momentum=0.9)),
        "Adam": loop(optax.adam(1e-3)),
        "SAM": loop(optax.sgd(_RATE), gradient=_sharpness_aware),
        "SGD and one matvec": loop(optax.sgd(_RATE), gradient=_with_product),
        _IDLE: bulk(idle()),
        _STREAMING: bulk(bulk_sgd.streaming()),
        _MORE: bulk(bulk_sgd.streaming(), tenfold),
        "Bulk-SGD, streaming(every=4)": bulk(bulk_sgd.streaming(every=4)),
        "Bulk-SGD, streaming(columns=0)": bulk(bulk_sgd.streaming(columns=0)),
        _FACTORED: bulk(idle(8)),
        "Bulk-SGD, streaming(factors=8)": bulk(bulk_sgd.streaming(factors=8)),
        **{
            f"Bulk-SGD, streaming(factors={q}, every={n})": bulk(
                bulk_sgd.streaming(factors=q, every=n), gradient=_apart
            )
            for q, n in ((8, 4), (4, 16), (8, 16), (16, 16))
        },
    }


def _tenfold(examples):
    return jnp.tile(examples, (10, *(1,) * (examples.ndim - 1)))


class _Loop:
    """Some steps of an optimizer in one program; each call continues."""

    def __init__(self, optimizer, params, objective, batch_size, gradient, steps):
        optimizer = optax.with_extra_args_support(optimizer)

        def run(carry, objective, indices):
            def step(carry, index):
                params, state = carry
                loss = objective.take(index)
                grads, more = gradient(loss, params)
                updates, state = optimizer.update(grads, state, params, **more)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(step, carry, indices)[0]

        self.run = jax.jit(run, donate_argnums=0)
        # All on one device before the first call: the second would compile anew.
        here = functools.partial(jax.device_put, device=jax.devices()[0])
        params = jax.tree.map(jnp.copy, params)
        self.carry = here((params, optimizer.init(params)))
        count = objective.num_examples
        indices = batch_indices(0, 0, steps, count, batch_size)
        self.data = here((objective, jnp.asarray(indices)))

    def __call__(self):
        self.carry = self.run(self.carry, *self.data)
        return self.carry


def _gradient(loss, params):
    """The gradient, and the keywords of `update`."""
    return jax.grad(loss)(params), {}


def _shared(loss, params):
    _, grads, matvec = bulk_sgd.value_grad_and_matvec(loss, params)
    return grads, {"matvec": matvec}


def _apart(loss, params):
    """For few products: the pass of a gradient alone keeps less for the way back."""
    return jax.grad(loss)(params), {"value_fn": loss}


def _with_product(loss, params):
    return gradient_and_matvec(loss, params), {}


def _sharpness_aware(loss, params, radius=0.05):
    """The gradient of SAM (Foret et al., arXiv 2010.01412): of the loss uphill."""
    grads = jax.grad(loss)(params)
    uphill = basis.scale(radius / basis.norm(grads), grads)
    return jax.grad(loss)(jax.tree.map(jnp.add, params, uphill)), {}


def idle(factors=None):
    """A solver that leaves the subspace, dense or in factors, as it is."""

    def solve(matvec, subspace, state, updates, key):
        del matvec, updates, key
        return subspace._replace(converged=jnp.ones((), bool)), state

    zeros = bulk_sgd.streaming(factors=factors).zeros
    return bulk_sgd.Solver(lambda params, rank: (), solve, guarded=True, zeros=zeros)
