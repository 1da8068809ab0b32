"""Analyzes a run: `python -m bulk_sgd.analyze --workdir=RUN`."""

from bulk_sgd.lab.commands.start import command

if __name__ == "__main__":
    command("analyze")()
