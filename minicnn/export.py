"""python -m minicnn.export: reads a checkpoint, writes its nets in the format of another program.

This module reads the arguments. exports/ writes the formats.
"""

import sys
from pathlib import Path

from .command import CHECKPOINT_HELP, EXIT_STATUS, Parser, check_out_file, run_short
from .exports import save_keras, save_onnx, save_pytorch, save_safetensors
from .model import load_model
from .training.workers import Interrupted

# {--to: (the format's name, the function that writes it, whether it computes probabilities)}
_FORMATS = {
    "safetensors": ("safetensors", save_safetensors, False),
    "onnx": ("ONNX", save_onnx, True),
    "keras": ("Keras", save_keras, True),
    "pytorch": ("PyTorch", save_pytorch, False),
}

_FORMATS_HELP = """\
What --to writes:
  safetensors    the weights of all nets as named arrays
  onnx           one graph: images in, the ensemble's probabilities out
  keras          a .keras file for Keras 3: images in, the ensemble's probabilities out
  pytorch        a state dict of all nets, for torch.load
minicnn/exports/README.md says how to load each of them. Nets that diverged are left
out. The first two need pip install "minicnn[export]", the others Keras and PyTorch."""


def main(argv=None):
    """Run the command; returns its exit status."""
    return run_short(_parser(), export, argv)


def export(arguments, should_stop=lambda: False):
    """Write the nets of a checkpoint, as the parsed arguments say."""
    name, save, computes = _FORMATS[arguments.to]
    if arguments.each_net and not computes:
        raise ValueError(
            f"argument --each-net: got --to {arguments.to}, expected onnx or keras: the other "
            "formats hold the weights of each net"
        )
    check_out_file(arguments.out)
    model = load_model(arguments.checkpoint, device="numpy")  # it only holds the weights
    if should_stop():
        raise Interrupted
    save(model, arguments.out, **({"each_net": True} if arguments.each_net else {}))
    nets = f"{len(model.nets):,} net{'s' * (len(model.nets) > 1)}"
    size = arguments.out.stat().st_size / 1e6
    print(f"{nets} for {name}, {size:,.1f} MB: {arguments.out}")


def _parser():
    parser = Parser(
        prog="minicnn.export",
        usage="python -m minicnn.export --checkpoint FILE --to FORMAT --out FILE [--each-net]",
        description="Write the nets of a trained ensemble in the format of another program.",
        epilog=f"{EXIT_STATUS}\n\n{_FORMATS_HELP}",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint", required=True, type=Path, metavar="FILE", help=CHECKPOINT_HELP
    )
    parser.add_argument(
        "--to",
        required=True,
        choices=_FORMATS,
        help="the format, one of those listed below",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--each-net",
        action="store_true",
        help="for onnx and keras: the output is the probabilities of each net, not their mean",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
