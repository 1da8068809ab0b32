r"""Frames: a few directions in the column space that many matrices share.

A *frame* F for m × n matrices has q orthonormal columns of length m. A matrix X in its
span is F Z, with *coordinates* Z = Fᵀ X, q × n. Frames keep inner products: F Z₁ and
F Z₂ have the same one as Z₁ and Z₂.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from bulk_sgd.linalg import basis
from bulk_sgd.linalg.matrices import Sides

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
_multiply = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
# The shift c of `_inverse`, which keeps it finite along directions without energy.
_SHIFT = 1e-3
# The largest norm of a change of a frame. It turns a direction by at most 88 degrees,
# and the changed directions stay independent in float32.
_LONGEST = 30


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("vectors",), meta_fields=("sides",)
)
@dataclasses.dataclass(frozen=True)
class Frame:
    """The frames of all matrices in one leaf.

    Attributes:
      vectors: `(q, ...)` with the axes of the leaf except its columns: for each matrix
        q orthonormal vectors of length m. If q > m, the last q − m are zero.
      sides: which axes of the leaf are rows and columns.
    """

    vectors: jax.Array
    sides: Sides

    @property
    def ndim(self) -> int:
        """The number of axes of the leaf."""
        return self.vectors.ndim - 1 + len(self.sides.columns)

    @property
    def axes(self) -> tuple[list[int], list[int], list[int]]:
        """The axes of the leaf in `vectors`, in coordinates, and in both."""
        rows, columns = self.sides
        near, far = (self.sides.without(side, self.ndim) for side in (columns, rows))
        return near, far, [axis for axis in near if axis in far]

    def compress(self, leaf):
        """The coordinates `(q, *far)` of a leaf."""
        q, (near, far, _) = self.ndim, self.axes
        return _einsum(self.vectors, [q, *near], leaf, [*range(q)], [q, *far])

    def lift(self, coordinates):
        """The leaf that has these coordinates."""
        q, (near, far, _) = self.ndim, self.axes
        return _einsum(self.vectors, [q, *near], coordinates, [q, *far], [*range(q)])

    def outer(self, leaf, coordinates):
        """X Zᵀ for a leaf and coordinates, shaped like `vectors`."""
        q, (near, far, matrices) = self.ndim, self.axes
        # In this order, or XLA would make a transposed copy of the leaf.
        order = [*matrices, *(axis for axis in near if axis not in matrices), q]
        found = _einsum(leaf, [*range(q)], coordinates, [q, *far], order)
        return found.transpose([order.index(axis) for axis in (q, *near)])

    def inner(self, left, right):
        """Inner products `(..., q, q)` of directions, both shaped like `vectors`."""
        near, _, matrices = self.axes
        q, p = self.ndim, self.ndim + 1
        return _einsum(left, [q, *near], right, [p, *near], [*matrices, q, p])

    def gram(self, coordinates):
        """Σ_i Z_i Z_iᵀ, `(..., q, q)`."""
        _, far, matrices = self.axes
        i, q, p = range(self.ndim, self.ndim + 3)
        ends = coordinates, [i, q, *far], coordinates, [i, p, *far]
        return _einsum(*ends, [*matrices, q, p])

    def mixed(self, weights, vectors):
        """Combinations Σ_q weights[..., p, q] vectors[q]."""
        near, _, matrices = self.axes
        q, p = self.ndim, self.ndim + 1
        return _einsum(weights, [*matrices, p, q], vectors, [q, *near], [p, *near])

    def mixed_rows(self, weights, coordinates):
        """Coordinates Σ_q weights[..., p, q] coordinates[i, q]."""
        _, far, matrices = self.axes
        q, p, i = range(self.ndim, self.ndim + 3)
        ends = weights, [*matrices, p, q], coordinates, [i, q, *far]
        return _einsum(*ends, [i, p, *far])


def is_leaf(x) -> bool:
    """Whether this is a leaf of frames: a `Frame`, or None for a dense leaf."""
    return x is None or isinstance(x, Frame)


def compress(held, vector):
    """The coordinates of a vector."""
    part = lambda x, frame: x if frame is None else frame.compress(x)
    return jax.tree.map(part, vector, held)


def lift(held, coordinates):
    """The vector that has these coordinates."""
    part = lambda x, frame: x if frame is None else frame.lift(x)
    return jax.tree.map(part, coordinates, held)


def random_normal(held, like, key):
    """Coordinates of a vector of independent standard normal entries in the frames.

    `like` has the shapes of coordinates. A direction of zeros has coordinates of zero.
    """
    one = lambda x: jax.tree.map(lambda x: x[None], x)
    drawn = translate(held, held, one(basis.random_normal(key, like)))
    return basis.row(drawn, 0)


def start(leaf, sides: Sides, factors: int, key) -> Frame:
    """Frames of `factors` random directions for a leaf."""
    lengths = [leaf.shape[axis] for axis in sides.rows]
    number = math.prod(leaf.shape) // math.prod(lengths)
    number //= math.prod(leaf.shape[axis] for axis in sides.columns)
    nothing = jnp.zeros((number, math.prod(lengths), 0), leaf.dtype)
    return of(nothing, leaf.shape, sides, factors, key)


def of(directions, shape, sides: Sides, factors: int, key) -> Frame:
    """Frames of `factors` directions: the first of `(number, m, p)`, then random ones.

    All are orthonormal; if m < `factors`, those after the first m are zero.
    """
    found = directions[..., :factors]
    number, m, count = found.shape
    if count < min(m, factors):
        size = number, m, min(m, factors) - count
        more = jax.random.normal(key, size, found.dtype)
        found = jnp.linalg.qr(jnp.concatenate([found, more], axis=2))[0]
    padded = jnp.pad(found, [(0, 0), (0, 0), (0, factors - found.shape[2])])
    return Frame(sides.unfold(jnp.moveaxis(padded, 2, 0), shape, sides.rows), sides)


def translate(old, new, coordinates):
    """Coordinates in the frames `new` of a basis with coordinates in `old`."""

    def part(x, old, new):
        if old is None:
            return x
        return old.mixed_rows(old.inner(new.vectors, old.vectors), x)

    return jax.tree.map(part, coordinates, old, new)


def turn(held, rows, products, own, scales):
    r"""The frames after a turn towards w new vectors of a basis.

    The new vectors are X_i = F Z_i + c_i (1 − F Fᵀ) Y_i. One step of power iteration on
    Σ_i X_i X_iᵀ gives the new frame. The sum runs over all vectors of the basis, not
    only the new ones. To first order in the parts outside of the old frame, a singular
    value decomposition would give the same frame.

    Args:
      held: the frames, a pytree like the parameters.
      rows: coordinates of all vectors, the new ones among them.
      products: the Y_i, w dense rows.
      own: the coordinates Z_i, w rows.
      scales: `(w,)`, the c_i.
    """
    own = basis.scale_rows(scales, own)
    treedef = jax.tree.structure(rows)
    leaves = zip(*map(treedef.flatten_up_to, (held, rows, products, own)))
    leaves = [leaf for leaf in leaves if leaf[0] is not None]
    if not leaves:
        return held
    chosen = [frame for frame, *_ in leaves]
    energies = [frame.gram(x) for frame, x, *_ in leaves]
    outer = [_outer(frame, *rest) for frame, _, *rest in leaves]
    changes = map(_change, chosen, energies, _batched(_inverse, energies), outer)
    moved = [frame.vectors + change for frame, change in zip(chosen, changes)]
    found = iter(_orthonormal(chosen, moved))
    return treedef.unflatten(
        frame and dataclasses.replace(frame, vectors=next(found))
        for frame in treedef.flatten_up_to(held)
    )


def _outer(frame: Frame, products, own):
    """Σ_i (1 − F Fᵀ) Y_i Z_iᵀ."""
    terms = basis.map_rows(lambda x: frame.outer(*x), (products, own))
    return _outside(frame, jnp.sum(terms, axis=0))


def _change(frame: Frame, energies, inverse, outer):
    """The change of a frame: the outer product times (N + c tr(N))⁻¹, if not too long.

    `inverse` is in the unit tr(N), which may be near the end of the dtype's range; so
    one root of it divides each of the two.
    """
    traces = jnp.trace(energies, axis1=-2, axis2=-1)[..., None, None]
    root = jnp.sqrt(jnp.where(traces > 0, traces, 1))
    identity = jnp.eye(energies.shape[-1], dtype=energies.dtype)
    outer = frame.mixed(identity / root, outer)
    squares = _multiply(_multiply(inverse, frame.inner(outer, outer)), inverse)
    squares = jnp.trace(squares, axis1=-2, axis2=-1)[..., None, None]
    longest = _LONGEST * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1))
    return frame.mixed(jnp.minimum(1 / root, longest) * inverse, outer)


def _outside(frame: Frame, vectors):
    """(1 − F Fᵀ) G."""
    inside = frame.inner(vectors, frame.vectors)
    return vectors - frame.mixed(inside, frame.vectors)


def _inverse(energies):
    """(N / tr(N) + c)⁻¹, zero where N is."""
    traces = jnp.trace(energies, axis1=-2, axis2=-1)[..., None, None]
    found = traces > 0
    identity = jnp.eye(energies.shape[-1], dtype=energies.dtype)
    relative = energies / jnp.where(found, traces, 1) + _SHIFT * identity
    factor = orthonormalizing(jnp.where(found, relative, 0), 0)
    return _multiply(factor.swapaxes(-1, -2), factor)


def _orthonormal(held, vectors):
    """Orthonormal vectors with the same span, for each frame; zero if dependent."""
    floor = 100 * jnp.finfo(vectors[0].dtype).eps

    def once(_, vectors):
        grams = [frame.inner(x, x) for frame, x in zip(held, vectors)]
        inverses = _batched(lambda gram: orthonormalizing(gram, floor), grams)
        return [frame.mixed(*x) for frame, *x in zip(held, inverses, vectors)]

    # A loop makes one program of both passes, which are enough.
    return jax.lax.fori_loop(0, 2, once, vectors)


def _batched(fn, matrices):
    """`fn` of square matrices of one size, in one call."""
    flat = [x.reshape(-1, *x.shape[-2:]) for x in matrices]
    found = fn(jnp.concatenate(flat))
    ends = [sum(map(len, flat[: i + 1])) for i in range(len(flat) - 1)]
    parts = jnp.split(found, ends)
    return [x.reshape(y.shape) for x, y in zip(parts, matrices)]


def orthonormalizing(gram, floor=None):
    """The lower triangular W `(..., k, k)` with W G Wᵀ = I for Gram matrices G.

    Row i of W is zero if vector i lies almost in the span of those before it: at most
    the share `floor` of its squared length is outside. By default `floor` is the cube
    root of the rounding unit. The inner products of the new vectors then have errors of
    about a hundred rounding units.
    """
    if floor is None:
        floor = jnp.finfo(gram.dtype).eps ** (1 / 3)
    size = gram.shape[-1]
    squares = jnp.diagonal(gram, axis1=-2, axis2=-1)
    identity = jnp.broadcast_to(jnp.eye(size, dtype=gram.dtype), gram.shape)
    index = jnp.arange(size)[:, None]

    # Cholesky's elimination of [G, I] leaves [Lᵀ, L⁻¹].
    def eliminate(pivot, both):
        row = jax.lax.dynamic_index_in_dim(both, pivot, -2)
        square, whole = (
            jax.lax.dynamic_index_in_dim(x, pivot, -1)
            for x in (row, squares[..., None, :])
        )
        found = square > floor * whole
        row *= jnp.where(found, jax.lax.rsqrt(jnp.where(found, square, 1)), 0)
        below = jnp.where(index > pivot, row[..., :size].swapaxes(-1, -2), 0)
        return jnp.where(index == pivot, row, both - below * row)

    both = jnp.concatenate([gram, identity], axis=-1)
    return jax.lax.fori_loop(0, size, eliminate, both)[..., size:]
