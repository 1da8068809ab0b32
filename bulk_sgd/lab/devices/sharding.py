"""Where the arrays of a run live: a mesh of devices, and a layout for every array.

The mesh has two axes. Examples are split over both. Parameters, optimizer state and
basis are whole on every device along `data` and split along `fsdp`. Programs are
written for one device; XLA derives from the layouts which gradients and products to
sum, and what to gather.
"""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bulk_sgd import checks
from bulk_sgd.linalg import basis
from bulk_sgd.linalg.layout import row_sharding
from bulk_sgd.solvers.subspace import Rows, Subspace

DATA, FSDP = "data", "fsdp"


def validate(config):
    """Raises ValueError on a field of `config.sharding` out of its range."""
    checks.integer("config.sharding.data", config.data, 0)
    checks.integer("config.sharding.fsdp", config.fsdp, 0)
    if config.data == config.fsdp == 0:
        raise ValueError(
            "config.sharding.data and config.sharding.fsdp are both 0; at most one of "
            "them can take the devices that the other leaves."
        )


def make_mesh(config, devices=None) -> Mesh:
    """The mesh ("data", "fsdp") of a `config.sharding`, by default over all devices.

    Raises ValueError if a size is out of its range, their product does not divide the
    number of devices, or a device of another process would be left out.
    """
    validate(config)
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp]
    named = "config.sharding.data is {} and config.sharding.fsdp is {}".format(*sizes)
    known = math.prod(size or 1 for size in sizes)
    if len(devices) % known:
        raise ValueError(
            f"{named}, a mesh of a multiple of {known} devices; it must divide the "
            f"number of devices, {len(devices)}."
        )
    sizes = [size or len(devices) // known for size in sizes]
    size = math.prod(sizes)
    if size < len(devices) and len({device.process_index for device in devices}) > 1:
        raise ValueError(
            f"{named}, a mesh of {size} devices; with several processes it must take "
            f"all {len(devices)}."
        )
    return jax.make_mesh(
        sizes, (DATA, FSDP), (AxisType.Auto,) * 2, devices=devices[:size]
    )


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of every array of a run on one mesh.

    Methods that take a tree look at shapes alone, so they serve arrays, tracers and
    `jax.ShapeDtypeStruct`s. They return a tree of `NamedSharding`s.
    """

    mesh: Mesh

    @classmethod
    def of(cls, config, devices=None) -> "Layout":
        """The layout that a config of an experiment asks for, by `make_mesh`."""
        return cls(make_mesh(config.sharding, devices))

    @property
    def replicated(self) -> NamedSharding:
        """A whole copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def examples(self) -> NamedSharding:
        """The leading axis over all devices."""
        return NamedSharding(self.mesh, PartitionSpec((DATA, FSDP)))

    @property
    def batches(self) -> NamedSharding:
        """The examples of each of several steps, the second axis, over all devices."""
        return NamedSharding(self.mesh, PartitionSpec(None, *self.examples.spec))

    @property
    def num_groups(self) -> int:
        """`Objective.num_groups` for one all-reduce per product."""
        return self.mesh.size if self.mesh.shape[FSDP] == 1 else 1

    def parameters(self, tree):
        """Splits the largest axis that `fsdp` divides; a leaf without one is whole."""
        return jax.tree.map(self._parameter, tree)

    def basis(self, tree):
        """Rows like parameters: leaves `(m, *leaf.shape)`, every device has all m."""
        return row_sharding(tree, self.parameters(basis.like(tree)))

    def state(self, state):
        """The layout of a `TrainState`: parameters, moments and bases are split."""

        def place(part):  # a solver may keep vectors of its own
            layout = jax.tree.map(lambda _: self.replicated, part)
            if isinstance(part, Subspace):
                return layout._replace(eigenvectors=self.basis(part.eigenvectors))
            return self.basis(part) if isinstance(part, Rows) else layout

        is_basis = lambda x: isinstance(x, Subspace | Rows)
        layout = jax.tree.map(place, state, is_leaf=is_basis)
        return layout._replace(
            params=self.parameters(state.params), inner=self.parameters(state.inner)
        )

    def constrain(self, state):
        """The `TrainState` with its layout, inside of `jit`."""
        return jax.lax.with_sharding_constraint(state, self.state(state))

    def constrain_examples(self, tree):
        """The tree with the leading axis of all its leaves split, inside of `jit`."""
        return jax.lax.with_sharding_constraint(tree, self.examples)

    def put_examples(self, array, order=None):
        """Host rows, by default all in order, split over the devices of all processes.

        The array, numpy's or a `data.rows.LazyRows`, is the same on all processes. Each
        indexes it once, with the numbers of the rows that its devices hold.
        """
        order = np.arange(array.shape[0]) if order is None else order
        shape = (len(order), *array.shape[1:])
        places = self.examples.addressable_devices_indices_map(shape).values()
        held = np.unique([np.arange(len(order))[place[0]] for place in places])
        rows = array[order[held]]

        def part(place):
            start, stop, _ = place[0].indices(len(order))
            return rows[slice(*np.searchsorted(held, (start, stop)))]

        return jax.make_array_from_callback(shape, self.examples, part)

    def shape_examples(self, array, order=None):
        """The `ShapeDtypeStruct` of what `put_examples` returns."""
        length = array.shape[0] if order is None else len(order)
        return jax.ShapeDtypeStruct(
            (length, *array.shape[1:]), array.dtype, sharding=self.examples
        )

    def put_batches(self, batches):
        """Host arrays `(n, batch_size, ...)` with the examples of each step split."""
        place = self.batches
        put = lambda x: jax.make_array_from_callback(x.shape, place, x.__getitem__)
        return jax.tree.map(put, batches)

    def abstract(self, build):
        """The static value of `build`, and its parameters as shapes in their layout.

        Raises ValueError if `fsdp` divides no axis of the largest parameter.
        """
        static = []

        def parameters():
            value, params = build()
            static.append(value)
            return params

        shapes = jax.eval_shape(parameters)
        self._check_parameters(shapes)
        params = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            self.parameters(shapes),
        )
        return static[0], params

    def born(self, build):
        """The result of `build`, its parameters born in their layout, nowhere whole.

        It calls `build` more than once.
        """
        static, shapes = self.abstract(build)
        shardings = self.parameters(shapes)
        return static, jax.jit(lambda: build()[1], out_shardings=shardings)()

    def _check_parameters(self, shapes):
        size = self.mesh.shape[FSDP]
        largest = max(jax.tree.leaves(shapes), key=lambda leaf: leaf.size)
        if size > 1 and self._parameter(largest).is_fully_replicated:
            raise ValueError(
                f"config.sharding.fsdp is {size}, which divides no axis of the largest "
                f"parameter, of shape {largest.shape}; parameters would be whole on "
                "every device."
            )

    def _parameter(self, leaf) -> NamedSharding:
        size = self.mesh.shape[FSDP]
        axes = [axis for axis, length in enumerate(leaf.shape) if length % size == 0]
        if size == 1 or not axes:
            return self.replicated
        largest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * largest, FSDP))
