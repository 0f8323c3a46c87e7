"""Predict with a trained ensemble: checkpoint and images in, probabilities out."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.load import load_test
from ..files import DataError, brief
from ..nets import Nets
from ..network.architecture import Architecture
from ..recipe import Recipe
from . import checkpoint
from .inference import predict
from .resources import arrays_bytes, group_size, processes, split_nets
from .workers import run_jobs


@dataclass(frozen=True)
class Checkpoint:
    """Nets read from a file: their state (see checkpoint.py) and their Architecture."""

    path: Path
    architecture: Architecture
    arrays: dict
    about: dict

    @property
    def nets(self):
        """The numbers, from 1, of the nets that did not diverge. Only these nets vote."""
        diverged = {row["net"] for row in self.about["diverged"]}
        return [net + 1 for net in self.about["nets"] if net + 1 not in diverged]

    @property
    def views(self):
        """Over how many views of an image the recipe averages predictions."""
        return self.about["recipe"].get("views", 1)

    def restore(self, model):
        """Copy the states of a model's nets into it. Raises DataError."""
        chosen = checkpoint.select(self.arrays, self.about, model.nets, self.path)
        checkpoint.restore_model(model, *chosen, self.path)


def load(path):
    """Read a Checkpoint. Raises DataError if the file is invalid or all of its nets diverged."""
    arrays, about = checkpoint.load(path)
    try:
        recipe = Recipe(**about["recipe"]) if about["recipe"] else None
        if about.get("architecture") is not None:
            architecture = Architecture.from_dict(about["architecture"])
        else:  # Earlier versions wrote none: it follows from the recipe.
            architecture = (recipe or Recipe(**about["recipe"])).architecture
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a trained ensemble: {brief(error, 200)}") from None
    if recipe is not None:
        if recipe.architecture.as_dict() != architecture.as_dict():
            raise DataError(f"{path}: architecture: expected that of the file's recipe")
        if recipe.seed != about["seed"]:
            raise DataError(f"{path}: seed: got {about['seed']}, expected {recipe.seed}")
    checkpoint.check_shapes(path, arrays, architecture.nodes)
    trained = Checkpoint(path, architecture, arrays, about)
    if not trained.nets:
        raise DataError(f"{path}: all of its nets diverged, expected one to use")
    return trained


def load_classifier(path):
    """Read a Checkpoint of nets that name the classes of images. Raises DataError."""
    trained = load(path)
    architecture = trained.architecture
    if architecture.classes is None or len(architecture.input_shape) != 3:
        raise DataError(
            f"{path}: holds nets for {architecture.purpose}, expected classes of images"
        )
    return trained


def test_set(trained, source, progress=True):
    """The DataSet of the test images of a source, for a Checkpoint. Raises DataError.

    The images, and the classes of their labels if they have any, must be those of the training.
    """
    ours = trained.architecture
    try:
        return load_test(source, progress, ours.input_shape, ours.classes)
    except DataError as error:
        raise DataError(f"{error}; {trained.path} was trained on {ours.purpose}") from None


def probabilities_of(trained, images, views, device, ops, workers, report, should_stop):
    """Probabilities (nets, N, classes) of images (N, H, W) by the nets of a Checkpoint.

    They are means over `views` views of each image, see augment.views. Nets whose probabilities are
    not finite are left out with a warning. report(n): the nets predicted n more images, counted per
    net and view. Raises DataError if no net remains, and Interrupted.
    """
    nets, path = trained.nets, trained.path
    groups, workers = _share(trained.architecture, ops, nets, images, workers)
    shared = trained, device, images, views
    results = run_jobs(
        predict_group, shared, groups, workers, report, lambda probabilities: None, should_stop
    )
    probabilities = np.concatenate(results)
    finite = np.isfinite(probabilities).all(axis=(1, 2))
    for net in np.array(nets)[~finite]:
        warnings.warn(f"net {net} does not predict finite values, and has no vote", stacklevel=2)
    if not finite.any():
        raise DataError(f"{path}: none of its nets predicts finite values")
    return probabilities[finite]


def _share(architecture, ops, nets, images, workers):
    """(groups of nets that predict together, number of processes) for a device."""
    size = 1
    if ops.lockstep:
        size = group_size(
            len(nets),
            ops.free_memory(),
            lambda count: arrays_bytes(architecture, ops, count, (), images),
        )
        workers = 1
    groups = split_nets(nets, size)
    return groups, min(processes(ops, workers), len(groups))


def predict_group(shared, nets, report, should_stop):
    """The probabilities (E, N, classes) of the images by E nets of the checkpoint."""
    trained, device, images, views = shared
    model = Nets(trained.architecture, [net - 1 for net in nets], trained.about["seed"], device)
    trained.restore(model)
    everything = np.broadcast_to(np.arange(len(images)), (len(nets), len(images)))
    on_device = model.ops.to_device(images)
    return predict(model, on_device, everything, report, should_stop, views=views)
