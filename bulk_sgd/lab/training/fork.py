"""The prefixes of runs, and their forks into arms."""

from bulk_sgd.lab.files import record
from bulk_sgd.lab.files.record import PREFIX
from bulk_sgd.lab.from_config.arms import keeps_subspace
from bulk_sgd.lab.training.experiment import prefix_of
from bulk_sgd.lab.training.loop import Stretch, Trainer
from bulk_sgd.lab.training.prefixes import PrefixStore
from bulk_sgd.lab.training.run import Run
from bulk_sgd.lab.training.state import TrainState


def train_prefixes(
    trainer: Trainer, runs: list[Run], store: PrefixStore | None
) -> list[tuple[Run, TrainState]]:
    """Trains each prefix once, unless it is stored or lies behind its runs.

    Returns the runs whose prefix did not diverge, each with the state at its fork.
    """
    forks, sharing = [], {}
    for run in runs:
        if run.resumed and run.resumed.fork:
            forks.append((run, run.resumed.fork))
        else:
            sharing.setdefault(prefix_of(run.experiment.config), []).append(run)
    trained, stretches = {}, {}
    for prefix, its_runs in sharing.items():
        first = min(its_runs, key=lambda run: run.resumed is None)  # one under way
        found = None
        if store and not first.resumed:
            found = store.load(first.experiment, first.experiment.start())
        if found:
            trained[prefix] = found
        else:
            stretches[prefix] = _prefix(first)
    trainer.train(list(stretches.values()))
    for prefix, stretch in stretches.items():
        rows, entry = stretch.run.rows[PREFIX], dict(stretch.run.record["prefix"])
        trained[prefix] = stretch.state, rows, entry
        if store:
            store.save(stretch.experiment, stretch.state, rows, entry)
    for prefix, its_runs in sharing.items():
        state, rows, entry = trained[prefix]
        for run in its_runs:
            run.adopt_prefix(rows, entry)
            if entry["status"] == record.DIVERGED:
                run.end(record.DIVERGED)
            else:
                run.fork(state, _describe_switch(run.experiment.config, state))
                forks.append((run, state))
    return forks


def arms(run: Run, fork: TrainState) -> list[Stretch]:
    """What is left to train of the arms of a run."""
    stretches, experiment = [], run.experiment
    for arm in experiment.arms:
        if run.record["arms"][arm.name]["status"] in record.ENDED:
            continue
        under_way = run.resumed.states.get(arm.name) if run.resumed else None
        stretches.append(
            Stretch(
                experiment,
                fork if under_way is None else under_way,
                experiment.config.num_steps,
                experiment.scalars(arm),
                projected=keeps_subspace(experiment.config, arm.name),
                run=run,
                name=arm.name,
                entry=None if under_way is None else run.entry(arm.name),
            )
        )
    return stretches


def _prefix(run) -> Stretch:
    experiment, resumed = run.experiment, run.resumed
    return Stretch(
        experiment,
        resumed.states[PREFIX] if resumed else experiment.start(),
        experiment.config.switch.step,
        experiment.scalars(),
        projected=keeps_subspace(experiment.config, PREFIX),
        run=run,
        name=PREFIX,
        entry=run.entry(PREFIX) if resumed else None,
    )


def _describe_switch(config, state: TrainState) -> dict:
    average, threshold = state.projection.alignment_average, config.switch.alignment
    reason = f"step {int(state.step)}"
    if threshold > 0 and float(average) > threshold:
        of = {"update": "update", "full": "full gradient"}[config.switch.gradient]
        reason = f"average alignment of the {of} {float(average):.3f} > {threshold:g}"
    return {"step": int(state.step), "reason": reason}
