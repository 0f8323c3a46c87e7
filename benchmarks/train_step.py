"""python -m benchmarks.train_step: images a second of the seed's training step, beside PyTorch.

One process, one core, batch 64, augmentation included on both sides; in one run, in turn. First
both must compute the same function: equal weights in, equal predictions and loss out.
"""

import argparse
import sys

import numpy as np

from benchmarks import timing
from minicnn import __version__, ensemble, load_data, mnist_cnn
from minicnn.recipe import RECIPES

try:
    import torch
    from torch.nn import functional as F  # noqa: N812

    from benchmarks.torch_net import Net, Training
except ImportError:
    sys.exit("benchmarks.train_step needs PyTorch: pip install torch")

TOLERANCE = 1e-3


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.train_step", description=__doc__)
    parser.add_argument("--device", choices=["numpy"], default="numpy", help="default: numpy")
    parser.add_argument("--rounds", type=int, default=9, help="default: 9")
    parser.add_argument("--seconds", type=float, default=3, help="a contender and round, default 3")
    parser.add_argument("--out", help="default: benchmarks/results/train-step-DEVICE-DATE.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    differences = check_equal(arguments.device)
    (images, labels), _ = load_data("digits")
    recipe = RECIPES["seed"]
    contenders = {
        f"minicnn {arguments.device}": minicnn_step(images, labels, recipe, arguments.device),
        "PyTorch": Training(images, labels, recipe),
        "PyTorch channels_last": Training(images, labels, recipe, channels_last=True),
    }
    times = timing.alternate(contenders, arguments.rounds, arguments.seconds)
    rates = {name: timing.summarize(t, recipe.batch_size) for name, t in times.items()}
    ours, *theirs = (rate["images_per_second"] for rate in rates.values())
    result = {
        "what": "training step, one net, batch 64, augmentation included, one process, one core",
        "images_per_second": rates,
        "ratio_to_best_pytorch": ours / max(theirs),
        "largest_difference_to_pytorch": differences,
        "machine": timing.machine(),
        "versions": {
            "minicnn": __version__,
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
    }
    for name, rate in rates.items():
        print(f"{name:<24}{rate['images_per_second']:8.0f} images a second")
    print(f"{result['ratio_to_best_pytorch']:.2f} times the best PyTorch")
    timing.write(f"train-step-{arguments.device}", result, arguments.out)


def minicnn_step(images, labels, recipe, device):
    """A training step of one net: gather, augment, forward, backward, Adam."""
    job = ensemble.Job(recipe, ensemble.Data(images, labels), device, "float32", None)
    trainer = ensemble.Trainer(job, range(1, 2))
    trainer.begin_epoch(0)

    def step():
        with trainer.ops.session():
            trainer.step()

    return step


def check_equal(device):
    """Largest differences to PyTorch; ends the benchmark where they are not small.

    Predictions and loss as they are benchmarked; the gradient of the first kernel, behind all the
    others, in float64: in float32 a rounding that switches one ReLU moves it by a thousandth.
    """
    rng = np.random.default_rng(0)
    x = rng.random((1, 64, 28, 28, 1), np.float32)
    y = rng.integers(0, 10, (1, 64))
    model = mnist_cnn(nets=1, device=device, dropout=0)
    for _ in range(3):  # away from the start, where every bias is 0 and every gamma 1
        model.train_on_batch(x, y, 1e-3)
    weights = model.get_weights()
    net = Net(dropout=0)
    net.take_weights([weight[0] for weight in weights])
    images, labels = torch.from_numpy(x[0]).permute(0, 3, 1, 2), torch.from_numpy(y[0])
    with torch.no_grad():
        probabilities = net.eval()(images).softmax(dim=1).numpy()
        loss = F.cross_entropy(net.train()(images), labels).item()
    differences = {
        "predictions": float(np.abs(model.predict(x[0])[0] - probabilities).max()),
        "loss": abs(float(model.loss_and_gradients(x, y)[0][0]) / loss - 1),
    }

    exact = mnist_cnn(nets=1, device="numpy", dropout=0, dtype="float64")
    exact.set_weights(weights)
    ours = exact.loss_and_gradients(x.astype(np.float64), y)[1][0][0]
    net = Net(dropout=0).double()
    net.take_weights([weight[0] for weight in weights])
    F.cross_entropy(net(images.double()), labels).backward()
    theirs = net.features[0].weight.grad.permute(2, 3, 1, 0).numpy()
    differences["gradient in float64"] = float(
        np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    )
    for name, difference in differences.items():
        if not difference < TOLERANCE:
            sys.exit(f"PyTorch's net is another function: {name} differ by {difference:.1e}")
    return differences


if __name__ == "__main__":
    main()
