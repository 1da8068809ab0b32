"""Analyzes a run: `python -m bulk_sgd.analyze --workdir=RUN`."""

from bulk_sgd.lab.commands.analyze import run

if __name__ == "__main__":
    run()
