"""Where an interrupted run goes on: states on disk, written by orbax.

A checkpoint is complete or does not count. The run that reads it restores it into its
own layout, whatever number of devices and processes wrote it. Process 0 alone reads and
writes, so processes need not share the workdir; meanwhile it holds the whole state.
"""

import collections
import pathlib
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp

from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.files import identities, record
from bulk_sgd.lab.training.state import TrainState
from bulk_sgd.linalg import basis

FOLDER = record.CHECKPOINTS
# A `TrainState` under its names on disk, where `projection` is `subspace`.
_Saved = collections.namedtuple("_Saved", "step params inner subspace loss memory")


class Checkpoints:
    """The checkpoints of one run, in `checkpoints/` of its workdir.

    It keeps the `keep` newest, or all for 0. The record of a checkpoint must be of the
    `identity`; None takes any. `read_only` leaves even damaged and half-written ones:
    another process may be writing them.
    """

    def __init__(
        self,
        workdir,
        keep: int = 2,
        identity: identities.Identity | None = None,
        read_only=False,
    ):
        self._folder = pathlib.Path(workdir).resolve() / FOLDER
        self._keep = keep
        self._identity = identity
        self._read_only = read_only
        self._managers = {}

    def save(self, position: int, state: TrainState, story: dict):
        """Writes a state and its story, at a position or after those that are there.

        Raises OSError where it cannot be written; earlier checkpoints stay.
        """
        self._save("states", position, state, story)

    def save_fork(self, state: TrainState):
        """Writes the state from which all arms start."""
        self._save("fork", 0, state, {})

    def save_end(self, name: str, step: int, state: TrainState, story: dict):
        """Writes the state of an arm before its last dispatch, in place of another."""
        self._save(f"ends/{name}", step, state, story)

    def stories(self) -> dict[int, dict]:
        """The story of each checkpoint by its position, ascending."""
        if not (self._folder / "states").is_dir():
            return {}
        manager = self._manager("states")
        return {
            position: self._story(manager, position)
            for position in sorted(manager.all_steps())
        }

    def load(
        self, blank: TrainState, position: int | None = None, name: str | None = None
    ) -> tuple[TrainState, dict] | None:
        """A state and its story, None if none can be read.

        It is the one at `position`, by default the newest, of the stretch `name`, by
        default of any. `blank` gives shapes and layout. Raises ValueError, and leaves
        the checkpoint, if it is of another config or number of parameters, of other
        data or of another program.
        """
        return self._load("states", blank, position, name)

    def load_newest(
        self, blank: TrainState, name: str
    ) -> tuple[TrainState, dict] | None:
        """The furthest state of an arm or the prefix, also before its last dispatch."""
        found = [
            self._load(kind, blank, name=name) for kind in ("states", f"ends/{name}")
        ]
        return max(filter(None, found), key=lambda x: int(x[0].step), default=None)

    def load_fork(self, blank: TrainState) -> TrainState | None:
        """The state at the fork, or None."""
        found = self._load("fork", blank)
        return found and found[0]

    def close(self):
        """Waits for what is under way."""
        for manager in self._managers.values():
            manager.close()
        self._managers = {}

    def _manager(self, kind):
        if kind not in self._managers:
            keep = (self._keep or None) if kind == "states" else 1
            if not self._read_only:
                (self._folder / kind).mkdir(parents=True, exist_ok=True)
            self._managers[kind] = ocp.CheckpointManager(
                self._folder / kind,
                options=ocp.CheckpointManagerOptions(
                    create=False,  # orbax does not do it for one of several processes
                    max_to_keep=None if self._read_only else keep,
                    # so that a failed write is noticed at once
                    enable_async_checkpointing=False,
                    cleanup_tmp_directories=not self._read_only,
                    multiprocessing_options=_alone(),
                ),
            )
        return self._managers[kind]

    def _save(self, kind, position, state, story):
        leaves = jax.tree.map(distributed.whole, state)
        distributed.on_first(lambda: self._write(kind, position, leaves, story))

    def _write(self, kind, position, leaves, story):
        manager = self._manager(kind)
        if kind == "states":  # a run that grew has fewer rows than it once had
            position = max(position, 1 + (manager.latest_step() or 0))
        elif position in manager.all_steps():
            return
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(_Saved(*leaves)), story=ocp.args.JsonSave(story)
        )
        try:
            manager.save(position, args=arguments, force=True)
        except (OSError, ValueError) as error:
            last = manager.latest_step()
            stays = "there is none before" if last is None else "the last one stays"
            reason = str(error).strip().splitlines()[-1]
            raise OSError(
                f"a checkpoint could not be written to {str(self._folder)!r} "
                f"({reason}); {stays}. The same command goes on from it."
            ) from error

    def _load(self, kind, blank, position=None, name=None):
        like, treedef = jax.tree.flatten(blank)
        found = []

        def read():
            shapes = [np.zeros(x.shape, x.dtype) for x in like]
            found.append(self._read(kind, treedef.unflatten(shapes), position, name))
            return found[0] and found[0][1]

        story = distributed.on_first(read)
        if story is None:
            return None
        leaves = lambda: jax.tree.leaves(found[0][0])
        return treedef.unflatten(distributed.arrays_from_first(leaves, like)), story

    def _read(self, kind, like, only, name):
        """The newest state that can be read, on the host, and its story, or None."""
        if not (self._folder / kind).is_dir():
            return None
        manager = self._manager(kind)
        known = sorted(manager.all_steps(), reverse=True) if only is None else [only]
        for position in known:
            try:
                story = self._story(manager, position)
                if name in (None, story.get("name")):
                    return self._restore(manager, position, like, story), story
            except _OtherRun:
                raise
            except Exception as error:  # whatever the damage makes orbax raise
                reason = str(error).strip().splitlines() or [type(error).__name__]
                path = self._folder / kind / str(position)
                then = "" if self._read_only else "; going on from the one before"
                print(
                    f"Checkpoint {path} cannot be read ({reason[0]}){then}.",
                    file=sys.stderr,
                )
                if not self._read_only:
                    manager.delete(position)
        return None

    def _story(self, manager, position) -> dict:
        story = ocp.args.Composite(story=ocp.args.JsonRestore())
        return manager.restore(position, args=story).story

    def _restore(self, manager, position, like, story):
        if "record" in story and self._identity is not None:
            self._check(story["record"], basis.size(like.params))
        saved = ocp.args.Composite(state=ocp.args.StandardRestore(_Saved(*like)))
        return TrainState(*manager.restore(position, args=saved).state)

    def _check(self, earlier, num_params):
        """Raises `_OtherRun` unless a checkpoint belongs to this run."""
        what, _ = identities.other(earlier, self._identity)
        if not what and earlier["num_params"] != num_params:
            what = f"{earlier['num_params']} parameters, not {num_params}"
        if not what:
            return
        raise _OtherRun(
            f"{str(self._folder)!r} holds checkpoints of {what}; choose another "
            "workdir."
        )


class _OtherRun(ValueError):
    """A checkpoint that is sound, but of another run."""


def _alone():
    """Options that make orbax write from process 0 alone."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="bulk_sgd"
    )
