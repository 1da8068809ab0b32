"""The compiled part of training: many steps per dispatch, and an evaluation.

One program runs every arm, because the scales (a, b) are arguments of it. The loop
over steps ends by itself when the loss is not finite or the switch rule fires, so that
no step ever waits for the host.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bulk_sgd import optimizers, solvers
from bulk_sgd.losses import accuracy
from bulk_sgd.objective import Objective
from bulk_sgd.sharding import Layout
from bulk_sgd.transforms import ScaleBySubspaceState, Switch, scale_by_subspace


class TrainState(NamedTuple):
    """What one run carries from step to step.

    Attributes:
      step: int32, steps taken since the start of the prefix.
      params: pytree of the parameters.
      inner: state of the inner optimizer.
      subspace: `ScaleBySubspaceState`.
      loss: scalar, the batch loss of the last step.
    """

    step: jax.Array
    params: Any
    inner: Any
    subspace: ScaleBySubspaceState
    loss: jax.Array


class Trace(NamedTuple):
    """What happened in one dispatch.

    Attributes:
      num_steps: int32, steps taken.
      batch_losses: `(n,)`, zero beyond `num_steps`.
      alignments: `(n,)`, χ_k of the incoming updates, likewise.
    """

    num_steps: jax.Array
    batch_losses: jax.Array
    alignments: jax.Array


class Evaluation(NamedTuple):
    """Measurements at one point; all but the last are scalars.

    Attributes:
      train_loss: mean loss over the training set.
      test_loss: mean loss over the test set.
      test_accuracy: between 0 and 1.
      alignment_gradient: χ_k of the gradient on the full training set.
    """

    train_loss: jax.Array
    test_loss: jax.Array
    test_accuracy: jax.Array
    alignment_gradient: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Task:
    """The data that the programs read, as arguments rather than constants.

    Attributes:
      train: objective of the full training set.
      test: objective of the test set.
      curvature: objective whose curvature counts; None for that of the batch.
    """

    train: Objective
    test: Objective
    curvature: Objective | None


class Programs:
    """The compiled programs of one experiment.

    Args:
      config: a validated config; it alone determines the programs.
      layout: where the arrays live.
    """

    def __init__(self, config, layout: Layout):
        self._config = config
        self._layout = layout
        self._inner = optimizers.build(config.optimizer)
        self.init = jax.jit(self._init)
        self.train = jax.jit(
            self._train, static_argnames="projected", donate_argnames="state"
        )
        self.evaluate = jax.jit(self._evaluate)

    def _projection(self, scales, refresh_every):
        space = self._config.subspace
        return scale_by_subspace(
            space.rank,
            *scales,
            refresh_every=refresh_every,
            solver=solvers.build(space),
            curvature=space.curvature,
            switch=Switch(decay=self._config.switch.decay),
            sharding=self._layout.parameters,
            seed=self._config.seed,
        )

    def _init(self, params):
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            inner=self._inner.init(params),
            subspace=self._projection((1.0, 1.0), 1).init(params),
            loss=jnp.zeros((), jnp.float32),
        )
        return self._layout.constrain(state)

    def _train(
        self,
        state: TrainState,
        task: Task,
        indices,
        num_steps,
        scales=(1.0, 1.0),
        refresh_every=1,
        threshold=jnp.inf,
        *,
        projected: bool,
    ):
        """Takes up to `num_steps` steps.

        Args:
          state: where to start; its buffers are given up.
          task: the data.
          indices: int32 `(n, batch_size)`, the examples of each step, n ≥ num_steps.
          num_steps: number of steps, traced.
          scales: (a, b), traced.
          refresh_every: steps between refreshes, traced.
          threshold: stop after the step whose average alignment exceeds it, traced.
          projected: False leaves the subspace out altogether.

        Returns:
          The new `TrainState` and a `Trace`.
        """
        projection = self._projection(scales, refresh_every)

        def running(carry):
            state, trace = carry
            switched = state.subspace.alignment_average > threshold
            ok = jnp.isfinite(state.loss) & ~switched
            return ok & (trace.num_steps < num_steps)

        def step(carry):
            state, trace = carry
            batch = task.train.take(indices[trace.num_steps])
            batch = self._layout.constrain_examples(batch)
            loss, grads = jax.value_and_grad(batch)(state.params)
            value_fn = batch if task.curvature is None else task.curvature
            inner, subspace, updates = state.inner, state.subspace, grads

            def optimize(updates, inner):
                return self._inner.update(updates, inner, state.params)

            if self._config.optimizer.projection == "update":
                updates, inner = optimize(updates, inner)
            if projected:
                updates, subspace = projection.update(
                    updates, subspace, state.params, value_fn=value_fn
                )
            if self._config.optimizer.projection == "gradient":
                updates, inner = optimize(updates, inner)
            new_state = TrainState(
                step=state.step + 1,
                params=optax.apply_updates(state.params, updates),
                inner=inner,
                subspace=subspace,
                loss=loss.astype(jnp.float32),
            )
            new_trace = Trace(
                num_steps=trace.num_steps + 1,
                batch_losses=trace.batch_losses.at[trace.num_steps].set(loss),
                alignments=trace.alignments.at[trace.num_steps].set(subspace.alignment),
            )
            return self._layout.constrain(new_state), new_trace

        blank = jnp.zeros(indices.shape[0])
        trace = Trace(jnp.zeros((), jnp.int32), blank, blank)
        return jax.lax.while_loop(running, step, (state, trace))

    def _evaluate(self, state: TrainState, task: Task) -> Evaluation:
        train_loss, gradient = jax.value_and_grad(task.train)(state.params)
        score = functools.partial(_loss_and_accuracy, params=state.params)
        test_loss, test_accuracy = task.test.mean_over_microbatches(score)
        return Evaluation(
            train_loss=train_loss,
            test_loss=test_loss,
            test_accuracy=test_accuracy,
            alignment_gradient=state.subspace.subspace.alignment(gradient),
        )


def _loss_and_accuracy(part: Objective, params):
    outputs = part.outputs(params)
    return part.loss(outputs), accuracy(outputs, part.targets)
