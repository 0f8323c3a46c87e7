"""The seed network and its training step in PyTorch, in the ways its users speed it up.

One net: as it is, with channels last, in bfloat16, compiled, as one CUDA graph. Many nets: stacked
weights and torch.func.vmap.
"""

import contextlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from benchmarks import contenders

_WARM_UP = 3  # calls before a graph is captured


class Net(nn.Module):
    """The notebook's network: batch norm after ReLU, epsilon 1e-3, TensorFlow's padding.

    The running variance is PyTorch's, n / (n - 1) times Keras's: 1.6 % more where n is smallest.
    """

    padding = 1, 2  # of the strided convolutions: rows and columns before and after

    def __init__(self, momentum=0.99, dropout=0.4):
        super().__init__()

        def block(channels, filters, kernel, stride=1):
            pad = [nn.ZeroPad2d(self.padding * 2)] if stride == 2 else []
            return [
                *pad,
                nn.Conv2d(channels, filters, kernel, stride),
                nn.ReLU(inplace=True),
                nn.BatchNorm2d(filters, eps=1e-3, momentum=1 - momentum),
            ]

        self.features = nn.Sequential(
            *block(1, 32, 3),
            *block(32, 32, 3),
            *block(32, 32, 5, 2),
            nn.Dropout(dropout),
            *block(32, 64, 3),
            *block(64, 64, 3),
            *block(64, 64, 5, 2),
            nn.Dropout(dropout),
            *block(64, 128, 4),
            nn.Flatten(),
            nn.Dropout(dropout),
        )
        self.classifier = nn.Linear(128, 10)

    def forward(self, x):
        """Logits (B, 10) of images (B, 1, 28, 28)."""
        return self.classifier(self.features(x))

    def take_weights(self, weights):
        """Copy one net's weights from a list in Keras's order and layout."""
        weights = [torch.from_numpy(np.ascontiguousarray(weight)) for weight in weights]
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight.copy_(weights.pop(0).permute(3, 2, 0, 1))
                    module.bias.copy_(weights.pop(0))
                elif isinstance(module, nn.BatchNorm2d):
                    for name in ("weight", "bias", "running_mean", "running_var"):
                        getattr(module, name).copy_(weights.pop(0))
                elif isinstance(module, nn.Linear):
                    module.weight.copy_(weights.pop(0).T)
                    module.bias.copy_(weights.pop(0))


