"""The compiled part of training: many steps per dispatch, and an evaluation.

One program runs every arm and every cell of a sweep that differs in nothing but
`Scalars`, which are arguments of it. The loop over steps ends by itself when the loss
is not finite or the switch rule fires, so that no step ever waits for the host.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bulk_sgd.curvature import preconditioning
from bulk_sgd.curvature.hessian import CURVATURES, hessian
from bulk_sgd.curvature.objective import Objective
from bulk_sgd.curvature.operators import sharded
from bulk_sgd.lab.data.reader import Batches
from bulk_sgd.lab.devices.sharding import Layout
from bulk_sgd.lab.from_config import optimizers, solvers
from bulk_sgd.lab.from_config.losses import accuracy
from bulk_sgd.lab.training import measures
from bulk_sgd.linalg import basis
from bulk_sgd.solvers.lanczos import top_eigenpairs
from bulk_sgd.spectra.subsampling import subsampling_error
from bulk_sgd.transforms.scale_by_subspace import (
    ScaleBySubspaceState,
    Switch,
    scale_by_subspace,
)


class Scalars(NamedTuple):
    """The numbers in which runs of one program may differ.

    Attributes:
      learning_rate: η, or what the schedule of it multiplies.
      dominant_scale: a.
      bulk_scale: b.
      refresh_every: steps between refreshes.
      threshold: training stops after the step whose average alignment exceeds it.
      seed: seed of the solver's random directions.
    """

    learning_rate: Any
    dominant_scale: Any = 1.0
    bulk_scale: Any = 1.0
    refresh_every: Any = 1
    threshold: Any = jnp.inf
    seed: Any = 0


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
      descent_ratios: `(n,)`, ⟨g, v⟩ / ⟨g, u⟩ with g the batch gradient, u the incoming
        and v the scaled update: the part that the scales leave of the decrease of the
        batch loss to first order.
    """

    num_steps: jax.Array
    batch_losses: jax.Array
    alignments: jax.Array
    descent_ratios: jax.Array


class Evaluation(NamedTuple):
    """Measurements at one point, all scalars.

    Attributes:
      train_loss: mean loss over the training set.
      test_loss: mean loss over the test set.
      test_accuracy: between 0 and 1.
      alignment_gradient: χ_k of the gradient on the full training set, in the
        coordinates of the subspace.
      kept: int32, rows of the subspace that are not zero.
    """

    train_loss: jax.Array
    test_loss: jax.Array
    test_accuracy: jax.Array
    alignment_gradient: jax.Array
    kept: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Task:
    """The data that the programs read, as arguments rather than constants.

    Attributes:
      train: objective of the full training set, or of the part on the devices.
      test: objective of the test set.
      curvature: objective whose curvature counts; None for that of the batch.
      num_train: examples of the training set; by default `train` is all of it.
    """

    train: Objective
    test: Objective
    curvature: Objective | None
    num_train: int | None = dataclasses.field(default=None, metadata={"static": True})

    def with_curvature(self, curvature: Objective) -> "Task":
        """The same data with the curvature of another objective."""
        return dataclasses.replace(self, curvature=curvature)

    def batch(self, feed, index) -> Objective:
        """The objective of one mini-batch, unsplit.

        Args:
          feed: as in `Programs.train`.
          index: int scalar, which of its steps.
        """
        if not isinstance(feed, Batches):
            return self.train.take(feed[index])
        inputs, targets = (x[index] for x in feed)
        return dataclasses.replace(
            self.train,
            inputs=inputs,
            targets=targets,
            microbatch_size=None,
            num_groups=1,
        )


