"""python -m benchmarks.equality --device NAME: does a device compute the seed network?

A contender that does not is not measured (frameworks.py). With the same weights it must give the
same results as minicnn in NumPy, in float64: predictions; the losses of three training steps on
given batches, which depend on the gradients and Adam; predictions after these, which depend on the
moving statistics too; and the augmentation with given parameters. Dropout is off, since the masks
differ.

The command checks one of minicnn's own devices in each of its precisions, in a few seconds.

Exit status: 0; 1 if a result differs; 2 for bad arguments or a device that cannot be used.
"""

import sys
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.contenders import Contender
from minicnn import devices, load_data, mnist_cnn
from minicnn.augment import affine_transform
from minicnn.backends.affine import affine_parameters
from minicnn.command import Parser, positive
from minicnn.recipe import RECIPES

# Where a gradient is near zero, Adam turns a rounding error into a step of the learning rate; with
# this one it stays within the tolerance. The momentum lets three steps move the moving statistics.
RECIPE = replace(RECIPES["seed"], dropout=0.0, learning_rate=2e-5, momentum=0.98)
STEPS = 3
# The largest difference of a probability or a pixel, and relative difference of a loss. A contender
# of reduced precision must meet its own tolerance and, computing in float32, that of float32.
TOLERANCE = {"float32": 1e-3, "tf32": 2e-2, "bfloat16": 0.1}


class DifferentError(Exception):
    """A contender computes another function; the message says which result differs."""


@dataclass(frozen=True)
class Reference:
    """The inputs of every contender, and the results expected."""

    weights: list  # of one net, in Keras's order
    x: np.ndarray  # (B, 28, 28, 1) to predict, and to train on in each step
    y: np.ndarray  # (B,)
    drawn: np.ndarray  # (5, B): theta, tx, ty, zx, zy of the augmentation
    expected: dict  # {what: array}


def reference(batch=64):
    """The Reference, on drawn digits, with random weights in which no bias is 0, no gamma 1."""
    (images, labels), _ = load_data("digits")
    x = (images[:batch, ..., None] / 255).astype(np.float32)
    y = labels[:batch].astype(np.int64)
    exact = x.astype(np.float64)
    weights = _weights(exact, y)
    model = _exact_model(RECIPE.momentum)
    model.set_weights([weight[None] for weight in weights])
    expected = {"predictions": model.predict(exact)[0]}
    batch_of_net, rate = (exact[None], y[None]), RECIPE.learning_rate
    losses = [model.train_on_batch(*batch_of_net, rate)[0][0] for _ in range(STEPS)]
    expected["losses"] = np.array(losses)
    expected["predictions after training"] = model.predict(exact)[0]
    drawn = affine_parameters(RECIPE.augment.bounds(28, 28), 0, 0, 0, batch)
    expected["augmentation"] = affine_transform(x, *drawn)
    return Reference(weights, x, y, drawn, expected)


def _exact_model(momentum):
    """The seed network in NumPy, in float64."""
    dropout = RECIPE.dropout
    return mnist_cnn(nets=1, device="numpy", dtype="float64", dropout=dropout, momentum=momentum)


def _weights(x, y):
    """Random weights of one net, with moving statistics near those of x."""
    rng = np.random.default_rng(0)
    model = _exact_model(momentum=0)

    def vary(*kinds):
        model.set_weights(
            [
                weight * rng.uniform(0.8, 1.2, weight.shape) + rng.uniform(0, 0.1, weight.shape)
                if name.endswith(kinds)
                else weight
                for name, weight in zip(model.named_weights, model.get_weights(), strict=True)
            ]
        )

    vary("bias", "gamma", "beta")
    model.train_on_batch(x[None], y[None], 0)  # sets only the moving statistics
    vary("moving_mean", "moving_variance")
    return [weight[0].astype(np.float32) for weight in model.get_weights()]


def differences(training, given):
    """{what: largest difference} between a contender's Training and a Reference."""
    training.take_weights(given.weights)
    found = {"predictions": training.predict(given.x)}
    losses = [training.train_on(given.x, given.y) for _ in range(STEPS)]
    found["losses"] = np.stack(losses, axis=1)  # (nets, STEPS)
    found["predictions after training"] = training.predict(given.x)
    if training.warp:
        found["augmentation"] = training.warp(given.x, *given.drawn)
    largest = {}
    for name, values in found.items():
        expected = given.expected[name]
        scale = expected if name == "losses" else 1
        largest[name] = float(np.max(np.abs(values - expected) / scale))  # NaN stays NaN
    return largest


def check(contender, images, labels, given):
    """The differences of a contender. Raises DifferentError for one above its tolerance.

    A contender of reduced precision is checked in float32, too.
    """
    found = {}
    for variant in dict.fromkeys([contender.exact, contender]):
        for name, difference in check_as_it_is(variant, images, labels, given).items():
            what = name if variant.precision == "float32" else f"{name}, {variant.precision}"
            found[what] = difference
    return found


def check_as_it_is(contender, images, labels, given):
    """The same in its own precision only."""
    found = differences(contender.training(images, labels, RECIPE), given)
    precision, limit = contender.precision, TOLERANCE[contender.precision]
    for name, difference in found.items():
        if not difference <= limit:
            what = name if precision == "float32" else f"{name}, {precision}"
            raise DifferentError(f"{what} differ by {difference:.1e}, expected {limit:g}")
    return found


def main(argv=None):
    """Run the command; returns its exit status."""
    parser = Parser(prog="benchmarks.equality", description=__doc__)
    parser.add_argument(
        "--device", required=True, choices=["cpu", "cuda", "emulated"], help="one of minicnn's"
    )
    parser.add_argument("--nets", type=positive, metavar="N", default=2, help="default: 2")
    parser.add_argument("--batch", type=positive, metavar="N", default=64, help="default: 64")
    options = parser.parse_args(argv)
    try:
        precisions = devices.choose(options.device)[1].precisions
    except ValueError as error:
        parser.error(f"argument --device: {error}")
    given, (images, labels) = reference(options.batch), load_data("digits")[0]
    different = False
    for precision in precisions:
        name = f"{options.device} in {precision}"
        contender = Contender(name, "minicnn_net", options.device, options.nets, precision)
        try:
            found = check_as_it_is(contender, images, labels, given)
            shown = ", ".join(f"{what} differ by {value:.1e}" for what, value in found.items())
            print(f"{name}: {shown}; at most {TOLERANCE[precision]:g}", flush=True)
        except DifferentError as error:
            print(f"{name}: DIFFERENT: {error}", flush=True)
            different = True
    return int(different)


if __name__ == "__main__":
    sys.exit(main())