class Training:
    """A contender's nets, optimizer and data set: see __init__.py."""

    stride = 1
    net = Net

    def __init__(self, contender, images, labels, recipe):
        self.contender, self.recipe = contender, recipe
        self.device = torch.device(contender.device)
        self.on_gpu = self.device.type == "cuda"
        self.images = torch.from_numpy(images)[:, None].to(self.device)  # (N, 1, 28, 28) uint8
        self.labels = torch.from_numpy(labels.astype(np.int64)).to(self.device)
        self.format = torch.channels_last if contender.channels_last else torch.contiguous_format
        self.ready = self._on_device(self.images[: recipe.batch_size].float() / 255)
        allow_tf32(contender.precision != "float32")
        torch.backends.cudnn.benchmark = True
        self.nets = [
            self.net(recipe.momentum, recipe.dropout).to(self.device, memory_format=self.format)
            for _ in range(contender.nets)
        ]
        self.parameters, self.forward = self._one() if contender.nets == 1 else self._many()
        if contender.compiled:
            # On a GPU this mode captures CUDA graphs, too.
            mode = "reduce-overhead" if self.on_gpu else "default"
            self.forward = torch.compile(self.forward, mode=mode)
        self.optimizer = torch.optim.Adam(
            self.parameters, recipe.learning_rate, eps=1e-7, fused=True, capturable=self.on_gpu
        )
        self._step = self._infer = None  # captured, where the contender does

    def take_weights(self, weights):
        """Give all nets the weights of one."""
        source = self.net().to(self.device)
        source.take_weights(weights)
        state = source.state_dict()
        stacked = self.contender.nets > 1
        targets = self.stacked if stacked else self.nets[0].state_dict()
        with torch.no_grad():
            for name, target in targets.items():
                target.copy_(state[name])  # broadcasts along the net axis, if there is one

    def predict(self, x):
        """Probabilities (E, B, 10) of x (B, 28, 28, 1)."""
        x = self._on_device(torch.from_numpy(x).permute(0, 3, 1, 2))
        found = self._probabilities(x).float().cpu().numpy()
        return found.reshape(self.contender.nets, len(x), -1)

    def train_on(self, x, y):
        """One step of every net on the same batch; losses (E,)."""
        nets = self.contender.nets
        x = self._on_device(torch.from_numpy(x).permute(0, 3, 1, 2)).repeat(nets, 1, 1, 1)
        y = torch.from_numpy(y.astype(np.int64)).to(self.device).repeat(nets)
        losses = self._update(x.contiguous(memory_format=self.format), y)
        return losses.reshape(nets, -1).mean(dim=1).detach().cpu().numpy()

    def warp(self, x, theta, tx, ty, zx, zy):
        """Augment x (B, 28, 28, 1) with given degrees, pixels and factors."""
        x = torch.from_numpy(x).permute(0, 3, 1, 2).to(self.device)
        drawn = np.stack([np.radians(theta), tx, ty, zx, zy]).astype(np.float32)
        warped = warp(x, *torch.from_numpy(drawn).to(self.device))
        return warped.permute(0, 2, 3, 1).cpu().numpy()

    def train(self, steps):
        """Make `steps` training steps, and wait for them."""
        self._train_mode(True)
        self._step = self._step or self._captured(self.step)
        for _ in range(steps):
            self._step()
        self._synchronize()

    def infer(self, batches):
        """Predict the prepared batch `batches` times."""
        self._train_mode(False)
        self._infer = self._infer or self._captured(lambda: self._probabilities(self.ready))
        for _ in range(batches):
            self._infer()
        self._synchronize()

    def step(self):
        """One training step of every net on a batch that is drawn and augmented."""
        count = self.contender.nets * self.recipe.batch_size
        chosen = torch.randint(len(self.images), (count,), device=self.device)
        x = self.images[chosen].float() / 255
        drawn = torch.rand(5, count, device=self.device) * 2 - 1
        x = warp(x, *contenders.augmentation(self.recipe, x.shape[-1], *drawn))
        self._update(x.contiguous(memory_format=self.format), self.labels[chosen])

    def _update(self, x, y):
        """A step on the nets' batches, concatenated; returns the loss of each image."""
        self._train_mode(True)
        self.optimizer.zero_grad()
        with self._autocast():
            logits = self.forward(x)
        losses = F.cross_entropy(logits.float(), y, reduction="none")
        # The sum over the nets of each net's mean loss.
        (self.contender.nets * losses.mean()).backward()
        self.optimizer.step()
        return losses

    @torch.no_grad()
    def _probabilities(self, x):
        """Probabilities (E * B, 10) of the same images by every net."""
        self._train_mode(False)
        with self._autocast():
            return self.forward(x.repeat(self.contender.nets, 1, 1, 1)).float().softmax(dim=1)

    def _one(self):
        """(parameters, images (B, 1, 28, 28) to logits (B, 10)) of one net."""
        return list(self.nets[0].parameters()), self.nets[0]

    def _many(self):
        """(parameters, images (E * B, 1, 28, 28) to logits (E * B, 10)) of many nets."""
        parameters, buffers = torch.func.stack_module_state(self.nets)
        self.stacked = parameters | buffers

        def of_one(parameters, buffers, x):
            return torch.func.functional_call(self.nets[0], (parameters, buffers), (x,))

        of_all = torch.func.vmap(of_one, randomness="different")

        def forward(x):
            shape = len(self.nets), -1, *x.shape[1:]
            return of_all(parameters, buffers, x.reshape(shape)).flatten(0, 1)

        return list(parameters.values()), forward

    def _captured(self, function):
        """A function as a CUDA graph, where the contender uses graphs.

        Warm-up calls on another stream allocate and compile before the capture.
        """
        if not (self.contender.graph and self.on_gpu):
            return function
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        return graph.replay

    def _on_device(self, x):
        return x.to(self.device).contiguous(memory_format=self.format)

    def _autocast(self):
        if self.contender.precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _train_mode(self, training):
        if self.nets[0].training != training:
            self.nets[0].train(training)

    def _synchronize(self):
        if self.on_gpu:
            torch.cuda.synchronize()


def allow_tf32(allowed):
    """Allow or forbid TF32 in the whole process."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def warp(images, theta, tx, ty, zx, zy):
    """Images (B, 1, 28, 28) rotated by theta (B,) radians, shifted by pixels, zoomed."""
    cos, sin = theta.cos(), theta.sin()
    # In affine_grid's coordinates the distance from the first to the last pixel centre is 2.
    unit = 2 / (images.shape[-1] - 1)
    tx, ty = tx * unit, ty * unit
    rows = [cos * zx, -sin * zy, cos * tx - sin * ty, sin * zx, cos * zy, sin * tx + cos * ty]
    matrices = torch.stack(rows, dim=1).reshape(-1, 2, 3)
    grid = F.affine_grid(matrices, images.shape, align_corners=True)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=True)


def synchronous_product(n, tf32):
    """A function that multiplies two matrices (n, n) on the GPU, and waits for it."""
    a, b = torch.rand(2, n, n, device="cuda")
    out = torch.empty_like(a)
    torch.backends.cuda.matmul.allow_tf32 = tf32

    def product():
        torch.matmul(a, b, out=out)
        torch.cuda.synchronize()

    return product
