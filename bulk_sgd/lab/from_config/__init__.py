"""What the fields of a config name: solvers, optimizers, losses and arms."""
