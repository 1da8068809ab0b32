"""Trains: `python -m bulk_sgd.main --config=FILE --workdir=FOLDER`.

You can set any field that the run uses on the command line: `--config.subspace.rank=5`.
"""

from absl import flags
from ml_collections import config_flags

from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab.commands import cli
from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.from_config import unused
from bulk_sgd.lab.training import train

flags.disclaim_key_flags()


def run():
    """Entry point of the command line."""
    about = "File with get_config(); FILE:VARIANT passes it a string."
    config_flags.DEFINE_config_file("config", None, about)
    flags.DEFINE_string("workdir", None, "Folder for metrics and record.")
    cli.define_distributed()
    cli.run(main, "config", "workdir")


def main(argv):
    """Runs the experiment; wrong input ends it with one sentence and status 2."""
    del argv
    cli.prepare()
    values = flags.FLAGS
    with (
        cli.refusing(),
        distributed.job(values.distributed),
        cli.refusing(),
        cli.reporting(values.workdir),
    ):
        overrides = config_flags.get_override_values(values["config"])
        default = config_lib.default()
        idle = unused.find(values.config, default) if overrides else {}
        for field in idle.keys() & overrides.keys():
            raise ValueError(idle[field])
        record = train.train_and_evaluate(values.config, values.workdir)
        if distributed.is_first():
            print(f"{record['status']}: {values.workdir}")
