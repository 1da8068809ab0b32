"""Small leaves joined into few arrays, since XLA compiles every operation leaf by leaf.

Dense leaves become one flat leaf. Leaves in factors whose matrices are alike become one
leaf of more matrices, with a first axis that numbers them. The functions of `basis`,
`factors` and `recut` take vectors and rows that are joined as they take others.
"""

import collections
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd.linalg import basis, xla
from bulk_sgd.linalg.factors import Factored, Factors, is_factors
from bulk_sgd.linalg.matrices import Sides


class Groups(NamedTuple):
    """Which leaves of vectors are joined.

    Attributes:
      treedef: the structure of a vector.
      shapes: of its leaves.
      places: for each joined leaf the indices of its leaves.
      alike: for each joined leaf whether its leaves are stacked and not made flat.
    """

    treedef: Any
    shapes: list[tuple[int, ...]]
    places: list[list[int]]
    alike: list[bool]

    def join(self, vectors):
        """A vector or a basis, dense or stored rows, as a list of joined leaves."""
        if isinstance(vectors, Factored):
            return Factored(vectors.mixing, self.join(vectors.stored))
        leaves = self.treedef.flatten_up_to(vectors)

        def joined(places, alike):
            parts, shape = [leaves[i] for i in places], self.shapes[places[0]]
            if len(parts) == 1:
                return parts[0]
            if is_factors(parts[0]):
                ends = ([x.left for x in parts], [x.right for x in parts])
                sides = (tuple(axis + 1 for axis in side) for side in parts[0].sides)
                return Factors(*(jnp.stack(x, 2) for x in ends), Sides(*sides))
            lead = parts[0].shape[: parts[0].ndim - len(shape)]
            if alike:
                return jnp.stack(parts, len(lead))
            return xla.concatenate(parts, len(lead))

        return list(map(joined, self.places, self.alike))

    def split(self, joined):
        """The vector, the dense basis or the stored rows of a list of joined leaves."""
        leaves = [None] * len(self.shapes)
        for places, alike, whole in zip(self.places, self.alike, joined):
            for i, part in zip(places, self._parts(places, alike, whole)):
                leaves[i] = part
        return self.treedef.unflatten(leaves)

    def around(self, matvec):
        """A matvec of joined vectors."""
        return lambda joined: self.join(matvec(self.split(joined)))

    def _parts(self, places, alike, whole):
        shapes = [self.shapes[i] for i in places]
        if len(shapes) == 1:
            return [whole]
        if is_factors(whole):
            sides = Sides(*(tuple(axis - 1 for axis in x) for x in whole.sides))
            return [
                Factors(whole.left[:, :, i], whole.right[:, :, i], sides)
                for i in range(len(shapes))
            ]
        if alike:
            axis = whole.ndim - 1 - len(shapes[0])
            index = (slice(None),) * axis
            return [whole[(*index, i)] for i in range(len(shapes))]
        ends = [0, *itertools.accumulate(map(math.prod, shapes))]
        return [
            whole[..., start:end].reshape(*whole.shape[:-1], *shape)
            for start, end, shape in zip(ends, ends[1:], shapes)
        ]


def find(rows) -> Groups:
    """The groups of a basis: leaves that are small and alike, or small and dense.

    A dense basis has none, since a copy of its rows takes k vectors.
    """
    shapes, treedef = jax.tree.flatten(basis.like(rows))
    shapes = [x.shape for x in shapes]
    factored = isinstance(rows, Factored)
    stored = rows.stored if factored else rows
    found = collections.defaultdict(list)
    for i, leaf in enumerate(treedef.flatten_up_to(stored)):
        key = (leaf.sides, shapes[i]) if is_factors(leaf) else ()
        small = factored and xla.is_small(math.prod(shapes[i]))
        found[key if small else (i,)].append(i)
    alike = [len(key) > 1 for key in found]
    return Groups(treedef, shapes, list(found.values()), alike)
