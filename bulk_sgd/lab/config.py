"""The fields of an experiment, each with its meaning and its default."""

from ml_collections import ConfigDict

from bulk_sgd.lab import validation


def default() -> ConfigDict:
    """A config with every field, locked against unknown ones.

    Returns:
      The config of a short run on the embedded MNIST subset, for experiments to change.

    >>> import bulk_sgd.lab.config
    >>> bulk_sgd.lab.config.default().subspace.rank
    10
    """
    config = ConfigDict()
    config.name = "default"  # title of the report
    # Seeds the initial parameters, the order of batches, the curvature subset and the
    # solver's random directions.
    config.seed = 0

    # A name of data, model, loss, optimizer or solver may be the import path of your
    # own, such as "my_pkg.nets:make", also of a file beside the config. It is called
    # with the `options` of its group, to which you may add fields: docs/own_code.md.
    config.data = ConfigDict({"options": {}})
    # "mnist5k" or "sonnets" (embedded), "tfds:NAME" (a prepared TFDS data set),
    # "tsv:PATH" (labelled sentences), "text:PATH" (running text), "tokens:PATH" (token
    # ids of running text in an .npy), "random" (tokens, for measuring speed), or a path
    # to an .npz with x_train, y_train, x_test, y_test. A relative path starts at the
    # folder where you run the command.
    config.data.name = "mnist5k"
    config.data.data_dir = ""  # TFDS: where it was prepared; "" is the TFDS default
    config.data.train_split = "train"  # TFDS
    config.data.test_split = "test"  # TFDS
    config.data.num_train = 0  # the first so many examples; 0 takes all
    config.data.num_test = 0
    # "unit" (uint8 over 255; floats must be from 0 to 1), "standard" (zero mean and
    # unit variance over the training set, per channel or feature) or "none" (text).
    config.data.normalization = "unit"
    # Whether mini-batches are read while training, for training sets that do not fit on
    # the devices. Training loss, gradient and sharpness are then measured on a fixed
    # seeded subset of subspace.subset_size examples.
    config.data.streaming = False
    # tsv, text and tokens: the test file; "" tests on the last tenth of running text.
    config.data.test_path = ""
    # Text: tokens per example: bytes of running text, words of sentences; 0 takes the
    # length of the longest training sentence.
    config.data.length = 0
    # Running text and tokens: number of embeddings, above every id; 0 takes 256 for
    # bytes, and one more than the largest id.
    config.data.vocab_size = 0

    config.model = ConfigDict({"options": {}})
    # "mlp", "cnn", "vgg11", "resnet8", "vit", or for text "transformer" (one output per
    # example) or "decoder" (one per position, which sees only earlier ones).
    config.model.name = "mlp"
    config.model.hidden = (200, 200)  # mlp: widths of the hidden layers
    config.model.channels = (32, 32)  # cnn: one 3x3 convolution and 2x2 pool each
    config.model.pool = "max"  # cnn, vgg11: "max" or "average"
    # vgg11 (64 in the original), resnet8 (16): of the first convolution; vit,
    # transformer, decoder: of the embeddings.
    config.model.width = 64
    config.model.norm = "group"  # vgg11, resnet8: or "none"
    config.model.num_groups = 8  # vgg11, resnet8: must divide the width
    config.model.num_layers = 2  # vit, transformer, decoder
    config.model.num_heads = 8  # vit, transformer, decoder: must divide the width
    # vit, transformer, decoder: one loop over stacked layers, for fast compilations.
    config.model.scan_layers = False
    # vit, transformer, decoder: keep the activations of only one layer, to save memory.
    config.model.remat = False
    config.model.tied = False  # decoder: outputs are products with the embeddings
    config.model.patch = 7  # vit: side of a patch, must divide the image's
    config.model.activation = "tanh"  # "tanh", "relu" or "gelu"
    config.model.init = "lecun_normal"  # or "torch", PyTorch's default

    config.loss = ConfigDict({"options": {}})
    config.loss.name = "mse"  # "mse" or "cross_entropy"
    # mse over the classes of one example: "sum", "half_sum" or "mean". "sum" multiplies
    # the effective learning rate of "mean" by the number of classes.
    config.loss.reduction = "sum"

    config.batch_size = 50
    config.num_steps = 1000  # steps in all; the prefix takes the first ones
    config.optimizer = ConfigDict({"options": {}})
    # "sgd", "adam", "adamw", "sam", "muon" or "sophia", with the diagonal of the batch
    # Hessian.
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.momentum = 0.0  # sgd, sam, muon
    config.optimizer.nesterov = False  # sgd, sam, muon
    config.optimizer.rho = 0.05  # sam: length of the ascent step
    # adam, adamw, sophia (0.965, 0.99 in its paper), muon for all but matrices
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8  # adam, adamw, sophia, muon
    config.optimizer.gamma = 0.01  # sophia: times the diagonal
    config.optimizer.diagonal_every = 10  # sophia: steps between its estimates
    # All but adam: every step adds -rate * weight_decay * parameters to the update. A
    # projection of the "update" includes it, one of the "gradient" does not.
    config.optimizer.weight_decay = 0.0
    # The rate rises linearly from 0 over the warm-up and is then multiplied by a
    # schedule: "constant"; "linear" or "cosine", which reach final_scale at step
    # decay_steps; "step", which multiplies by `decay` at each of the boundaries.
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 0
    config.optimizer.decay_steps = 0
    config.optimizer.final_scale = 0.0
    config.optimizer.boundaries = ()
    config.optimizer.decay = 0.1
    # Whether the arms scale the optimizer's "update" or the "gradient" it is fed.
    config.optimizer.projection = "update"

    config.subspace = ConfigDict({"options": {}})
    config.subspace.rank = 10
    config.subspace.curvature = "hessian"  # or "gauss_newton", "functional_hessian"
    # adam, adamw, muon: the subspace of P^-1/2 H P^-1/2, with P the matrix that the
    # optimizer divides by, and the update projected in the coordinates P^1/2 θ.
    config.subspace.preconditioned = False
    # How products differentiate twice: "forward_over_reverse", "reverse_over_reverse",
    # "finite_differences", or "auto", the first of them that the network allows.
    config.subspace.mode = "auto"
    config.subspace.refresh_every = 1  # steps
    # Loss whose curvature counts: of the "full" training set, of a fixed seeded
    # "subset" of it, or of the current "batch".
    config.subspace.data = "full"
    config.subspace.subset_size = 1000
    # batch: the share of the batch, its first examples, whose curvature counts.
    config.subspace.batch_fraction = 1.0
    # "lanczos" solves to `tol` at every refresh; "power" takes a power step from the
    # previous basis; "streaming" averages the curvature of mini-batches over steps, one
    # product per step; it is meant for data = "batch", and with "full" or "subset" its
    # product costs so many images. "krylov_filter" takes a few steps of Lanczos from
    # every update, for that update alone. "update_pca" and "streaming_pca" take the
    # principal components of updates, and no product. The last four need every step:
    # refresh_every = 1, and with an alignment below measure_every = 1.
    config.subspace.solver = "lanczos"
    # lanczos (not inside of power and krylov_filter): residuals relative to λ_1
    config.subspace.tol = 1e-3
    # lanczos (also inside of power and krylov_filter): per solve; 0: 10 rank + 50
    config.subspace.max_matvecs = 0
    config.subspace.max_basis = 0  # lanczos: vectors between restarts; 0: 2 rank + 10
    config.subspace.warm_start = True  # lanczos
    config.subspace.along = "basis"  # power: or "update", one matvec
    config.subspace.columns = 1  # streaming: matvecs per step; 0: one per column
    config.subspace.gain = 0.1  # streaming: weight of a new product
    # streaming: act at one step in so many, after six or ten sweeps over the basis.
    config.subspace.every = 1
    # power, streaming: how many directions the basis vectors share in each matrix of
    # parameters, since they are then stored in factors; 0: dense vectors.
    config.subspace.factors = 0
    config.subspace.length = 10  # krylov_filter: of the sequence from an update
    config.subspace.calibrate_every = 100  # krylov_filter: refreshes per full solve
    config.subspace.window = 50  # update_pca: number of updates
    config.subspace.update_gain = 0.01  # streaming_pca: weight of a new update
    # Splits the rank evenly over blocks of parameters, each solved by itself: "layer",
    # or a regular expression that finds a block's name in a path; "": one block.
    config.subspace.blocks = ""
    # Above 0: the solver is called only when a probe says that the basis misses more
    # than this share of an update. A probe takes one matvec every so many refreshes.
    config.subspace.drift = 0.0
    config.subspace.probe_every = 4
    # Which of the `rank` eigenvectors are in the subspace: "all"; the ones before the
    # largest "gap"; or the ones whose "eigenvalue", or whose "rate", the eigenvalue
    # times the learning rate of the step, is above the threshold.
    config.subspace.keep = "all"
    config.subspace.threshold = 1.0

    # The prefix is plain training with the optimizer above. It ends, and the arms fork
    # from it, after the first step whose average alignment exceeds `alignment`, and at
    # the latest after `step` steps.
    config.switch = ConfigDict()
    config.switch.step = 500
    config.switch.alignment = 0.0  # threshold for the average of χ_k; 0: step alone
    # Whose χ_k: that of the mini-batch "update", averaged over all steps, or of the
    # "full" gradient, averaged over the steps with a refresh.
    config.switch.gradient = "update"
    config.switch.decay = 0.9  # average = decay · old + (1 − decay) · χ_k
    config.switch.measure_every = 1  # steps between refreshes in the prefix

    # What runs from the fork: "sgd", "dom_sgd", "bulk_sgd", "bulk_path(α)" (α, 1),
    # "dom_path(α)" (1, α), "cross_path(α)" (α, 1 − α), "scales(a, b)"; or, with the
    # guard of `bulk_sgd.accelerated`, "accelerated" (¼, 2) or "accelerated(a, b)".
    config.arms = ("sgd", "dom_sgd", "bulk_sgd", "bulk_path(0.5)")

    # Energies of H, G and F in the subspace and the bulk, batch sharpness, and the
    # overlap of the subspace with one by Lanczos: `bulk_sgd.lab.training.measures`.
    config.measures = ConfigDict({"options": {}})
    config.measures.every = 0  # steps, a multiple of eval_every; 0: never
    # Likewise, for λ_1 of the whole training loss at that point, about eight matvecs.
    config.measures.sharpness_every = 0
    config.measures.last_sharpness = True  # λ_1 in the last row of each arm, too
    config.measures.full_gradient = True  # its χ_k, which costs more than the losses
    config.measures.sgd_subspace = True  # the arm "sgd" keeps one, only to measure it
    config.measures.num_probes = 30  # random vectors per operator
    # Likewise, for what the next step does to the loss in the subspace and in the bulk,
    # how far the eigenvectors turn, and where they live. The cost is three matvecs,
    # some 20 losses and a second copy of the basis (docs/experiments.md).
    config.measures.step_every = 0
    # Import paths of functions whose values go into each row of metrics. A function
    # gets the arguments that it names: `params`, `start` (the parameters at step 0),
    # `step`, `subspace`, `objective`, or a field of `options`.
    config.measures.own = ()

    # Bisects, on a log scale, for the largest learning rate at which each arm is stable
    # from the fork on; needs a constant schedule.
    config.stability = ConfigDict()
    config.stability.rounds = 0  # of the bisection; 0: none
    config.stability.low = 0.1  # times optimizer.learning_rate, the interval to search
    config.stability.high = 100.0
    config.stability.num_steps = 200
    # Stable: the final training loss is at most so many times the one at the fork.
    config.stability.loss_factor = 2.0

    # States from which the same command goes on, see `lab.training.checkpoint`.
    config.checkpoint = ConfigDict()
    config.checkpoint.every = 1_000  # steps, rounded up to dispatches; 0: none
    config.checkpoint.keep = 2  # the newest ones; 0: all
    # GB in all of the states from which arms can grow to more steps; where they take
    # more, none is kept, and the arms would train anew from the fork. Nor are then the
    # last parameters of each arm, in `parameters/`.
    config.checkpoint.ends = 0.1

    config.eval_every = 50  # steps between rows of metrics; one dispatch each
    # Full-data losses, gradients and products go through the data in pieces of so many
    # examples; 0 takes them at once (faster, more memory).
    config.microbatch_size = 0

    # The devices, as a mesh of data x fsdp; 0 takes all that the other one leaves.
    # Examples are split over both axes, parameters and basis over `fsdp` alone.
    config.sharding = ConfigDict()
    config.sharding.data = 0
    config.sharding.fsdp = 1

    # Refuses a run that does not fit the memory of a device, before its first step.
    config.check_memory = True
    # Loggers. In each, the prefix and every arm are runs of their own, WORKDIR/ARM.
    # Environment variables of the loggers set servers, keys and offline modes.
    config.tensorboard = True
    config.wandb = ""  # Weights & Biases: PROJECT or ENTITY/PROJECT
    config.mlflow = ""  # MLflow: the name of an experiment
    config.progress = True
    config.lock()
    for group in validation.OPEN:
        config[group].options.unlock()
    return config


def validate(config: ConfigDict):
    """Checks everything about a config that needs no data.

    Raises:
      ValueError: one sentence with the field, its value and what is allowed.
    """
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"config is {config!r}; it must be a ConfigDict, such as "
            "bulk_sgd.lab.config.default()."
        )
    validation.check_fields(config, default())
    validation.check_values(config)
