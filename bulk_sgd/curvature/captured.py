"""Functions as pytrees that know what they read besides their arguments.

To `jit` a Python function is static: it runs the program of an equal function. But a
bound method equals itself after its object has changed, and so does a closure after its
variables have. A `Captured` function carries the contents that it reads into the
comparison, taken whenever a compiled program is looked up. A program of old contents is
then not found, and a new one is compiled.

Contents are what the code names: variables of closures, defaults, arguments of a
`functools.partial`, attributes of the objects among them, and global variables of the
function's own module. Data that code finds otherwise remain static: by `getattr` with a
computed name, or in another module. What the code itself changes, such as a counter of
its calls, is not among its data. A frozen dataclass with a hash says itself what it
equals.
"""

import dis
import functools
import itertools
import types
from typing import Any, NamedTuple

import jax
import numpy as np

_NUMBERS = bool, int, float, complex, str, bytes, np.generic, types.NoneType
_FIXED = jax.Array, type, types.ModuleType, types.BuiltinFunctionType
_STORES = "STORE_ATTR", "STORE_DEREF", "STORE_GLOBAL"
_GROW = "append", "extend", "add", "update"
_UNSET = types.CellType()  # equal to the cell of a variable that is not set yet


class Reading(NamedTuple):
    """A function with the contents that it reads now: equal where both are."""

    fn: Any
    contents: tuple

    @classmethod
    def of(cls, fn) -> "Reading":
        """The present reading of a function.

        Example:
          >>> from bulk_sgd.curvature.captured import Reading
          >>> scale = [2.0]
          >>> def loss(x): return scale[0] * x
          >>> before = Reading.of(loss)
          >>> before == Reading.of(loss)
          True
          >>> scale[0] = 3.0
          >>> before == Reading.of(loss)
          False
        """
        return cls(fn, _Reader().read(fn, frozenset()))


@jax.tree_util.register_pytree_node_class
class Captured:
    """A function as a callable pytree without leaves; its `Reading` identifies it."""

    def __init__(self, fn):
        self.fn = fn

    def __call__(self, *args, **kwargs):
        return self.fn(*args, **kwargs)

    def tree_flatten(self):
        """No leaves, and the reading at this moment."""
        return (), Reading.of(self.fn)

    @classmethod
    def tree_unflatten(cls, reading, leaves):
        """The function of a reading."""
        del leaves
        return cls(reading.fn)


class _Same:
    """An object that equals itself alone, and stays alive as long as this does."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self):
        return id(self.value)


class _Reader:
    """One walk through what a function reads."""

    def __init__(self):
        self.seen, self.home = set(), None

    def read(self, value, names):
        """The contents of a value whose attributes `names` are read, hashable."""
        if isinstance(value, np.ndarray):  # may change in place
            return value.shape, value.dtype.str, hash(value.tobytes())
        if isinstance(value, _NUMBERS):
            return type(value), repr(value)
        if isinstance(value, _FIXED):
            return _Same(value)
        if (id(value), names) in self.seen:
            return _Same(value)
        self.seen.add((id(value), names))
        if isinstance(value, dict):
            value = [*value, *value.values()]
        if isinstance(value, list | tuple | set | frozenset):
            return type(value), *(self.read(x, names) for x in value)
        if isinstance(value, functools.partial):
            parts = value.func, value.args, value.keywords
            return tuple(self.read(part, names) for part in parts)
        if isinstance(value, types.MethodType):
            return self.method(value.__func__, value.__self__)
        if isinstance(value, types.FunctionType):
            return self.function(value)
        itself = value if _hashable(value) else _Same(value)
        kind = getattr(value, "__dataclass_params__", None)
        if itself is value and getattr(kind, "frozen", False):
            return value
        names |= {"__call__", "__getitem__"}  # which code uses without their names
        used = sorted(names)
        return itself, *(self.attribute(value, name, names) for name in used)

    def method(self, fn, owner):
        """The contents of a function and of the object that it belongs to."""
        names = _names(getattr(fn, "__code__", None))
        return self.read(fn, frozenset()), self.read(owner, names)

    def function(self, fn):
        """The contents of a function: cells, defaults, globals of the first module."""
        code, names = fn.__code__, _names(fn.__code__)
        if self.home is None:
            self.home = fn.__globals__
        known = fn.__globals__ if fn.__globals__ is self.home else {}
        used = [known[name] for name in sorted(names & known.keys())]
        cells = [
            cell.cell_contents
            for name, cell in zip(code.co_freevars, fn.__closure__ or ())
            if name not in _changed(code) and cell != _UNSET
        ]
        values = fn.__defaults__, fn.__kwdefaults__, *cells, *used
        return code, *(self.read(x, names) for x in values)

    def attribute(self, owner, name, names):
        """The contents of an attribute, of the object or of its class."""
        own = getattr(owner, "__dict__", {})
        if name in own:
            return name, self.read(own[name], names)
        for cls in type(owner).__mro__:
            if name in vars(cls):
                break
        else:
            return None
        found = vars(cls)[name]
        if isinstance(found, types.MemberDescriptorType):  # of __slots__
            return name, self.read(getattr(owner, name, None), names)
        for way in ("fget", "func", "__func__"):  # of a property, or a static method
            found = getattr(found, way, found)
        if isinstance(found, types.FunctionType):
            return name, self.method(found, owner)
        return name, self.read(found, names)


def _hashable(value) -> bool:
    try:
        return hash(value) is not None
    except TypeError:  # as of a frozen dataclass with arrays
        return False


@functools.lru_cache(maxsize=4096)
def _names(code) -> frozenset:
    """The globals and attributes that a code and its inner functions read."""
    if not isinstance(code, types.CodeType):
        return frozenset()
    inner = (_names(const) for const in code.co_consts)
    return frozenset(code.co_names).union(*inner) - _changed(code)


@functools.lru_cache(maxsize=4096)
def _changed(code) -> frozenset:
    """The names of what a code itself sets, or adds to, with its inner functions."""
    if not isinstance(code, types.CodeType):
        return frozenset()
    steps = list(dis.get_instructions(code))
    stored = {step.argval for step in steps if step.opname in _STORES}
    grown = {a.argval for a, b in itertools.pairwise(steps) if b.argval in _GROW}
    inner = (_changed(const) for const in code.co_consts)
    return frozenset(stored | grown).union(*inner)