class Programs:
    """The compiled programs of one experiment.

    Args:
      config: a validated config; it alone determines the programs.
      layout: where arrays live, by default what the config asks for on this machine.
    """

    def __init__(self, config, layout: Layout | None = None):
        self._config = config
        self._layout = layout or Layout.of(config)
        self.init = jax.jit(self._init)
        self.train = jax.jit(
            self._train, static_argnames="projected", donate_argnames="state"
        )
        self.train_lanes = jax.jit(
            self._train_lanes,
            static_argnames="projected",
            donate_argnames="states",
        )
        self.evaluate = jax.jit(self._evaluate)
        self.sharpness = jax.jit(self._sharpness)
        self.measure = jax.jit(self._measure)

    def _inner(self, learning_rate, seed=0):
        return optimizers.build(self._config.optimizer, learning_rate, seed)

    def _preconditioner(self, inner):
        """The diagonal of P in the last update of the optimizer, None without one."""
        if not self._config.subspace.preconditioned:
            return None
        fields = self._config.optimizer
        constants = fields.b1, fields.b2, fields.eps
        return preconditioning.adam_preconditioner(inner, *constants)

    def _projection(self, scalars: Scalars):
        space = self._config.subspace
        return scale_by_subspace(
            space.rank,
            scalars.dominant_scale,
            scalars.bulk_scale,
            refresh_every=scalars.refresh_every,
            solver=solvers.build(space, scalars.learning_rate),
            curvature=functools.partial(CURVATURES[space.curvature], mode=space.mode),
            switch=Switch(decay=self._config.switch.decay),
            sharding=self._layout.parameters,
            seed=scalars.seed,
        )

    def _init(self, params, seed=0):
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            inner=self._inner(0.0, seed).init(params),
            subspace=self._projection(Scalars(0.0)).init(params),
            loss=jnp.zeros((), jnp.float32),
        )
        return self._layout.constrain(state)

    def _train(
        self,
        state: TrainState,
        task: Task,
        feed,
        num_steps,
        scalars: Scalars | None = None,
        *,
        projected: bool,
    ):
        """Takes up to `num_steps` steps.

        Args:
          state: where to start; its buffers are given up.
          task: the data.
          feed: the examples of n ≥ num_steps steps: int32 `(n, batch_size)`, their
            places in `task.train`, or `Batches`, themselves.
          num_steps: number of steps, traced.
          scalars: `Scalars`, traced; None for SGD at the learning rate of the config.
          projected: False leaves the subspace out altogether.

        Returns:
          The new `TrainState` and a `Trace`.
        """
        scalars = scalars or Scalars(self._config.optimizer.learning_rate)
        fields = self._config.optimizer
        before = fields.projection == "gradient"

        def running(carry):
            state, trace = carry
            switched = state.subspace.alignment_average > scalars.threshold
            ok = jnp.isfinite(state.loss) & ~switched
            return ok & (trace.num_steps < num_steps)

        def step(carry):
            state, trace = carry
            rate = optimizers.rate_at(fields, scalars.learning_rate, state.step)
            projection = self._projection(scalars._replace(learning_rate=rate))
            batch = task.batch(feed, trace.num_steps)
            batch = self._layout.constrain_examples(batch)
            loss, grads = jax.value_and_grad(batch)(state.params)
            value_fn = batch if task.curvature is None else task.curvature
            inner, subspace, updates = state.inner, state.subspace, grads

            def optimize(updates, inner):
                more = optimizers.extra_args(fields, batch)
                return self._inner(rate).update(updates, inner, state.params, **more)

            if not before:
                updates, inner = optimize(updates, inner)
            ratio = jnp.ones(())
            if projected:
                scaled, subspace = projection.update(
                    updates,
                    subspace,
                    state.params,
                    value_fn=value_fn,
                    preconditioner=self._preconditioner(inner),
                )
                promised = basis.dot(grads, updates)
                ratio = basis.dot(grads, scaled) / jnp.where(promised, promised, 1)
                updates = scaled
            if before:
                updates, inner = optimize(updates, inner)
            new_state = TrainState(
                step=state.step + 1,
                params=optax.apply_updates(state.params, updates),
                inner=inner,
                subspace=subspace,
                loss=loss.astype(jnp.float32),
            )
            now = trace.num_steps
            new_trace = Trace(
                num_steps=now + 1,
                batch_losses=trace.batch_losses.at[now].set(loss),
                alignments=trace.alignments.at[now].set(subspace.alignment),
                descent_ratios=trace.descent_ratios.at[now].set(ratio),
            )
            return self._layout.constrain(new_state), new_trace

        blank = jnp.zeros(len(jax.tree.leaves(feed)[0]))
        trace = Trace(jnp.zeros((), jnp.int32), blank, blank, blank)
        return jax.lax.while_loop(running, step, (state, trace))

    def _train_lanes(
        self,
        states: TrainState,
        task: Task,
        curvatures: Objective | None,
        feeds,
        num_steps,
        scalars: Scalars,
        *,
        projected: bool,
    ):
        """`train` for n runs of one program in lockstep, under `vmap`.

        Small networks leave most of an accelerator idle, where this pays.

        Args:
          states: with a leading axis of n lanes.
          task: the data that all lanes share.
          curvatures: objectives with such an axis where each lane has its own, or None.
          feeds: as in `train`, with such an axis.
          num_steps: int32 `(n,)`.
          scalars: arrays `(n,)`.
          projected: as in `train`.
        """

        def lane(state, curvature, *rest):
            own = task if curvature is None else task.with_curvature(curvature)
            return self._train(state, own, *rest, projected=projected)

        return jax.vmap(lane)(states, curvatures, feeds, num_steps, scalars)

    def _evaluate(self, state: TrainState, task: Task) -> Evaluation:
        train_loss, gradient = jax.value_and_grad(task.train)(state.params)
        scale = self._preconditioner(state.inner)
        if scale is not None:  # a gradient in the coordinates P^½ θ of the subspace
            scale = preconditioning.root(scale)
            gradient = jax.tree.map(jnp.divide, gradient, scale)
        score = functools.partial(_loss_and_accuracy, params=state.params)
        test_loss, test_accuracy = task.test.mean_over_microbatches(score)
        return Evaluation(
            train_loss=train_loss,
            test_loss=test_loss,
            test_accuracy=test_accuracy,
            alignment_gradient=state.subspace.subspace.alignment(gradient),
            kept=state.subspace.subspace.kept,
        )

    def _sharpness(self, state: TrainState, task: Task):
        """λ_1 of the Hessian of the training loss to a hundredth, or NaN.

        Of the preconditioned one where the subspace is; there is none before a step.
        """
        layout = self._layout.parameters(state.params)
        mode = self._config.subspace.mode
        matvec = hessian(task.train, state.params, mode=mode)
        scale, known = self._preconditioner(state.inner), True
        if scale is not None:
            matvec = preconditioning.preconditioned(matvec, scale)
            known = state.step > 0
        matvec = sharded(matvec, layout)
        # Warm, but from all of the subspace: eigenvalues change places.
        found = top_eigenpairs(matvec, state.subspace.subspace, 1, tol=1e-2)
        return jnp.where(found.converged & known, found.eigenvalues[0], jnp.nan)

    def _measure(self, state: TrainState, task: Task, feed, key):
        """`measures.measure` on the data of the curvature, and `_fidelity`."""
        objective = task.curvature or task.train
        found = measures.measure(
            state.params,
            state.subspace.subspace,
            objective,
            (lambda i: task.batch(feed, i), len(jax.tree.leaves(feed)[0])),
            key,
            self._config.measures.num_probes,
            mode=self._config.subspace.mode,
            sharding=self._layout.parameters(state.params),
        )
        return found, self._fidelity(state, task, objective)

    def _fidelity(self, state: TrainState, task: Task, objective: Objective) -> dict:
        """How far the subspace in use is from the one that it stands for.

        Returns:
          Scalars by name: against a Lanczos solve on the data of the curvature the
          overlap, and χ_k of the gradient in the solved subspace; where those data are
          a subset, what they miss according to `subsampling_error`. NaN where a solve
          failed.
        """
        space, params = self._config.subspace, state.params
        gradient = jax.grad(task.train)(params)
        found = state.subspace.subspace
        layout = self._layout.parameters(params)
        matvec = sharded(hessian(objective, params, mode=space.mode), layout)
        # The overlap errs by the tolerance over the gap to λ_{k+1}, squared.
        exact = top_eigenpairs(matvec, gradient, space.rank, tol=1e-4)
        valid = exact.converged
        facts = {
            "exact_overlap": jnp.where(valid, found.overlap(exact), jnp.nan),
            "exact_alignment": jnp.where(valid, exact.alignment(gradient), jnp.nan),
        }
        if space.data == "subset":
            total = task.num_train or task.train.num_examples
            ways = {"mode": space.mode, "sharding": layout}
            missed = subsampling_error(
                objective, params, gradient, space.rank, total, **ways
            )
            for name in ("eigenvalues", "overlap", "projection"):
                value = jnp.where(missed.converged, getattr(missed, name), jnp.nan)
                facts[f"subsampling_{name}"] = value
        return facts


def _loss_and_accuracy(part: Objective, params):
    outputs = part.outputs(params)
    return part.loss(outputs), accuracy(outputs, part.targets)
