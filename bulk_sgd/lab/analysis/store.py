"""The files of an analysis: one per point as it is finished, and one of all."""

import dataclasses
import json
import pathlib

from bulk_sgd.lab.analysis.point import Point, Settings
from bulk_sgd.lab.files import atomic, identities

FILE = "analysis.json"
_SETTINGS = "settings.json"
_POINTS = "points"


@dataclasses.dataclass
class Store:
    """The folder of an analysis, made if missing.

    A ValueError refuses a folder with points of other settings or of a run of another
    config, and a function as `settings.by`.
    """

    folder: pathlib.Path
    settings: Settings
    config: dict | None = None

    def __post_init__(self):
        if callable(self.settings.by):
            raise ValueError(
                "settings.by is a function; with a folder it must be None or a regular "
                "expression, which a later call can compare."
            )
        self.folder = pathlib.Path(self.folder)
        (self.folder / _POINTS).mkdir(parents=True, exist_ok=True)
        path, wanted = self.folder / _SETTINGS, self.settings.plain()
        if self.config:
            wanted["config"] = self.config
        if not path.exists():
            _write(path, wanted)
            return
        changed = identities.differences(
            json.loads(path.read_text()), wanted, "settings"
        )
        if changed:
            raise ValueError(
                f"folder {str(self.folder)!r} holds an analysis with other settings, "
                f"which differ in {', '.join(changed)}; choose another folder."
            )

    def load(self, point: Point, before: Point | None) -> dict | None:
        """The measurements at a point and since `before`; None if params differ."""
        path = self._path(point.name)
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        return found["result"] if found["of"] == _names(point, before) else None

    def save(self, result: dict, point: Point, before: Point | None):
        """Keeps the measurements at a point."""
        _write(self._path(point.name), {"of": _names(point, before), "result": result})

    def finish(self, results: list[dict], about: dict):
        """Writes all points into one file."""
        found = about | {"settings": self.settings.plain(), "points": results}
        _write(self.folder / FILE, found)

    def _path(self, name):
        if "/" in name:
            raise ValueError(f"the name of a point is {name!r}; it must have no slash.")
        return self.folder / _POINTS / f"{name}.json"


def read(folder) -> dict:
    """The file of all points of an analysis; a FileNotFoundError if there is none."""
    path = pathlib.Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"No {FILE} in {folder}: expected the folder of an analysis."
        )
    return json.loads(path.read_text())


def _names(*points):
    """Identifies points by name and parameters, as JSON holds it."""
    return [point and [point.name, point.digest] for point in points]


def _write(path, value):
    atomic.write_text(path, json.dumps(value, ensure_ascii=False, allow_nan=False))
