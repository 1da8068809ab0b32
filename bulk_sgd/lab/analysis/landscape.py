"""Slices of the loss along the sharpest directions and across them."""

import jax.numpy as jnp

from bulk_sgd.lab.analysis.point import Settings
from bulk_sgd.linalg import basis
from bulk_sgd.spectra.loss_slice import loss_slice


def slices(value_fn, params, found: dict, settings: Settings, key) -> dict:
    """The loss along the sharpest directions, along flat ones, and over two planes.

    `found` holds the `subspace`, `gradient`, `loss` and `params_norm` at the params.
    `docs/analysis.md` describes what it returns.
    """
    subspace = found["subspace"]
    directions = {
        f"dominant {i + 1}": basis.row(subspace.eigenvectors, i)
        for i in range(min(settings.rank, 2))
    }
    random = basis.random_normal(key, params)
    for name, vector in (("gradient", found["gradient"]), ("random", random)):
        directions[f"bulk {name}"] = basis.unit(subspace.complement(vector))
    sharpness, loss = float(subspace.eigenvalues[0]), float(found["loss"])
    usable = sharpness > 0 and loss > 0
    unit = (2 * loss / sharpness) ** 0.5 if usable else found["params_norm"] / 100
    radius = settings.radius * float(unit)
    offsets = jnp.linspace(-radius, radius, settings.slice_points)
    dominant, bulk = [*directions][: min(settings.rank, 2)], "bulk gradient"
    planes = {"across": (dominant[0], bulk)}
    if len(dominant) == 2:
        planes["dominant"] = tuple(dominant)

    def loss_over(*names):
        chosen = [directions[name] for name in names]
        return loss_slice(value_fn, params, chosen, [offsets] * len(names))

    return {
        "radius": radius,
        "offsets": offsets,
        "lines": {name: loss_over(name) for name in directions},
        "planes": {name: loss_over(*axes) for name, axes in planes.items()},
    }
