"""Finds the collectives in the text of a compiled program."""

import math
import re
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_INSTRUCTION = re.compile(rf" = (.+?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")


class Collective(NamedTuple):
    """One collective instruction.

    Attributes:
      kind: one of `KINDS`.
      shapes: of the arrays that each device receives.
      num_bytes: total size of these arrays on one device.
      computation: name of the enclosing part of the program, such as a loop body.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    num_bytes: int
    computation: str

    @property
    def largest(self) -> int:
        """Number of elements of the largest array."""
        return max(map(math.prod, self.shapes))


def collectives(text: str) -> list[Collective]:
    """The collectives of a program, in order; a loop's body counts once.

    Args:
      text: as from `jax.jit(f).lower(...).compile().as_text()`.

    Example:
      >>> text = "  %sum = (f32[3,2]{1,0}, f32[]) all-reduce(%x, %y), channel_id=1"
      >>> collectives(text)[0][:3]
      ('all-reduce', ((3, 2), ()), 28)
    """
    found, computation = [], ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        match = _INSTRUCTION.search(line)
        if not match:
            continue
        result, kind, start = match.groups()
        arrays = _ARRAY.findall(re.sub(r"\{[^}]*\}", "", result))
        if start and kind == "collective-permute":
            arrays = arrays[1:2]  # operand, result and two contexts
        elif start and kind != "all-reduce":
            arrays = arrays[len(arrays) // 2 :]  # operands and results
        shapes = [tuple(map(int, filter(None, dims.split(",")))) for _, dims in arrays]
        sizes = [_bytes(dtype) for dtype, _ in arrays]
        total = sum(size * math.prod(shape) for size, shape in zip(sizes, shapes))
        found.append(Collective(kind, tuple(shapes), int(total), computation))
    return found


def _bytes(dtype: str) -> float:
    """Bytes of one element of an XLA type such as f32, bf16, f8e4m3fn or pred."""
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) / 8 if bits else 1
