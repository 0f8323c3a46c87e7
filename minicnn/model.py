"""Sequential: an ensemble of nets with the same layers. mnist_cnn: the notebook's network."""

from dataclasses import replace

from . import checks
from .nets import Nets
from .network.architecture import MAX_CLASSES, Architecture
from .recipe import MNIST_SHAPE, mnist_layers
from .training import prediction


class Sequential(Nets):
    """E = `nets` networks of the same layers, each with its own weights, numbered from `first_net`.

    layers: a list of layers; input_shape: (H, W, C) or (K,), without nets and batch; the other
    arguments: as for Nets. Raises ValueError that names the argument.
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
        first_net, nets = checks.word("first_net", first_net), checks.integer("nets", nets, 1)
        checks.word("first_net + nets - 1", first_net + nets - 1)
        architecture = _named(Architecture(layers, input_shape, classes))
        numbers = range(first_net, first_net + nets)
        super().__init__(architecture, numbers, seed, device, dtype, precision, optimizer)


def _named(architecture):
    """The architecture with the names "0", "1", ... if it tells classes apart that have none."""
    shape = architecture.output_shape
    tells_apart = architecture.layers[-1].activation == "softmax" and len(shape) == 1
    if architecture.classes is None and tells_apart and 2 <= shape[0] <= MAX_CLASSES:
        return replace(architecture, classes=tuple(map(str, range(shape[0]))))
    return architecture


def load_model(path, device="auto", precision="float32"):
    """The Sequential in a file that Sequential.save or minicnn.train wrote.

    Nets that diverged are left out. Raises DataError.
    """
    trained = prediction.load(path)
    model = Sequential.__new__(Sequential)
    numbers = [net - 1 for net in trained.nets]
    Nets.__init__(
        model, trained.architecture, numbers, trained.about["seed"], device, precision=precision
    )
    trained.restore(model)
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
    names = classes if isinstance(classes, (tuple, list)) else None
    layers = mnist_layers(dropout, momentum, len(names) if names else classes)
    options = {"seed": seed, "device": device, "dtype": dtype, "precision": precision}
    return Sequential(layers, input_shape, nets, first_net, **options, classes=names)
