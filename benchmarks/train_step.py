"""python -m benchmarks.train_step: images a second of the seed's training step, beside PyTorch.

Batch 64, augmentation included on both sides. One process on all cores, which is how one net is
trained, and other splits of the cores into processes and threads, for an ensemble; in one run, in
turn. First both must compute the same function: equal weights in, equal predictions and loss out.
"""

import argparse
import sys

import numpy as np

from benchmarks import timing
from benchmarks.crew import Contender, Crew, compare, ratio
from minicnn import __version__, mnist_cnn
from minicnn.machine import cores

try:
    import torch
    from torch.nn import functional as F  # noqa: N812

    from benchmarks.torch_net import Net
except ImportError:
    sys.exit("benchmarks.train_step needs PyTorch: pip install torch")

TOLERANCE = 1e-3
PYTORCH = [
    Contender("PyTorch"),
    Contender("PyTorch channels_last", channels_last=True),
    Contender("PyTorch compiled", compiled=True),
    Contender("PyTorch compiled, channels_last", channels_last=True, compiled=True),
]


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.train_step", description=__doc__)
    parser.add_argument("--device", choices=["numpy", "cpu"], default="cpu", help="default: cpu")
    parser.add_argument("--rounds", type=int, default=9, help="default: 9")
    parser.add_argument("--seconds", type=float, default=3, help="a contender and round, default 3")
    parser.add_argument("--out", help="default: benchmarks/results/train-step-DEVICE-DATE.json")
    arguments = parser.parse_args()
    differences = check_equal(arguments.device)
    ours = [Contender(f"minicnn {arguments.device}", device=arguments.device)]
    if arguments.device == "cpu":
        ours.append(Contender("minicnn numpy", device="numpy"))
    splits = [(p, cores() // p) for p in range(1, cores() + 1) if cores() % p == 0]
    crews = start([*ours, *PYTORCH], splits)
    rates = compare(crews, arguments.rounds, arguments.seconds)
    for crew in crews.values():
        crew.close()
    result = {
        "what": "training steps of one net a process, batch 64, augmentation included",
        "rates": [
            {"contender": name, "processes": processes, "threads": threads, **rate}
            for (name, processes, threads), rate in rates.items()
        ],
        **ratios(rates, ours[0].name),
        "largest_difference_to_pytorch": differences,
        "machine": timing.machine(),
        "versions": {
            "minicnn": __version__,
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
    }
    for (name, processes, threads), rate in rates.items():
        print(f"{name:<34}{processes} x {threads}{rate['images_per_second']:8.0f} images a second")
    print(f"one process: {result['ratio_of_one_process']:.2f} times the best PyTorch")
    print(f"ensemble: {result['ratio_of_ensembles']:.2f} times, each with its best split")
    timing.write(f"train-step-{arguments.device}", result, arguments.out)


def start(contenders, splits):
    """{(contender's name, processes, threads): Crew}; without those that do not run here."""
    crews = {}
    for contender in contenders:
        for processes, threads in splits:
            try:
                crews[contender.name, processes, threads] = Crew(contender, processes, threads)
            except EOFError:  # torch.compile needs a C++ compiler, for one
                print(f"{contender.name} does not run here", file=sys.stderr)
    return crews


def ratios(rates, ours):
    """By how much we are faster than the best of PyTorch: in one process, and as an ensemble."""

    def best(is_ours, most_processes):
        return [
            rate
            for (name, processes, _), rate in rates.items()
            if processes <= most_processes and (name == ours if is_ours else "PyTorch" in name)
        ]

    return {
        "ratio_of_one_process": ratio(best(True, 1), best(False, 1)),
        "ratio_of_ensembles": ratio(best(True, cores()), best(False, cores())),
    }


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
