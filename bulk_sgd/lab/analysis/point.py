"""Points of a training, and how closely to look at them."""

import dataclasses
import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np

from bulk_sgd import checks
from bulk_sgd.curvature import blocks, second_derivatives
from bulk_sgd.solvers.subspace import Subspace


class Point(NamedTuple):
    """One point of a training.

    Attributes:
      name: its own among the points.
      params: pytree of the parameters.
      path: the training it lies on, one of several that fork from the first.
      step: its step on the path; by default its number in the sequence.
      update: pytree like the params, the update that was or would be taken, or None.
    """

    name: str
    params: Any
    path: str = ""
    step: int | None = None
    update: Any = None

    @property
    def digest(self) -> str:
        """A hash of the paths, dtypes and bytes of the parameters."""
        found = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            array = np.ascontiguousarray(leaf)
            facts = jax.tree_util.keystr(path), array.dtype.name, array.shape
            found.update(repr(facts).encode() + array.tobytes())
        return found.hexdigest()


@dataclasses.dataclass(frozen=True)
class Settings:
    """How closely to look at points.

    Attributes:
      rank: number k of eigenpairs.
      tol: tolerance of the eigenpairs, relative to the largest eigenvalue.
      density_probes: random vectors of the spectral density.
      density_steps: Lanczos steps of each, or the dimension if that is less.
      trace_probes: random vectors of the energies, per operator.
      block_rank: eigenvalues per block.
      by: how leaves make blocks, see `bulk_sgd.curvature.blocks`; by layer if None.
      slice_points: points of a slice along each axis; 0 leaves the slices out.
      radius: how far the slices go, see `docs/analysis.md`.
      seed: seed of all random vectors.
      mode: how products differentiate twice, see `bulk_sgd.hessian`.
    """

    rank: int = 10
    tol: float = 1e-4
    density_probes: int = 4
    density_steps: int = 60
    trace_probes: int = 20
    block_rank: int = 3
    by: blocks.By = None
    slice_points: int = 21
    radius: float = 1.0
    seed: int = 0
    mode: str = second_derivatives.AUTO

    def __post_init__(self):
        least = {"rank": 1, "density_probes": 2, "density_steps": 1, "trace_probes": 2}
        least |= {"block_rank": 1, "slice_points": 0, "seed": 0}
        for name, low in least.items():
            checks.integer(name, getattr(self, name), low)
        checks.between("tol", self.tol, 0, 1)
        checks.at_least("radius", self.radius, 0)
        checks.one_of("mode", self.mode, second_derivatives.MODES)

    def costs(self, num_blocks: int, num_operators: int) -> dict[str, int]:
        """About how many products each part takes, to estimate the time left."""
        lines, planes = 4 * self.slice_points, 2 * self.slice_points**2
        return {
            "spectrum": 3 * self.rank + num_operators * (self.rank + self.trace_probes),
            "density": self.density_probes * self.density_steps,
            "blocks": num_blocks * (2 * self.block_rank + 15),
            "slices": (lines + planes) // 3,  # a product takes some three evaluations
        }

    def plain(self) -> dict:
        """As JSON holds it."""
        by = self.by if self.by is None or isinstance(self.by, str) else "a function"
        return dataclasses.asdict(self) | {"by": by}


class Known(NamedTuple):
    """What the next point needs of this one: its name, params and subspace."""

    name: str
    params: Any
    subspace: Subspace
