"""The seed network's training step in PyTorch on a GPU, in the ways in which its users speed it up.

One net: as it stands, with the channels last, in bfloat16, as one CUDA graph, compiled. Many nets:
their weights stacked, and torch.func.vmap over them. Each way draws and augments its batch itself.
gpu_frameworks.py lets them take turns with minicnn.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from benchmarks.torch_net import Net

_WARM_UP = 3  # steps before a graph is captured


@dataclass(frozen=True)
class Contender:
    """One way to train `nets` nets, and what is turned on for it."""

    name: str
    nets: int = 1
    tf32: bool = True
    channels_last: bool = False
    bfloat16: bool = False
    graph: bool = False  # the whole step is captured as one CUDA graph
    compiled: bool = False


def groups(nets):
    """[[Contender, ...], ...] for one net and for so many: first what is sure to work.

    A capture that fails may take all of CUDA with it, and compiling takes half a minute each.
    """
    many = f"{nets} nets by vmap"
    return [
        [
            Contender("PyTorch float32", tf32=False),
            Contender("PyTorch TF32"),
            Contender("PyTorch TF32, channels last", channels_last=True),
            Contender("PyTorch bfloat16, channels last", channels_last=True, bfloat16=True),
            Contender(f"PyTorch TF32, {many}", nets),
            Contender(f"PyTorch bfloat16, {many}", nets, bfloat16=True),
        ],
        [
            Contender("PyTorch TF32, CUDA graph", graph=True),
            Contender("PyTorch TF32, channels last, CUDA graph", channels_last=True, graph=True),
            Contender("PyTorch bfloat16, CUDA graph", bfloat16=True, graph=True),
            Contender(f"PyTorch TF32, {many}, CUDA graph", nets, graph=True),
            Contender(f"PyTorch bfloat16, {many}, CUDA graph", nets, bfloat16=True, graph=True),
        ],
        [Contender("PyTorch bfloat16, compiled", bfloat16=True, compiled=True)],
        [Contender(f"PyTorch TF32, {many}, compiled", nets, compiled=True)],
        [Contender("PyTorch TF32, compiled", compiled=True)],
    ]


def device_name():
    """The GPU as PyTorch calls it. Raises RuntimeError where PyTorch has none."""
    if not torch.cuda.is_available():
        raise RuntimeError(f"PyTorch {torch.__version__} finds no GPU")
    return torch.cuda.get_device_name()


def synchronous_product(n, tf32):
    """A function that multiplies two matrices (n, n) on the GPU, and waits for it."""
    a, b = torch.rand(2, n, n, device="cuda")
    out = torch.empty_like(a)
    torch.backends.cuda.matmul.allow_tf32 = tf32

    def product():
        torch.matmul(a, b, out=out)
        torch.cuda.synchronize()

    return product


class Training:
    """A contender's nets, optimizer and data set: call it for so many training steps.

    It returns when the device is done with them. The loss of the last step is `loss`.
    """

    def __init__(self, contender, images, labels, recipe, device="cuda"):
        self.contender, self.recipe, self.device = contender, recipe, torch.device(device)
        self.images = torch.from_numpy(images)[:, None].to(self.device)  # (N, 1, 28, 28) uint8
        self.labels = torch.from_numpy(labels.astype(np.int64)).to(self.device)
        self.format = torch.channels_last if contender.channels_last else torch.contiguous_format
        self.loss = None
        on_gpu = self.device.type == "cuda"
        self._allow_tf32()
        torch.backends.cudnn.benchmark = True
        parameters, self.forward = self._one() if contender.nets == 1 else self._many()
        if contender.compiled:
            self.forward = torch.compile(self.forward, mode="reduce-overhead")
        self.optimizer = torch.optim.Adam(
            parameters, recipe.learning_rate, eps=1e-7, fused=on_gpu, capturable=on_gpu
        )
        self._step = self._captured() if contender.graph and on_gpu else self.step

    def __call__(self, steps=1):
        self._allow_tf32()
        for _ in range(steps):
            self._step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def step(self):
        """One training step of every net."""
        recipe, nets = self.recipe, self.contender.nets
        count = nets * recipe.batch_size
        chosen = torch.randint(len(self.images), (count,), device=self.device)
        x = augment(self.images[chosen].float() / 255, recipe).contiguous(memory_format=self.format)
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.contender.bfloat16):
            logits = self.forward(x)
        # The mean over all nets' images, times the nets: each net's own mean, summed.
        self.loss = nets * F.cross_entropy(logits.float(), self.labels[chosen])
        self.loss.backward()
        self.optimizer.step()

    def _net(self):
        net = Net(self.recipe.momentum, self.recipe.dropout)
        return net.to(self.device, memory_format=self.format)

    def _one(self):
        """(parameters, images (B, 1, 28, 28) to logits (B, 10)) of one net."""
        net = self._net()
        return list(net.parameters()), net

    def _many(self):
        """The same of many nets, whose images stand one net's behind another's."""
        nets = [self._net() for _ in range(self.contender.nets)]
        parameters, buffers = torch.func.stack_module_state(nets)

        def of_one(parameters, buffers, x):
            return torch.func.functional_call(nets[0], (parameters, buffers), (x,))

        of_all = torch.func.vmap(of_one, randomness="different")

        def forward(x):
            shape = len(nets), -1, *x.shape[1:]
            return of_all(parameters, buffers, x.reshape(shape)).flatten(0, 1)

        return list(parameters.values()), forward

    def _captured(self):
        """The step as a CUDA graph; what it needs once is made before, on a stream of its own."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay

    def _allow_tf32(self):
        """PyTorch has one such setting for all."""
        torch.backends.cuda.matmul.allow_tf32 = self.contender.tf32
        torch.backends.cudnn.allow_tf32 = self.contender.tf32


def augment(images, recipe):
    """torch_net.py's augmentation, drawn in one go where the images (B, 1, 28, 28) are."""
    B, side = len(images), images.shape[-1]
    theta, zx, zy, tx, ty = torch.rand(5, B, device=images.device) * 2 - 1
    theta = theta * math.radians(recipe.rotation)
    cos, sin = theta.cos(), theta.sin()
    zx, zy = 1 + zx * recipe.zoom, 1 + zy * recipe.zoom
    unit = 2 * side / (side - 1)  # a fraction of the image in affine_grid's coordinates
    tx, ty = tx * (recipe.width_shift * unit), ty * (recipe.height_shift * unit)
    rows = [cos * zx, -sin * zy, cos * tx - sin * ty, sin * zx, cos * zy, sin * tx + cos * ty]
    matrices = torch.stack(rows, dim=1).reshape(B, 2, 3)
    grid = F.affine_grid(matrices, images.shape, align_corners=True)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=True)
