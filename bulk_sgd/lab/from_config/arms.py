"""Where `config.arms` becomes points of the (a, b) plane, the methods to compare."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from bulk_sgd.lab.files import record
from bulk_sgd.transforms.accelerated import SCALES
from bulk_sgd.transforms.aliases import PATHS, path_scales

_FIXED = {
    "sgd": ("SGD", 1.0, 1.0),
    "dom_sgd": ("Dom-SGD", 1.0, 0.0),
    "bulk_sgd": ("Bulk-SGD", 0.0, 1.0),
    "accelerated": ("accelerated", *SCALES, True),
}
_ALLOWED = (
    "sgd, dom_sgd, bulk_sgd, bulk_path(α), dom_path(α), cross_path(α), scales(a, b), "
    "accelerated or accelerated(a, b)"
)


class Arm(NamedTuple):
    """A method u ← a·P u + b·(u − P u); `name` is the config's.

    The scales are constant. If `guarded`, they act only in the steps that
    `bulk_sgd.accelerated` would scale, with the threshold of `guard_threshold`.
    """

    name: str
    label: str
    dominant_scale: float
    bulk_scale: float
    guarded: bool = False

    @property
    def formula(self) -> str:
        """The scales as text, "(a, b) = (…, …)"."""
        return f"(a, b) = ({self.dominant_scale:g}, {self.bulk_scale:g})"


def parse(text: str) -> Arm:
    """The arm that a config names, as listed at `config.arms`; else raises ValueError.

    >>> parse("cross_path(0.25)").formula
    '(a, b) = (0.25, 0.75)'
    """
    name = re.sub(r"\s", "", str(text))
    if name in _FIXED:
        return Arm(name, *_FIXED[name])
    match = re.fullmatch(r"(\w+)\(([^()]*)\)", name)
    try:
        kind, numbers = match[1], [float(x) for x in match[2].split(",")]
        if kind in ("scales", "accelerated"):
            dominant, bulk = numbers
            label = f"{kind} ({dominant:g}, {bulk:g})"
            return Arm(name, label, dominant, bulk, kind == "accelerated")
        path = kind.removesuffix("_path")
        if path in PATHS and kind != path:
            (alpha,) = numbers
            return Arm(name, f"{path} path α={alpha:g}", *path_scales(path, alpha))
    except (TypeError, ValueError):
        pass
    raise ValueError(f"config.arms has {text!r}; an arm must be {_ALLOWED}.")


def parse_all(texts: Iterable[str]) -> list[Arm]:
    """The arms of a config, in order.

    Raises ValueError if there is none, or one is unknown or named twice.
    """
    if not texts:
        raise ValueError(
            f"config.arms is empty; it must name at least one of {_ALLOWED}."
        )
    found = [parse(text) for text in texts]
    names = [arm.name for arm in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"config.arms names {name!r} twice; each arm runs once.")
    return found


def keeps_subspace(config, name: str) -> bool:
    """Whether an arm, or the prefix, keeps a subspace, be it only to measure it."""
    if name == record.PREFIX:
        return config.switch.alignment > 0
    return config.measures.sgd_subspace or name != "sgd"


def pending(texts: Iterable[str]) -> dict[str, dict]:
    """What a record says of the arms of a config before they begin, by name."""
    return {
        arm.name: {
            "label": arm.label,
            "formula": arm.formula,
            "dominant_scale": arm.dominant_scale,
            "bulk_scale": arm.bulk_scale,
            "guarded": arm.guarded,
            "status": record.PENDING,
        }
        for arm in parse_all(texts)
    }
