"""Fingerprints of what a config names but does not hold: its data and its program.

A run carries both in its record, and goes on over no others. Neither depends on paths,
on the devices or their number, or on fields that experiments of one program may differ
in.
"""

import hashlib
import re

import flax
import jax
import numpy as np
import optax

from bulk_sgd.curvature.objective import Objective
from bulk_sgd.lab import plugins
from bulk_sgd.lab.data.dataset import Dataset
from bulk_sgd.lab.data.rows import LazyRows
from bulk_sgd.lab.from_config import optimizers

_WHOLE = 2**28  # bytes of lazily read rows that are hashed whole
_SAMPLE = 1024  # rows hashed of more
_CHUNK = 256  # rows read at a time


def of_data(dataset: Dataset) -> str:
    """A hash of the examples, before `standard` normalization rounds them.

    Rows that are read when indexed count whole up to 2²⁸ bytes. Of more, their number
    and 1,024 evenly spaced ones count, so an edit of a few other rows goes unseen.
    """
    digest = _digest()
    for part in dataset[1:]:  # the name may change
        if not isinstance(part, int):
            digest.update(f"{part.shape} {np.dtype(part.dtype)}".encode())
            for rows in _chunks(part):
                digest.update(np.ascontiguousarray(rows))
        else:
            digest.update(f"{part};".encode())
    return digest.hexdigest()


def of_program(build, loss_fn, fields, inputs, targets, sources=None) -> str:
    """A hash of the operations that make initial parameters and take a plain step.

    They are read from jaxprs, so comments and the names of variables do not count.

    Args:
      build: returns the model and its parameters, as `models.build.build_model`.
      loss_fn: the loss per example.
      fields: `config.optimizer`.
      inputs, targets: `ShapeDtypeStruct`s of a batch.
      sources: of the user's modules, by name, whose code counts too.
    """
    model_fn = None

    def initial():
        nonlocal model_fn
        model_fn, params = build()
        return params

    def step(number, params, inner, inputs, targets, rate):
        batch = Objective(model_fn, loss_fn, inputs, targets)
        loss, grads = jax.value_and_grad(batch)(params)
        rate = optimizers.rate_at(fields, rate, number)
        return loss, optimizers.update(fields, rate, batch, inner, params, grads)

    born, params = jax.make_jaxpr(initial, return_shape=True)()
    inner = jax.eval_shape(lambda p: optimizers.build(fields, 0.0).init(p), params)
    number, rate = (jax.ShapeDtypeStruct((), x) for x in (np.int32, np.float32))
    shapes = number, params, inner, inputs, targets, rate
    digest = _digest()
    for program in (born, jax.make_jaxpr(step)(*shapes)):
        # Functions with derivatives of their own are printed with their addresses.
        digest.update(re.sub(r"0x[0-9a-f]+", "", str(program)).encode())
        for constant in program.consts:
            digest.update(np.ascontiguousarray(constant))
    for name, parts in sorted(of_code(sources or {}).items()):
        digest.update(f"{name}\n{sorted(parts.items())}".encode())
    return digest.hexdigest()


def of_code(sources) -> dict[str, dict[str, str]]:
    """A hash of each function and class of the user's modules, by module and name."""

    def hashed(text):
        digest = _digest()
        digest.update(text.encode())
        return digest.hexdigest()

    parts = {module: plugins.code(text) for module, text in sources.items()}
    return {m: {k: hashed(x) for k, x in found.items()} for m, found in parts.items()}


def tracer() -> str:
    """What the text of a program depends on beside the code that is named.

    On a CPU a network may multiply where it convolves elsewhere.
    """
    versions = [f"{x.__name__} {x.__version__}" for x in (jax, flax, optax)]
    return ", ".join([*versions, jax.default_backend()])


def _digest():
    return hashlib.blake2b(digest_size=16)


def _chunks(part):
    """The rows that count of an array, some at a time."""
    chosen = np.arange(len(part))
    if isinstance(part, LazyRows):
        row = np.prod(part.shape[1:], dtype=int) * np.dtype(part.dtype).itemsize
        if len(part) * row > _WHOLE:
            chosen = np.arange(_SAMPLE) * len(part) // _SAMPLE
        part = part.raw
    for start in range(0, len(chosen), _CHUNK):
        yield part[chosen[start : start + _CHUNK]]
