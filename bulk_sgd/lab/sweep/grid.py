"""Cells of a sweep: lists of overrides of config fields, and how they combine.

A cell is a dict from dotted field to value, `{"optimizer.learning_rate": 0.1}`. It may
have a `label`, which is not a field and names the cell in the report.
"""

import copy
import difflib
import itertools

from ml_collections import ConfigDict

from bulk_sgd.lab import config as config_lib

Cell = dict[str, object]
LABEL = "label"


def values(field: str, choices) -> list[Cell]:
    """One cell for each value of a field.

    >>> values("seed", range(2))
    [{'seed': 0}, {'seed': 1}]
    """
    return [{field: choice} for choice in choices]


def product(*parts: list[Cell]) -> list[Cell]:
    """Every combination of one cell of each part, the last part fastest.

    Raises:
      ValueError: if two parts set the same field.

    >>> product(values("seed", (0, 1)), values("batch_size", (5,)))
    [{'seed': 0, 'batch_size': 5}, {'seed': 1, 'batch_size': 5}]
    """
    return [_merge(cells) for cells in itertools.product(*parts)]


def zipped(*parts: list[Cell]) -> list[Cell]:
    """The i-th cells of all parts merged.

    Raises:
      ValueError: if the parts differ in length or set the same field.

    >>> zipped(values("seed", (0, 1)), values("batch_size", (5, 9)))
    [{'seed': 0, 'batch_size': 5}, {'seed': 1, 'batch_size': 9}]
    """
    lengths = [len(part) for part in parts]
    if len(set(lengths)) > 1:
        raise ValueError(f"The parts of a zip have {lengths} cells; they must match.")
    return [_merge(cells) for cells in zip(*parts)]


def chain(*parts: list[Cell]) -> list[Cell]:
    """The cells of the first part, then of the next.

    >>> chain(values("seed", (0,)), [{"loss.name": "cross_entropy"}])
    [{'seed': 0}, {'loss.name': 'cross_entropy'}]
    """
    return [cell for part in parts for cell in part]


def labelled(label: str, cells: list[Cell]) -> list[Cell]:
    """The cells with a label, which replaces their values in the report.

    >>> labelled("plain", values("seed", (0, 1)))
    [{'label': 'plain', 'seed': 0}, {'label': 'plain', 'seed': 1}]
    """
    return [{LABEL: label} | cell for cell in cells]


def check(cells) -> list[Cell]:
    """Cells as JSON can hold them: numbers of numpy and JAX become Python's.

    Raises:
      ValueError: unless `cells` is a list of dicts from field to value.
    """
    if not isinstance(cells, list | tuple):
        raise ValueError(
            f"The cells are {cells!r}; get_sweep must return a list of dicts of fields."
        )
    for index, cell in enumerate(cells):
        if not (isinstance(cell, dict) and all(isinstance(key, str) for key in cell)):
            raise ValueError(
                f"cell {index} is {cell!r}; it must be a dict of fields, such as "
                "{'optimizer.learning_rate': 0.1}."
            )
        if not isinstance(cell.get(LABEL, ""), str):
            raise ValueError(
                f"cell {index}: label is {cell[LABEL]!r}; it must be a string."
            )
    return [
        {field: _plain(index, field, value) for field, value in cell.items()}
        for index, cell in enumerate(cells)
    ]


def apply(base: ConfigDict, cell: Cell) -> ConfigDict:
    """A copy of a config with the fields of a cell set, and checked.

    Raises:
      ValueError: if a field is unknown, or its value has the wrong type or is out of
        its range.

    >>> apply(config_lib.default(), {"subspace.rank": 3}).subspace.rank
    3
    """
    config = ConfigDict(override(base.to_dict(), cell))
    config_lib.validate(config)
    return config.lock()


def override(base: dict, cell: Cell) -> dict:
    """A copy of a plain config with the fields of a cell set.

    Raises:
      ValueError: if a field is unknown.
    """
    plain = copy.deepcopy(base)
    for field, value in cell.items():
        if field == LABEL:
            continue
        *groups, name = field.split(".")
        holder = plain
        for group in groups:
            holder = holder.get(group) if isinstance(holder, dict) else None
        if not isinstance(holder, dict) or name not in holder:
            known = holder if isinstance(holder, dict) else ()
            near = difflib.get_close_matches(name, known)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"config.{field} is not a field of the config{hint}")
        if isinstance(holder[name], dict):
            raise ValueError(f"config.{field} is a group; a cell sets single fields.")
        holder[name] = value
    return plain


def _plain(index, field, value):
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(_plain(index, field, item) for item in value)
    if not isinstance(value, str | bool | int | float | None):
        raise ValueError(
            f"cell {index}: config.{field} is {value!r}; it must be a number, a "
            "string, a boolean or a tuple of them."
        )
    return value


def _merge(cells):
    merged = {}
    for cell in cells:
        twice = merged.keys() & cell.keys()
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))} is set twice in one cell.")
        merged |= cell
    return merged
