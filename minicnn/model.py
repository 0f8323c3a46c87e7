"""Sequential: an ensemble of nets with the same layers, in Keras's words; the notebook's network.

    model = mnist_cnn(nets=4)
    history = model.fit(x, y, epochs=3, validation_split=0.1)
    model.evaluate(x_test, y_test)
    model.save("digits.npz")

fit runs the code of minicnn.train: read training/fit.py next. A single step is in nets.py.
"""

import signal
import warnings
from dataclasses import asdict, replace
from html import escape

import numpy as np

from . import checks, devices
from .files import DataError, brief
from .nets import Nets
from .network.architecture import MAX_CLASSES, Architecture
from .network.optim import Adam
from .progress import counter
from .recipe import MNIST_SHAPE, mnist_layers
from .training import arguments, checkpoint, inference, messages, prediction
from .training.ensemble import vote
from .training.fit import (
    Part,
    are_finite,
    check_importable,
    fit,
    initial_state,
    merged,
    prepare,
    split_state,
)
from .training.history import History
from .training.interruption import StopOnSignal
from .training.resources import share
from .training.trainer import steps_per_epoch
from .training.workers import Interrupted

_SIGNALS = (signal.SIGINT,)  # what a notebook's button and Ctrl-C send


class Sequential(Nets):
    """E = `nets` networks of the same layers, each with its own weights, numbered from `first_net`.

    layers: a list of layers; input_shape: (H, W, C) or (K,), without nets and batch; classes: their
    names (default: "0", "1", ...); the other arguments: as for Nets. Raises ValueError that names
    the argument.
    """

    def __init__(
        self,
        layers,
        input_shape=(28, 28, 1),
        nets=1,
        first_net=0,
        seed=0,
        device="auto",
        dtype="float32",
        precision="float32",
        optimizer=None,
        classes=None,
    ):
        first_net = checks.word("first_net", first_net)
        nets = checks.integer("nets", nets, 1, checkpoint.MAX_NETS)
        checks.word("first_net + nets - 1", first_net + nets - 1)
        architecture = _named(Architecture(layers, input_shape, classes))
        numbers = range(first_net, first_net + nets)
        self._begin(architecture, numbers, seed, device, dtype, precision, optimizer)

    def _begin(self, architecture, numbers, *settings):
        """Make the nets with these numbers; settings: the other arguments of Nets."""
        super().__init__(architecture, numbers, *settings)
        self.history = History([])
        self._behind = np.zeros(len(self.nets), int)  # steps that a net has fewer than self.step

    @property
    def classes(self):
        """The names of the classes, a tuple; None if the network tells no classes apart."""
        return self.architecture.classes

    # ---- training -----------------------------------------------------------------------------

    def fit(
        self,
        x,
        y,
        batch_size=32,
        epochs=1,
        verbose=1,
        validation_split=0.0,
        validation_data=None,
        initial_epoch=0,
        augment=None,
        learning_rate=None,
        on_epoch=None,
        workers=1,
        memory=None,
        label_smoothing=0.0,
        average_epochs=0,
        average_decay=0.0,
    ):
        """Train every net on images x with labels y. Returns a History; also as `self.history`.

        - x: (N, H, W), (N, H, W, C) or (N, H*W*C): bytes, or floats in [0, 1], of which multiples
          of 1/255 are used. y: (N,) integers from 0.
        - Each net has its own shuffles, and its own split: validation_split is the fraction of x
          that it does not train on. validation_data (x, y) is validated on instead, by every net.
        - The epochs after initial_epoch are trained, up to `epochs`; an epoch has only whole
          batches. Its number, from 1, decides its shuffles, and is the argument of learning_rate:
          so to train on, give initial_epoch.
        - augment: a RandomAffine. learning_rate: a number, a function of the epoch, from 1, or a
          schedule: LinearDecay, CosineDecay or ExponentialDecay, of which `epochs` is the end
          (default: the optimizer's).
        - label_smoothing: in [0, 1), the fraction of each label that is spread evenly over all
          classes. `loss` in the History is with it, `val_loss` without.
        - average_epochs: the nets end with the mean of their weights after each step of so many
          last epochs; average_decay: or with an exponential average over this call's steps, which
          keeps this fraction of itself. The moving statistics follow from training images. Only the
          last epoch's validation is that of the average; a net that ends before keeps its own
          weights. Adam's moments stay as they are.
        - on_epoch(row): called after each epoch of each net with its row of the History, in the
          process that trains it; if it returns true, the training of this net ends.
        - verbose: 1 shows a progress bar, 2 prints a line for each net and epoch, 0 nothing.
        - workers: on a CPU, the number of processes that train a net at a time; None: as many as
          cores, nets and memory allow. With 1, nets train one by one, on all cores. The result does
          not depend on it. memory: most bytes to use (default: what is free).

        The History is that of this call. Ctrl-C ends the training after the current step: the nets
        keep the weights that they have then, `self.history` has the complete epochs, and
        KeyboardInterrupt is raised. So it is if on_epoch raises. A net whose loss or weights are
        not finite stops, with a warning. Raises ValueError that names the argument.
        """
        recipe, data = prepare(
            self,
            x,
            y,
            batch_size=batch_size,
            epochs=epochs,
            initial_epoch=initial_epoch,
            validation_split=validation_split,
            validation_data=validation_data,
            augment=augment,
            learning_rate=learning_rate,
            label_smoothing=label_smoothing,
            average_epochs=average_epochs,
            average_decay=average_decay,
        )
        if verbose == "auto" or isinstance(verbose, bool):
            verbose = int(bool(verbose))
        verbose = checks.integer("verbose", verbose, 0, 2)
        if on_epoch is not None and not callable(on_epoch):
            raise ValueError(f"on_epoch: got {on_epoch!r}, expected a function of a row")
        if workers is not None:
            workers = checks.integer("workers", workers, 1)
        if memory is not None:
            memory = checks.integer("memory", memory, 1)
        together, workers = share(recipe, data, self.ops, memory, workers)
        part = Part(recipe, data, self.ops, self.ops.precision, on_epoch)
        if workers > 1:
            part = replace(part, device=self._device_name())
            check_importable(part)
        self._train(part, together, workers, verbose)
        return self.history

    def _device_name(self):
        """The name that makes this backend again, in another process. Raises ValueError."""
        if devices.choose(self.device, self.ops.precision, self.dtype.name)[1] is not self.ops:
            raise ValueError(
                f"workers: other processes cannot have the backend {self.ops!r}, expected 1"
            )
        return self.device

    def _train(self, part, together, workers, verbose):
        """Run fit, and take over the states that the nets end with, however it ends."""
        recipe, results, last_rows = part.recipe, [], {}
        arrays, about = initial_state(self)
        steps = dict(zip(about["nets"], self.steps_of_nets.tolist(), strict=True))
        groups = split_state(arrays, about, steps, together)
        nets = sum(len(numbers) for numbers, _ in groups)
        if not nets:
            raise ValueError("weights: got none that are finite, expected finite ones to train")
        if nets < len(self.nets):
            self._warn_of_others({net for numbers, _ in groups for net in numbers})
        of_a_net = (recipe.epochs - recipe.initial_epoch) * recipe.batch_size
        total = nets * of_a_net * steps_per_epoch(recipe, len(part.data.train_images))
        stop = StopOnSignal("stopping after this step; Ctrl-C again stops at once", _SIGNALS)

        def standing():
            return messages.standing(last_rows, recipe.epochs, nets)

        def on_death(group):
            warnings.warn(
                f"the process that trained net {group[0][0]} died; another one begins again",
                stacklevel=checks.outside(),
            )

        with stop, counter(total, "images", verbose != 1, 0, standing) as bar:

            def report(count, rows=()):
                last_rows.update(rows)
                bar.update(count)
                if rows:
                    bar.set_postfix_str(standing())
                for row in filter(None, rows.values() if rows else ()):
                    if verbose == 2:
                        print(messages.epoch_line(row, recipe.epochs), flush=True)

            try:
                fit(part, groups, workers, report, results.append, stop, on_death)
                bar.update(total - bar.n)  # nets that ended sooner
            except Interrupted:
                pass  # KeyboardInterrupt is raised below, after the states are kept
            finally:
                with stop.hold():
                    self._keep((arrays, about), results)
        if stop():
            raise KeyboardInterrupt

    @property
    def steps_of_nets(self):
        """(E,) the optimizer steps of each net; self.step, on the device, is the largest.

        They differ after a fit that ended sooner for some nets.
        """
        return int(self.ops.to_host(self.step)[0]) - self._behind

    def _warn_of_others(self, trained):
        """Warn of the nets that fit leaves out; trained: the numbers, from 1, of the others."""
        left = [str(net + 1) for net in self.nets if net + 1 not in trained]
        warnings.warn(
            f"fit leaves out net {', '.join(left)}: weights that are not finite stay so",
            stacklevel=checks.outside(),
        )

    def _keep(self, state, results):
        """Take over the states, history and diverged nets that `results` end with."""
        if not results:
            self.history = History([])
            return
        arrays, ended = merged(state, results)
        before = zip(state[1]["nets"], self.steps_of_nets, strict=True)
        steps = np.array([ended.get(net + 1, step) for net, step in before])
        about = {**state[1], "step": int(steps.max())}
        checkpoint.restore_model(self, arrays, about, "model")
        self._behind = steps.max() - steps
        self.history = History(checkpoint.history_rows(arrays["history"]))
        for fitted in results:
            for net, (epoch, step) in fitted.diverged.items():
                warnings.warn(
                    f"net {net} stopped: its loss or weights were not finite in epoch {epoch}, "
                    f"step {step}; try a smaller learning_rate",
                    stacklevel=checks.outside(),
                )

    # ---- prediction ---------------------------------------------------------------------------

    def predict(self, x, views=1):
        """Class probabilities (E, N, classes) by each net, for images x.

        x: bytes or floats in [0, 1], (N, H, W) or (N, H, W, C), as for fit. views: 1 to 27; with
        more than one, the probabilities are means over that many views of each image: itself, and
        copies that are shifted by a pixel of 28 or rotated by 5 degrees, or both (augment.views).
        Changes no state.
        """
        if len(self.input_shape) != 3:
            return super().predict(x, views)
        x = arguments.shaped("x", x, self.input_shape)
        if x.dtype.kind == "f":
            arguments.check_range("x", x)
            return super().predict(x, views)
        if not len(x):
            return super().predict(x.astype(self.dtype), views)
        x = arguments.images("x", x, self.input_shape)
        everything = np.broadcast_to(np.arange(len(x)), (len(self.nets), len(x)))
        return inference.predict(self, self.ops.to_device(x), everything, views=views)

    def evaluate(self, x, y, views=1):
        """Loss and accuracy on images x with labels y.

        x and y: as for fit; views: as for predict. Returns {"loss": (E,), "accuracy": (E,),
        "ensemble_accuracy": a float}: of each net, and of the class that the nets choose together.
        Nets whose predictions are not finite have no vote. Raises ValueError that names the
        argument.
        """
        arguments.check_classifier(self.architecture)
        x = arguments.shaped("x", x, self.input_shape)
        if not len(x):
            raise ValueError("x: got no images, expected at least one")
        y = arguments.labels("y", y, "x", len(x), len(self.classes))
        probabilities = self.predict(x, views)
        finite = np.isfinite(probabilities).all(axis=(1, 2))
        scores = [inference.score(of_net, y) for of_net in probabilities]
        loss, accuracy = np.where(finite, np.array(scores).T, np.nan)
        together = float("nan")
        if finite.any():
            together = float(np.mean(vote(probabilities[finite]) == y))
        return {"loss": loss, "accuracy": accuracy, "ensemble_accuracy": together}

    # ---- files and looks ----------------------------------------------------------------------

    def save(self, path):
        """Write architecture, weights and Adam's state to a file, atomically: see load_model.

        minicnn.predict --checkpoint reads it, too. Raises OSError, and ValueError for a layer that
        minicnn does not have.
        """
        arrays, about = initial_state(self)
        arrays["history"] = checkpoint.history_table(self.history.trained)
        arrays["sums"] = np.zeros((len(self.nets), 3))
        finite = are_finite(arrays)
        if not finite.any():
            raise ValueError("weights: got none that are finite, expected finite ones to save")
        about.update(
            recipe={},
            architecture=self.architecture.as_dict(),
            optimizer=asdict(self.optimizer),
            steps=self.steps_of_nets.tolist(),
            data="",
            seconds=0.0,
            # In which step is not known any more. load_model leaves such nets out.
            diverged=[{"net": int(net) + 1, "epoch": 1, "step": 1} for net in self.nets[~finite]],
        )
        checkpoint.save(path, arrays, about)

    def __repr__(self):
        return (
            f"<Sequential: {len(self.nets)} net(s) for {self.architecture.purpose}, "
            f"{self.count_params():,} weights each, on {self.device}>"
        )

    def _repr_html_(self):
        """For notebooks: a table of the layers."""
        rows = "".join(
            f"<tr><td>{escape(node.name)}</td><td>{node.output_shape}</td>"
            f"<td>{node.count_params():,}</td></tr>"
            for node in self.nodes
        )
        return (
            f"<p>{len(self.nets)} net(s) for {escape(self.architecture.purpose)}, "
            f"{self.count_params():,} weights each, on {escape(self.device)} "
            f"({escape(self.device_reason)})</p>"
            f"<table><tr><th>layer</th><th>output</th><th>weights</th></tr>{rows}</table>"
        )


