"""Where an interrupted run goes on: states on disk, written by orbax.

A checkpoint is complete or does not count. It is restored into the layout of the run
that reads it, whatever the number of devices and processes that wrote it.
"""

import pathlib
import sys

import jax
import orbax.checkpoint as ocp

from bulk_sgd.steps import TrainState

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one run, in `checkpoints/` of its workdir.

    Args:
      workdir: folder of the run.
      keep: how many are kept, the newest ones; 0 keeps all.
    """

    def __init__(self, workdir, keep: int = 2):
        self._folder = pathlib.Path(workdir).resolve() / FOLDER
        self._keep = keep
        self._managers = {}

    @staticmethod
    def exist(workdir) -> bool:
        """Whether a run left any."""
        return any((pathlib.Path(workdir) / FOLDER).glob("states/[0-9]*"))

    def save(self, position: int, state: TrainState, story: dict):
        """Writes the state of the stretch under way.

        Args:
          position: grows along the run.
          state: the state.
          story: what else it takes to go on, as JSON holds it.

        Raises:
          OSError: if it cannot be written; earlier checkpoints stay.
        """
        self._save("states", position, state, story)

    def save_fork(self, state: TrainState):
        """Writes the state from which all arms start."""
        self._save("fork", 0, state, {})

    def load(self, blank: TrainState) -> tuple[TrainState, dict] | None:
        """The newest state that can be read, and its story; None if there is none.

        Args:
          blank: the initial state, for shapes and layout.
        """
        return self._load("states", blank)

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
            self._managers[kind] = ocp.CheckpointManager(
                self._folder / kind,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=self._keep or None,
                    # A write that failed late would be noticed late.
                    enable_async_checkpointing=False,
                    cleanup_tmp_directories=True,
                ),
            )
        return self._managers[kind]

    def _save(self, kind, position, state, story):
        manager = self._manager(kind)
        if position in manager.all_steps():
            return
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state), story=ocp.args.JsonSave(story)
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

    def _load(self, kind, blank):
        if not (self._folder / kind).is_dir():
            return None
        manager = self._manager(kind)
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, blank)
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(like), story=ocp.args.JsonRestore()
        )
        for position in sorted(manager.all_steps(), reverse=True):
            try:
                found = manager.restore(position, args=arguments)
            except Exception as error:  # whatever the damage makes orbax raise
                reason = str(error).strip().splitlines() or [type(error).__name__]
                path = self._folder / kind / str(position)
                print(
                    f"Checkpoint {path} cannot be read ({reason[0]}); "
                    "going on from the one before.",
                    file=sys.stderr,
                )
                manager.delete(position)
                continue
            return found.state, found.story
        return None
