"""Seconds that XLA takes for one training step, by the number of parameter arrays."""

import contextlib
import itertools
import time

import jax
import jax.numpy as jnp
import optax
from benchmark_common import BATCH, RANK, gradient_and_matvec
from jax.experimental.compilation_cache import compilation_cache

import bulk_sgd

_SOLVERS = {
    "lanczos": bulk_sgd.lanczos(),
    "power": bulk_sgd.power(),
    "streaming": bulk_sgd.streaming(),
    "streaming(factors=8)": bulk_sgd.streaming(factors=8),
}
_FLOOR = "SGD and one matvec"


def measure(quick: bool = False) -> dict[str, dict[str, float]]:
    """A row per network and solver: operations before XLA, and seconds.

    They are those on the clock and those of the processor.

    A busy machine does not change the processor's seconds. XLA's cache on disk is off.
    The first row of a network is the floor, a gradient and a matvec.

    Args:
      quick: a toy, to try it out.
    """
    sizes = [(784, 16, 10)] if quick else [(784, 200, 200, 10), (64,) * 75]
    with _no_cache():
        return {
            f"{2 * len(widths) - 2} arrays, {name}": _compile(widths, name)
            for widths, name in itertools.product(sizes, (_FLOOR, *_SOLVERS))
        }


@contextlib.contextmanager
def _no_cache():
    before = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # JAX asks once whether there is one
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _compile(widths, name):
    like = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    params = [(like(m, n), like(n)) for m, n in itertools.pairwise(widths)]
    if name == _FLOOR:
        tx = optax.with_extra_args_support(optax.sgd(0.01))
        gradient = gradient_and_matvec
    else:
        gradient = lambda loss, params: jax.grad(loss)(params)
        tx = bulk_sgd.bulk_sgd(0.01, RANK, solver=_SOLVERS[name])

    def step(params, state, inputs):
        def loss(params):
            hidden = inputs
            for kernel, bias in params:
                hidden = jnp.tanh(hidden @ kernel + bias)
            return jnp.mean(hidden**2)

        grads = gradient(loss, params)
        updates, state = tx.update(grads, state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    clock, processor = time.perf_counter(), time.process_time()
    program = jax.jit(step).lower(params, state, like(BATCH, widths[0]))
    operations = program.as_text().count(" = ")
    program.compile()
    return {
        "operations": operations,
        "seconds": time.perf_counter() - clock,
        "processor seconds": time.process_time() - processor,
    }
