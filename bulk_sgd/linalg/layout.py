"""How vectors and bases are laid out over devices."""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bulk_sgd import checks
from bulk_sgd.linalg.factors import Factored
from bulk_sgd.linalg.frames import Frame


def check_layout(sharding, params=None, kind=NamedSharding):
    """`sharding` as a pytree like `params`, or as it is without them.

    Raises ArgumentError unless it consists of `NamedSharding`s on Auto axes, or others
    of that `kind`, like the params or a prefix of them, that fit their shapes.
    """
    allowed = (
        "a jax.NamedSharding on Auto axes of a mesh, or a pytree of them like the "
        "params or a prefix of it."
    )
    for path, layout in jax.tree_util.tree_leaves_with_path(sharding):
        if not isinstance(layout, kind) or not _is_on_auto_axes(layout):
            name = f"sharding{jax.tree_util.keystr(path)}"
            raise checks.ArgumentError(name, f"is {layout!r}; it must be {allowed}")
    if params is None:
        return sharding
    try:
        layouts = jax.tree.broadcast(sharding, params)
    except ValueError:
        problem = f"is {sharding!r}; it must be {allowed}"
        raise checks.ArgumentError("sharding", problem) from None
    named = jax.tree_util.tree_leaves_with_path(layouts)
    for (path, layout), leaf in zip(named, jax.tree.leaves(params)):
        try:
            layout.check_compatible_aval(leaf.shape)  # numbers of axes
            layout.shard_shape(leaf.shape)  # and whether the mesh divides them
        except ValueError:
            raise checks.ArgumentError(
                f"sharding{jax.tree_util.keystr(path)}",
                f"is {layout.spec} on a mesh of {dict(layout.mesh.shape)}; each axis "
                f"must divide an axis of the parameter, of shape {leaf.shape}.",
            ) from None
    return layouts


def _is_on_auto_axes(layout) -> bool:
    if not isinstance(layout, NamedSharding):
        return True
    kinds = dict(zip(layout.mesh.axis_names, layout.mesh.axis_types))
    names = jax.tree.leaves(tuple(layout.spec))
    return all(kinds.get(name, AxisType.Auto) == AxisType.Auto for name in names)


def place(vector, sharding):
    """`vector` laid out over devices as `sharding` says; None leaves it to XLA."""
    if sharding is None:
        return vector
    return jax.lax.with_sharding_constraint(vector, sharding)


def place_rows(basis, sharding):
    """A basis with each row laid out as `sharding` says of one vector."""
    return basis if sharding is None else place(basis, row_sharding(basis, sharding))


def row_sharding(rows, sharding):
    """The layout of a basis `rows` whose rows are each laid out like `sharding`.

    Frames and coordinates are split along the axes that they have of the parameters.

    >>> mesh = jax.sharding.AbstractMesh((1,), ("x",))
    >>> split = NamedSharding(mesh, PartitionSpec("x"))
    >>> tuple(row_sharding(jax.numpy.ones((2, 4)), split).spec)
    (None, 'x')
    """
    if not isinstance(rows, Factored):
        return jax.tree.map(_whole, rows, sharding)
    coordinates = jax.tree.map(_coordinates, rows.coordinates, sharding, rows.frames)
    frames = jax.tree.map(_frame, sharding, rows.frames)
    return Factored(coordinates, frames)


def _whole(rows, sharding):
    return _like(sharding, (None, *sharding.spec))


def _coordinates(rows, sharding, frame):
    if frame is None:
        return _whole(rows, sharding)
    return _like(sharding, (None, None, *_along(frame, sharding, frame.axes[1])))


def _frame(sharding, frame):
    if frame is None:
        return None
    spec = None, *_along(frame, sharding, frame.axes[0])
    return Frame(_like(sharding, spec), frame.sides)


def _along(frame, sharding, axes):
    """The parts of a layout for some `axes` of a leaf."""
    spec = *sharding.spec, *(None,) * (frame.ndim - len(sharding.spec))
    return [spec[axis] for axis in axes]


def _like(sharding, spec):
    spec = PartitionSpec(*spec)
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)
