"""The seed network in minicnn, on one of its devices: captured steps, as in training."""

import importlib
from dataclasses import replace

import numpy as np

from minicnn.training.dataset import Data
from minicnn.training.inference import CapturedStep
from minicnn.training.trainer import Job, Trainer


class Training:
    """A contender's nets: see __init__.py."""

    stride = 1
    warp = None  # the reference is minicnn's own

    def __init__(self, contender, images, labels, recipe):
        recipe = replace(recipe, nets=contender.nets, validation_fraction=0)
        data = Data(images, labels)
        job = Job(recipe, data, contender.device, contender.precision, None)
        self.trainer = Trainer(job, recipe.all_nets)
        self.trainer.begin_epoch(0)
        self.model, self.ops = self.trainer.model, self.trainer.ops
        self.device = contender.device
        self._plan = self.model.plan(recipe.batch_size, training=False)
        batch = (images[: recipe.batch_size, ..., None] / 255).astype(self.model.dtype)
        self._plan.x[...] = self.ops.to_device(batch)
        self._train = CapturedStep(self.ops, graph=True)
        self._infer = CapturedStep(self.ops, graph=True)

    def take_weights(self, weights):
        """Give all nets the weights of one."""
        nets = len(self.model.nets)
        self.model.set_weights([np.repeat(weight[None], nets, axis=0) for weight in weights])

    def predict(self, x):
        """Probabilities (E, B, 10) of x (B, 28, 28, 1)."""
        return self.model.predict(x)

    def train_on(self, x, y):
        """One step of every net on the same batch; losses (E,)."""
        nets, rate = len(self.model.nets), self.trainer.recipe.learning_rate
        of_all = (np.repeat(a[None], nets, axis=0) for a in (x, y))
        return self.model.train_on_batch(*of_all, rate)[0]

    def train(self, steps):
        """Make `steps` training steps."""
        self._repeat(self._train, self.trainer.step, steps)

    def infer(self, batches):
        """Predict the prepared batch `batches` times; the results stay on the device."""
        self._repeat(self._infer, self._infer_batch, batches)

    def device_memory(self):
        """Bytes of GPU memory that CuPy has allocated; None on another device."""
        if self.device != "cuda":
            return None
        return importlib.import_module("cupy").get_default_memory_pool().total_bytes()

    def _infer_batch(self):
        self.model.infer(self._plan)

    def _repeat(self, again, function, count):
        with self.ops.session():
            for _ in range(count):
                again(function)
            self.ops.to_host(self.model.step)  # waits for the device
