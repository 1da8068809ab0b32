"""The compiled part of training: a step, and the loop of many steps per dispatch.

One program runs every arm and every cell of a sweep that differs in nothing but
`Scalars`, which are its arguments. The loop ends by itself when the loss is not finite
or the switch rule fires, so no step ever waits for the host.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from bulk_sgd.curvature.hessian import CURVATURES
from bulk_sgd.curvature.objective import Objective
from bulk_sgd.curvature.shared_pass import value_grad_and_matvec
from bulk_sgd.lab import validation
from bulk_sgd.lab.devices.sharding import Layout
from bulk_sgd.lab.from_config import optimizers, solvers
from bulk_sgd.lab.training import evaluation
from bulk_sgd.lab.training.state import Scalars, Task, Trace, TrainState
from bulk_sgd.linalg import basis, branches
from bulk_sgd.spectra.eigenvectors import displacement
from bulk_sgd.transforms import scale_by_subspace as transform
from bulk_sgd.transforms.accelerated import SURGE, TOL
from bulk_sgd.transforms.eager import Watch
from bulk_sgd.transforms.guard import Guard, Memory
from bulk_sgd.transforms.switch import Switch


class Programs:
    """The compiled programs of a validated config.

    `evaluate`, `own`, `sharpness`, `measure` and `along_step` are the functions of
    `training.evaluation`. The layout is by default what the config asks for on this
    machine.
    """

    def __init__(self, config, layout: Layout | None = None):
        self._config = config
        self._layout = layout or Layout.of(config)
        self._solver = solvers.build(config.subspace)
        self._switch = Switch(decay=config.switch.decay)
        self._executables = {}
        self.init = jax.jit(self._init)
        self.train = jax.jit(
            self._train, static_argnames="projected", donate_argnames="state"
        )
        self.train_lanes = jax.jit(
            self._train_lanes, static_argnames="projected", donate_argnames="states"
        )
        bind = lambda fn: jax.jit(functools.partial(fn, config, self._layout))
        self.evaluate = bind(evaluation.evaluate)
        self.own = bind(evaluation.own)
        self.sharpness = bind(evaluation.sharpness)
        self.measure = bind(evaluation.measure)
        self.along_step = bind(evaluation.along_step)

    def compiled(self, *arguments, projected: bool, lanes: int = 1):
        """The executable of `train` or `train_lanes`, compiled on the first call."""
        key = lanes, projected
        if key not in self._executables:
            program = self.train if lanes == 1 else self.train_lanes
            lowered = program.lower(*arguments, projected=projected)
            self._executables[key] = lowered.compile()
        return self._executables[key]

    def _init(self, params, seed=0):
        optimizer = optimizers.build(self._config.optimizer, 0.0, seed)
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            inner=optimizer.init(params),
            projection=transform.init(self._options(Scalars(0.0), 0.0), params),
            loss=jnp.zeros((), jnp.float32),
            memory=Memory.blank(),
        )
        return self._layout.constrain(state)

    def _options(self, scalars: Scalars, rate):
        """The transform's options: the numbers of a run, and the rate of a step."""
        space, solver = self._config.subspace, self._solver
        if space.keep == "rate":  # which vectors stay depends on the rate
            solver = solvers.build(space, rate)
        return transform.checked(
            space.rank,
            scalars.dominant_scale,
            scalars.bulk_scale,
            refresh_every=scalars.refresh_every,
            solver=solver,
            curvature=functools.partial(CURVATURES[space.curvature], mode=space.mode),
            switch=self._switch,
            sharding=self._layout.parameters,
            seed=scalars.seed,
        )

    def _train(self, state, task: Task, feed, num_steps, scalars=None, *, projected):
        """Takes up to `num_steps` steps from a state, whose buffers are given up.

        The feed holds the examples of n ≥ num_steps steps: their places in
        `task.train`, int32 `(n, batch_size)`, or the examples themselves as `Batches`.
        Without scalars it is SGD at the config's learning rate, and without `projected`
        the subspace is left out.
        """
        scalars = scalars or Scalars(self._config.optimizer.learning_rate)
        unfinished = functools.partial(_unfinished, num_steps, scalars.threshold)
        step = functools.partial(self._step, task, feed, scalars, projected)
        end, trace = jax.lax.while_loop(unfinished, step, (state, Trace.blank(feed)))
        if projected and self._config.measures.step_every:
            turned = displacement(*(x.projection.subspace for x in (state, end)))
            trace = trace._replace(displacement=turned)
        return end, trace

    def _train_lanes(
        self, states, task: Task, curvatures, feeds, num_steps, scalars, *, projected
    ):
        """`_train` for n runs of one program in lockstep, under `vmap`.

        It pays where a small network would leave most of an accelerator idle. Every
        argument but the task has a leading axis of n lanes; `curvatures` is None where
        lanes share it.
        """

        def lane(state, curvature, *rest):
            own = task if curvature is None else task.with_curvature(curvature)
            return self._train(state, own, *rest, projected=projected)

        return jax.vmap(lane)(states, curvatures, feeds, num_steps, scalars)

    def _step(self, task: Task, feed, scalars: Scalars, projected: bool, carry):
        """One step: a batch, its gradient, the optimizer and the projection."""
        state, trace = carry
        fields = self._config.optimizer
        rate = optimizers.rate_at(fields, scalars.learning_rate, state.step)
        batch = task.batch(feed, trace.num_steps)
        batch = self._layout.constrain_examples(batch)
        curved = self._curved(task, batch)
        # A shared pass keeps what a product needs, also in steps that take none.
        seldom = self._config.subspace.every > 1
        shares = projected and curved is batch and not seldom
        loss, grads, matvec = self._derivatives(batch, state.params, shares)
        given = fields, rate, batch, state.inner, state.params
        optimize = functools.partial(optimizers.update, *given)
        project = functools.partial(
            self._project, scalars, rate, task, curved, matvec, state
        )
        if not projected:
            updates, inner = optimize(grads)
            projection, ratio = state.projection, jnp.ones(())
            memory, acts = state.memory, False
        elif fields.projection == "gradient":
            updates, projection, ratio, memory, acts = project(
                grads, grads, state.inner
            )
            updates, inner = optimize(updates)
        else:
            updates, inner = optimize(grads)
            updates, projection, ratio, memory, acts = project(grads, updates, inner)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            inner=inner,
            projection=projection,
            loss=loss.astype(jnp.float32),
            memory=memory,
        )
        new_trace = trace.add(loss, projection.alignment, ratio, acts)
        return self._layout.constrain(new_state), new_trace

    def _curved(self, task: Task, batch: Objective) -> Objective:
        """The objective whose curvature counts."""
        if task.curvature is not None:
            return task.curvature
        count = validation.num_curved(self._config)
        if count == self._config.batch_size:
            return batch
        return self._layout.constrain_examples(batch.take(slice(count)))

    def _derivatives(self, batch: Objective, params, shares: bool):
        """The loss of a batch, its gradient, and the products that share its pass."""
        space = self._config.subspace
        if shares and space.curvature == "hessian":
            return value_grad_and_matvec(batch, params, mode=space.mode)
        return *jax.value_and_grad(batch)(params), None

    def _project(
        self, scalars, rate, task, curved, matvec, state, grads, updates, inner
    ):
        """The scaled updates, the new projection state, the descent ratio and flags.

        The flags of the guard: what it remembers, and whether the scales act.
        """
        options = self._options(scalars, rate)
        flags = []

        def choose(after):
            factors, *flags[:] = self._factors(
                options, scalars, rate, grads, state, after
            )
            return factors

        scaled, projection = transform.advance(
            options,
            choose,
            Watch(),
            updates,
            state.projection,
            state.params,
            value_fn=curved,
            matvec=matvec,
            preconditioner=evaluation.preconditioner(self._config, inner),
        )
        if self._config.switch.gradient == "full":
            average = self._full_average(scalars, task, state, projection, inner)
            projection = projection._replace(alignment_average=average)
        promised = basis.dot(grads, updates)
        ratio = basis.dot(grads, scaled) / jnp.where(promised, promised, 1)
        return scaled, projection, ratio, *flags

    def _factors(self, options, scalars, rate, grads, state, after):
        """The scales (a, b) of a step, after its refresh, and the guard's flags."""
        space, fields = self._config.subspace, self._config.optimizer
        threshold = optimizers.guard_threshold(fields, space.preconditioned)
        fixed = options.scales(after)
        guard = Guard(*fixed, threshold, TOL, self._solver.sweeps, SURGE)
        known = state.projection, after, rate, grads, state.memory
        given, memory, acts = guard.scales(*known, asked=scalars.guarded)
        pick = functools.partial(jnp.where, scalars.guarded)
        return jax.tree.map(pick, given, fixed), memory, acts

    def _full_average(self, scalars, task, state, projection, inner):
        """The switch rule's average for the full gradient, over measured steps."""
        known = state.projection.alignment_average

        def measure():
            gradient = jax.grad(task.train)(state.params)
            chi = evaluation.gradient_alignment(
                self._config, projection.subspace, inner, gradient
            )
            return self._switch.averaged(known, chi)

        ends = jnp.isfinite(scalars.threshold)  # only a prefix does
        due = state.step % scalars.refresh_every == 0
        return branches.cond(ends & due, measure, lambda: known)


def _unfinished(num_steps, threshold, carry):
    """Whether the loop goes on: steps are left, the loss is finite, no switch fired."""
    state, trace = carry
    switched = state.projection.alignment_average > threshold
    ok = jnp.isfinite(state.loss) & ~switched
    return ok & (trace.num_steps < num_steps)
