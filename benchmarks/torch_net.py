"""The seed network and its training step in PyTorch, as its users write them."""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class Net(nn.Module):
    """The notebook's network. Batch norm after ReLU, epsilon 1e-3; padding as TensorFlow has it."""

    def __init__(self, momentum=0.99, dropout=0.4):
        super().__init__()

        def block(channels, filters, kernel, stride=1):
            pad = [nn.ZeroPad2d((1, 2, 1, 2))] if stride == 2 else []
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
        """Take one net's weights from a list in Keras's order and layout."""
        weights = [torch.from_numpy(np.ascontiguousarray(weight)) for weight in weights]
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight.copy_(weights.pop(0).permute(3, 2, 0, 1))
                    module.bias.copy_(weights.pop(0))
                elif isinstance(module, nn.BatchNorm2d):
                    for tensor in (
                        module.weight,
                        module.bias,
                        module.running_mean,
                        module.running_var,
                    ):
                        tensor.copy_(weights.pop(0))
                elif isinstance(module, nn.Linear):
                    module.weight.copy_(weights.pop(0).T)
                    module.bias.copy_(weights.pop(0))


def augment(images, recipe):
    """Random rotation, zoom and shift of images (B, 1, 28, 28), as the recipe has them."""
    B, side = len(images), images.shape[-1]

    def draw(spread):
        return (torch.rand(B) * 2 - 1) * spread

    theta = draw(math.radians(recipe.rotation))
    cos, sin = theta.cos(), theta.sin()
    zx, zy = 1 + draw(recipe.zoom), 1 + draw(recipe.zoom)
    # In affine_grid's coordinates, from pixel centre to pixel centre, the image is 2 wide.
    unit = 2 / (side - 1)
    tx, ty = draw(recipe.width_shift * side * unit), draw(recipe.height_shift * side * unit)
    rows = [cos * zx, -sin * zy, cos * tx - sin * ty, sin * zx, cos * zy, sin * tx + cos * ty]
    matrices = torch.stack(rows, dim=1).reshape(B, 2, 3)
    grid = F.affine_grid(matrices, images.shape, align_corners=True)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=True)


class Training:
    """One net, its optimizer and the data set: call it for a training step."""

    def __init__(self, images, labels, recipe, channels_last=False, compiled=False):
        self.images = torch.from_numpy(images)[:, None]  # (N, 1, 28, 28) uint8
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.recipe = recipe
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.net = Net(recipe.momentum, recipe.dropout).to(memory_format=self.format)
        self.optimizer = torch.optim.Adam(self.net.parameters(), recipe.learning_rate, eps=1e-7)
        self.forward = torch.compile(self.net) if compiled else self.net

    def __call__(self):
        chosen = torch.randint(len(self.images), (self.recipe.batch_size,))
        x = augment(self.images[chosen].float() / 255, self.recipe)
        x = x.contiguous(memory_format=self.format)
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.forward(x), self.labels[chosen])
        loss.backward()
        self.optimizer.step()
