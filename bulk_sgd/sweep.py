"""Runs a sweep: `python -m bulk_sgd.sweep --config=FILE --workdir=FOLDER`."""

from bulk_sgd.lab.commands.sweep import run

if __name__ == "__main__":
    run()
