"""The identity of a run: its config, data and program. How two identities differ."""

import json
from typing import NamedTuple

from bulk_sgd.lab.files import loggers

# Fields that change no result, so that a run may go on with other values.
IMMATERIAL = ("check_memory", "checkpoint", "name", "progress", *loggers.LOGGERS)
_OTHER = {
    "data": "other data than config.data names now",
    "program": "another program, whose network, loss or optimizer had other code",
}


class Identity(NamedTuple):
    """The config, the data and the program of a run, without its devices."""

    config: dict  # plain
    # Hashes of the "data" and the "program", the "tracer" of the program, and hashes of
    # the "code" of the user's modules, by module and function.
    fingerprints: dict


def plain(config) -> dict:
    """A ConfigDict as JSON holds it: nested dicts, lists for tuples."""
    return json.loads(json.dumps(config.to_dict()))


def differences(left, right, path="config") -> list[str]:
    """Dotted names of the fields in which two plain configs differ."""
    if not (isinstance(left, dict) and isinstance(right, dict)):
        return [] if left == right else [path]
    found = []
    for name in sorted(left.keys() | right.keys()):
        if name in left and name in right:
            found += differences(left[name], right[name], f"{path}.{name}")
        else:
            found.append(f"{path}.{name}")
    return found


def changes(earlier, config) -> list[str]:
    """`differences` of plain configs in the fields that change results."""
    return [
        name
        for name in differences(earlier, config)
        if name.split(".")[1] not in IMMATERIAL
    ]


def conflicts(earlier, config) -> list[str]:
    """`changes` to a config that a run, or a sweep, of `earlier` cannot grow into."""
    grows = {
        "config.num_steps": lambda a, b: a <= b,
        "config.arms": lambda a, b: {*map(compact, a)} <= {*map(compact, b)},
    }
    return [
        name
        for name in changes(earlier, config)
        if name not in grows
        or not grows[name](*(x[name.split(".")[1]] for x in (earlier, config)))
    ]


def compact(arm: str) -> str:
    """The name of an arm, without white space."""
    return "".join(arm.split())


def other(earlier: dict, identity: Identity) -> tuple[str, str]:
    """`other_fingerprints` of a record, or how its config differs if it conflicts."""
    changed = conflicts(earlier["config"], identity.config)
    if changed:
        return f"another config, which differs in {', '.join(changed)}", ""
    return other_fingerprints(earlier.get("fingerprints"), identity.fingerprints)


def other_fingerprints(earlier: dict | None, now: dict) -> tuple[str, str]:
    """How two fingerprints differ, and what is unknown about `earlier`.

    Each is a phrase, empty if there is nothing to say. Early versions of the library
    recorded no fingerprints; then `earlier` is None.
    """
    if earlier is None:
        return "", "recorded without fingerprints of its data and program"
    found = [name for name in _OTHER if earlier[name] != now[name]]
    if found == ["program"] and earlier["tracer"] != now["tracer"]:
        tracers = f"{earlier['tracer']}, not {now['tracer']}"
        return "", f"recorded with {tracers}, so that its program cannot be compared"
    if not found:
        return "", ""
    code = _other_code(earlier.get("code", {}), now.get("code", {}))
    if found[0] == "program" and code:
        return f"another program: {code}", ""
    return _OTHER[found[0]], ""


def _other_code(earlier: dict, now: dict) -> str:
    """How functions differ in the modules that both have."""
    told = []
    for module in sorted(earlier.keys() & now.keys()):
        before, after = earlier[module], now[module]
        both = before.keys() & after.keys()
        changed = {name for name in both if before[name] != after[name]}
        for names, how in (
            (changed, "had other code"),
            (after.keys() - both, "new"),
            (before.keys() - both, "gone"),
        ):
            if names and names is not changed:
                how = f"{'is' if len(names) == 1 else 'are'} {how}"
            listed = ", ".join(name or "the top level" for name in sorted(names))
            told += [f"{listed} of module {module} {how}"] * bool(names)
    return ", ".join(told)
