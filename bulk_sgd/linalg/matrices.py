"""Which axes of a parameter are the rows and the columns of a matrix."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks, functions


class Sides(NamedTuple):
    """The axes of a leaf that are rows and columns; the others number its matrices."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def without(self, side, ndim: int) -> list[int]:
        """The axes of a leaf of `ndim` axes that are not in a `side`."""
        return [axis for axis in range(ndim) if axis not in side]

    def matrices(self, leaves):
        """Leaves `(k, *shape)` as matrices `(k, number, m, n)`."""
        parts = self._parts(leaves.ndim - 1)
        order = [axis for part in parts for axis in part]
        lengths = [math.prod(leaves.shape[1 + x] for x in part) for part in parts]
        turned = leaves.transpose(0, *(1 + axis for axis in order))
        return turned.reshape(len(leaves), *lengths)

    def fold(self, matrices, shape):
        """Matrices `(k, number, m, n)` as leaves `(k, *shape)` again."""
        order = [axis for part in self._parts(len(shape)) for axis in part]
        turned = matrices.reshape(len(matrices), *(shape[axis] for axis in order))
        places = sorted(range(len(order)), key=order.__getitem__)
        return turned.transpose(0, *(1 + place for place in places))

    def _parts(self, ndim):
        """The axes of a leaf that number its matrices, its rows and its columns."""
        others = self.without((*self.rows, *self.columns), ndim)
        return others, self.rows, self.columns

    def unfold(self, vectors, shape, side):
        """Vectors `(..., number, m)` along a `side` with the axes of a leaf again.

        These are its axes except those of the other side.
        """
        others = self.without((*self.rows, *self.columns), len(shape))
        order, lead = [*others, *side], vectors.shape[:-2]
        unfolded = vectors.reshape(*lead, *(shape[x] for x in order))
        places = sorted(range(len(order)), key=order.__getitem__)
        places = (len(lead) + place for place in places)
        return unfolded.transpose(*range(len(lead)), *places)


def sides(like, factors: int, axes=None) -> list[Sides | None]:
    """The sides of each leaf, in the order of `jax.tree.leaves`, None if it has none.

    By default a leaf of three axes is a stack of matrices, and the last axis of any
    other holds the columns: a convolution `(h, w, in, out)` has h·w·in rows. A leaf has
    no sides if it is small: of m n ≤ `factors` · (m + n) entries.

    `axes` gives them instead: an `optax.contrib.MuonDimensionNumbers` for all leaves of
    two axes and more, a pytree of them like the parameters with None for a leaf without
    sides, or a function of the parameters that returns one of these.

    Raises ArgumentError unless `axes` fits.

    Example:
      >>> import jax.numpy as jnp
      >>> from bulk_sgd.linalg import matrices
      >>> like = {"bias": jnp.ones(9), "kernel": jnp.ones((3, 3, 8, 9))}
      >>> matrices.sides(like, factors=2)
      [None, Sides(rows=(0, 1, 2), columns=(3,))]
    """
    leaves, treedef = jax.tree.flatten(like)
    if axes is None:
        return [_default(jnp.shape(leaf), factors) for leaf in leaves]
    if callable(axes):
        functions.check("axes", axes, "params")
        axes = axes(like)
    if _is_numbers(axes):
        given = [axes if jnp.ndim(leaf) > 1 else None for leaf in leaves]
    else:
        try:
            given = treedef.flatten_up_to(axes)
        except ValueError:
            _refuse(axes)
    return [_resolve(numbers, jnp.ndim(x)) for numbers, x in zip(given, leaves)]


def _default(shape, factors) -> Sides | None:
    if len(shape) < 2:
        return None
    last = len(shape) - 1
    found = Sides((1,) if last == 2 else tuple(range(last)), (last,))
    m, n = (math.prod(shape[axis] for axis in side) for side in found)
    return found if factors * (m + n) < m * n else None


def _is_numbers(axes) -> bool:
    return hasattr(axes, "reduction_axis") and hasattr(axes, "output_axis")


def _resolve(numbers, ndim) -> Sides | None:
    """The sides of optax's dimension numbers, with axes counted from the front."""
    if numbers is None:
        return None
    if not _is_numbers(numbers):
        _refuse(numbers)
    pair = numbers.reduction_axis, numbers.output_axis
    pair = [(side,) if isinstance(side, int) else tuple(side) for side in pair]
    given = [axis for side in pair for axis in side]
    places = {axis % ndim for axis in given if -ndim <= axis < ndim}
    if len(places) < len(given) or not all(pair):
        _refuse(numbers, f"must name different axes of a leaf that has {ndim}.")
    return Sides(*(tuple(sorted(axis % ndim for axis in side)) for side in pair))


def _refuse(axes, problem=None):
    allowed = (
        "must be optax.contrib.MuonDimensionNumbers, or a pytree of them like the "
        "params, with None for a leaf that stays dense."
    )
    raise checks.ArgumentError(
        "axes", f"is {axes!r}; it {problem or allowed}"
    ) from None
