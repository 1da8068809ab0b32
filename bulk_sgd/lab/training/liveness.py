"""Peak memory of a program, estimated from its jaxpr before anything is compiled.

A walk over the equations keeps account of what is alive. What decides is which arrays
XLA writes to memory at all: results of products, reductions and loops are, and most
elementwise ones are not, for they are computed anew inside of whatever reads them. They
keep alive what they are computed from instead.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

from jax.extend.core import ClosedJaxpr, Literal
from jax.interpreters import partial_eval


def _names(text: str) -> frozenset:
    return frozenset(text.split())


# The same numbers in another order or type.
_VIEWS = _names(
    """broadcast_in_dim convert_element_type copy expand_dims iota reshape
    sharding_constraint slice split squeeze stop_gradient transpose"""
)
# Computed anew inside of each reader.
_CHEAP = _VIEWS | _names(
    """abs add add_any and ceil clamp concatenate dynamic_slice eq floor ge gt
    integer_pow is_finite le lt max min mul ne neg not or pad real reduce_precision rev
    round select_n sign square sub xor"""
)
# The same, with all that is computed from them, where the reader is a single one.
_DEAR = _names(
    """cos cumsum div erf erf_inv exp exp2 expm1 gather log log1p logistic pow rem rsqrt
    sin sqrt tan tanh"""
)
# These read whole arrays.
_PRODUCTS = _names("dot_general gather conv_general_dilated")
# These write where an operand was that nothing else reads.
_IN_PLACE = (
    _CHEAP | _DEAR | _names("dynamic_update_slice scatter scatter-add while scan")
)
# What enters one is an array in memory, before its first round.
_LOOPS = _names("while scan")
_CALLS = _names(
    """checkpoint closed_call core_call custom_jvp_call custom_vjp_call jit pjit remat
    remat2"""
)


class Peak(NamedTuple):
    """The moment at which a program takes most memory.

    Attributes:
      num_bytes: beyond its arguments.
      kinds: bytes of the arrays that are alive then, by kind.
    """

    num_bytes: int
    kinds: collections.Counter


def peak(
    closed: ClosedJaxpr, measure: Callable, donated=(), gathered=lambda aval: 0
) -> Peak:
    """The most that a program needs at one time, beyond its arguments.

    Args:
      closed: as from `jax.jit(f).trace(...).jaxpr`.
      measure: the kind of an array, a word, and its bytes on one device, from its
        `ShapedArray`.
      donated: positions of the arguments whose memory may be written.
      gathered: bytes of the whole of an array, from its `ShapedArray`, where a product
        that reads it needs that on the spot; 0 where it is at hand.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def f(x):  # two products are alive, tanh and sum are part of what reads them
      ...     y = x @ x
      ...     return jnp.sum(jnp.tanh(y @ y) + y)
      >>> traced = jax.jit(f).trace(jnp.ones((100, 100)))
      >>> peak(traced.jaxpr, lambda x: ("all", 4 * x.size)).num_bytes
      80004
    """
    jaxpr, _ = partial_eval.dce_jaxpr(
        closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True
    )
    return _walk(jaxpr, _Sizes(measure, gathered), frozenset(donated))


class _Sizes(NamedTuple):
    measure: Callable
    gathered: Callable


@dataclasses.dataclass(eq=False)
class _Buffer:
    """Memory of one array, and the number of the equation that reads it last."""

    kind: str
    size: int
    last: int = -1


@dataclasses.dataclass(eq=False)
class _Value:
    """A value of a flat program: one, however many calls it is handed through."""

    aval: object
    buffers: tuple = ()
    dear: bool = False
    whole: _Buffer | None = None


_NUMBER = _Value(None)  # stands for every literal


def _flat(jaxpr, values):
    """(equation, inputs, outputs) of all equations, with calls opened."""
    for equation in jaxpr.eqns:
        inputs = [
            None if isinstance(x, Literal) else values[x] for x in equation.invars
        ]
        inner = _called(equation)
        if inner is None:
            outputs = [_Value(v.aval) for v in equation.outvars]
            values.update(zip(equation.outvars, outputs))
            yield equation, [x or _NUMBER for x in inputs], outputs
            continue
        inside = {v: _Value(v.aval) for v in inner.constvars}
        for variable, value in zip(inner.invars, inputs):
            inside[variable] = value or _Value(variable.aval)
        yield from _flat(inner, inside)
        for outer, x in zip(equation.outvars, inner.outvars):
            literal = isinstance(x, Literal)
            values[outer] = _Value(outer.aval) if literal else inside[x]


def _called(equation):
    if equation.primitive.name not in _CALLS:
        return None
    params = equation.params
    inner = params.get("jaxpr", params.get("call_jaxpr", params.get("fun_jaxpr")))
    return getattr(inner, "jaxpr", inner)


def _walk(jaxpr, sizes, donated) -> Peak:
    values = {v: _Value(v.aval) for v in (*jaxpr.constvars, *jaxpr.invars)}
    arguments = [values[v] for v in jaxpr.invars]
    equations = list(_flat(jaxpr, values))
    outputs = [values[x] for x in jaxpr.outvars if not isinstance(x, Literal)]
    end = len(equations)
    uses = collections.Counter(
        x for _, inputs, _ in equations for x in dict.fromkeys(inputs)
    )
    kept = set(outputs)
    freed = collections.defaultdict(list)
    for i, value in enumerate(arguments):
        if i in donated:
            value.buffers = (_Buffer(*sizes.measure(value.aval)),)
    written, whole = [], {}
    fused_values, entered = set(), collections.defaultdict(list)
    for i, (equation, inputs, results) in enumerate(equations):
        primitive = equation.primitive.name
        for value in fused_values.intersection(inputs) if primitive in _LOOPS else ():
            for buffer in value.buffers:
                buffer.last = i
            entered[i].append(_Buffer(*sizes.measure(value.aval), i))
            value.buffers = (entered[i][-1],)
            fused_values.discard(value)
        sources = dict.fromkeys(b for value in inputs for b in value.buffers)
        dear = primitive in _DEAR or any(value.dear for value in inputs)
        once = primitive in _VIEWS or not dear or uses[results[0]] <= 1
        fused = primitive in _CHEAP | _DEAR and once and not kept.intersection(results)
        written.append(not fused)
        for value in results:
            value.buffers, value.dear = tuple(sources), dear and fused
            if not fused:
                value.buffers = (_Buffer(*sizes.measure(value.aval), i),)
            else:
                fused_values.add(value)
            if primitive in _VIEWS and inputs:
                value.whole = inputs[0].whole
        if primitive in _PRODUCTS:
            sources |= dict.fromkeys(_gather(inputs, i, sizes, whole))
        if not fused:
            for buffer in sources:
                buffer.last = i
    for buffer in (b for value in outputs for b in value.buffers):
        buffer.last = end
    every = itertools.chain(arguments, *(results for _, _, results in equations))
    buffers = dict.fromkeys(b for value in every for b in value.buffers)
    for buffer in (*buffers, *whole):
        freed[buffer.last].append(buffer)
    made = collections.defaultdict(list)
    for buffer, first in whole.items():
        made[first].append(buffer)
    for i, (_, _, results) in enumerate(equations):
        if written[i]:
            made[i] += [value.buffers[0] for value in results]
    return _account(equations, entered, made, freed, sizes)


def _gather(inputs, i, sizes, whole):
    """The whole arrays that a product reads; new ones are noted in `whole`.

    One that is needed again, as a weight in a backward pass, is kept until then.
    """
    for value in inputs:
        if value is _NUMBER:
            continue
        if value.whole is None and (size := sizes.gathered(value.aval)):
            value.whole = _Buffer("gathered", size)
        if value.whole is not None:
            whole.setdefault(value.whole, i)
            yield value.whole


def _account(equations, entered, all_made, freed, sizes) -> Peak:
    live = collections.Counter()
    most = Peak(0, collections.Counter())
    for buffer in freed[-1]:  # arguments that nothing reads
        live[buffer.kind] -= buffer.size
    for i, (equation, inputs, _) in enumerate(equations):
        for buffer in entered[i]:
            live[buffer.kind] += buffer.size
        made = all_made[i]
        dying = [buffer for buffer in freed[i] if buffer not in made]
        if equation.primitive.name == "cond":
            inner, made_before = _branches(equation, inputs, dying, sizes), ()
        else:
            inner, made_before = _body(equation, sizes), made
        if equation.primitive.name in _IN_PLACE:
            for buffer in made_before:
                fits = (b for b in dying if b.size == buffer.size)
                if place := next(fits, None):
                    dying.remove(place)
                    live[place.kind] -= place.size
        for buffer in made_before:
            live[buffer.kind] += buffer.size
        total = live.total() + inner.num_bytes
        if total > most.num_bytes:
            kinds = live.copy()
            kinds.update(inner.kinds)
            most = Peak(total, kinds)
        for buffer in made if not made_before else ():
            live[buffer.kind] += buffer.size
        for buffer in (*dying, *(b for b in made if b.last == i)):
            live[buffer.kind] -= buffer.size
    return most


def _body(equation, sizes) -> Peak:
    """The peak inside of a loop beyond what it carries."""
    params = equation.params
    if equation.primitive.name == "while":
        start = params["body_nconsts"]
        body = params["body_jaxpr"].jaxpr
        return _walk(body, sizes, frozenset(range(start, len(body.invars))))
    if equation.primitive.name == "scan":
        body = params["jaxpr"].jaxpr
        # Versions of JAX name the counts differently; what is sliced or stacked has one
        # axis more outside, in every version.
        num_sliced = _num_changed(equation.invars, body.invars)
        num_carried = len(body.outvars) - _num_changed(equation.outvars, body.outvars)
        end = len(body.invars) - num_sliced
        return _walk(body, sizes, frozenset(range(end - num_carried, end)))
    return Peak(0, collections.Counter())


def _num_changed(outside, inside) -> int:
    """How many of the values have another number of axes in a loop than outside."""
    return sum(x.aval.ndim != y.aval.ndim for x, y in zip(outside, inside))


def _branches(equation, inputs, dying, sizes) -> Peak:
    """The peak of the branches with their results, in which dying inputs may end."""
    donated = frozenset(
        i
        for i, value in enumerate(inputs[1:])
        if len(value.buffers) == 1 and value.buffers[0] in dying
    )
    peaks = [_walk(b.jaxpr, sizes, donated) for b in equation.params["branches"]]
    return max(peaks, key=lambda found: found.num_bytes)