def _named(architecture):
    """The architecture with the names "0", "1", ... if it tells classes apart that have none."""
    shape = architecture.output_shape
    tells_apart = architecture.layers[-1].activation == "softmax" and len(shape) == 1
    if architecture.classes is None and tells_apart and 2 <= shape[0] <= MAX_CLASSES:
        return replace(architecture, classes=tuple(map(str, range(shape[0]))))
    return architecture


def load_model(path, device="auto", precision="float32"):
    """The Sequential in a file that Sequential.save or minicnn.train wrote.

    Nets that diverged are left out. The file is checked, never unpickled. Raises DataError.
    """
    trained = prediction.load(path)
    settings = trained.about.get("optimizer")
    try:
        optimizer = None if settings is None else Adam(**settings)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: optimizer: {brief(error, 200)}") from None
    model = Sequential.__new__(Sequential)
    model._begin(
        trained.architecture,
        [net - 1 for net in trained.nets],
        trained.about["seed"],
        device,
        trained.arrays["params"].dtype.name,
        precision,
        optimizer,
    )
    trained.restore(model)
    steps = trained.about.get("steps")
    if steps is not None:
        of_net = dict(zip(trained.about["nets"], steps, strict=True))
        model._behind = trained.about["step"] - np.array([of_net[net] for net in model.nets])
    rows = checkpoint.history_rows(trained.arrays["history"])
    model.history = History([row for row in rows if row["net"] in trained.nets])
    return model


def mnist_cnn(
    nets=15,
    first_net=0,
    seed=0,
    device="auto",
    dtype="float32",
    precision="float32",
    dropout=0.4,
    momentum=0.99,
    classes=10,
    input_shape=MNIST_SHAPE,
):
    """The notebook's network; for 28 x 28 digits it has 327,242 weights in each net.

    Arguments as for Sequential; dropout: the rate of each Dropout; momentum: that of the moving
    statistics; classes: how many there are, or their names; input_shape: (H, W, C), at least
    25 x 25 pixels. Source: C. Deotte, "25 Million Images! [0.99757] MNIST", Kaggle, 2018.
    """
    names = classes if isinstance(classes, (tuple, list, np.ndarray)) else None
    layers = mnist_layers(dropout, momentum, classes if names is None else len(names))
    options = {"seed": seed, "device": device, "dtype": dtype, "precision": precision}
    return Sequential(layers, input_shape, nets, first_net, **options, classes=names)
