"""What is compared: the seed network in each framework, in the ways its users speed it up.

A `Contender` is one such way. Its framework's module has a class `Training`, which works in a
process of its own (crew.py):

    Training(contender, images, labels, recipe)     uint8 (N, 28, 28), (N,); a Recipe
    take_weights(weights)       every net gets the weights, one net's in Keras's order and layout
    predict(x)                  x (B, 28, 28, 1) -> probabilities (E, B, 10)
    train_on(x, y)              one step of every net on this batch, not augmented -> losses (E,)
    warp(x, theta, tx, ty, zx, zy)                  the augmentation with given parameters
    train(steps)                steps that draw and augment their batches; finished on return
    infer(batches)              predicts so many batches of prepared images; finished on return
    stride                      train and infer take multiples of this
"""

import importlib
import importlib.util
import math
from dataclasses import dataclass, replace

_THREADS = "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"


@dataclass(frozen=True)
class Contender:
    """A framework and its options."""

    name: str
    framework: str  # the module of this package
    device: str = "cpu"  # one of minicnn's; "cpu" or "cuda" for the frameworks
    nets: int = 1  # trained together
    precision: str = "float32"
    backend: str | None = None  # Keras's
    channels_last: bool = False
    compiled: bool = False
    graph: bool = False  # a step is captured as one CUDA graph
    scan: bool = False  # one call makes many steps
    commit: str | None = None  # an earlier one, whose minicnn this is
    folder: str | None = None  # of that commit's files

    @property
    def packages(self):
        """The packages that it needs, beside minicnn's own."""
        if self.framework == "keras_net":
            return "keras", "scipy", self.backend
        return {"torch_net": ("torch",), "jax_net": ("jax",)}.get(self.framework, ())

    @property
    def missing(self):
        """Those that are not installed."""
        return [package for package in self.packages if not importlib.util.find_spec(package)]

    @property
    def slow_to_start(self):
        """Whether it compiles for long or takes seconds a step."""
        return self.compiled or self.scan or self.nets > 1 or self.precision == "bfloat16"

    @property
    def exact(self):
        """The same contender in float32."""
        return replace(self, precision="float32")

    def environment(self, threads):
        """{variable: value} to be set before its framework is imported."""
        found = {
            # By default glibc's malloc returns freed memory to the system, and a step that
            # allocates its arrays, as PyTorch's does, fetches it again page by page. With these
            # settings malloc keeps it, which makes PyTorch a quarter faster.
            "MALLOC_TRIM_THRESHOLD_": "2000000000",
            "MALLOC_MMAP_THRESHOLD_": "2000000000",
            **dict.fromkeys(_THREADS, str(threads)),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # contenders share the GPU's memory
            "KERAS_BACKEND": self.backend or "",
            "JAX_PLATFORMS": "cuda" if self.device == "cuda" else "cpu",
        }
        return found if self.device == "cuda" else {**found, "CUDA_VISIBLE_DEVICES": ""}

    def load(self):
        """Import its framework; returns the module here that uses it."""
        return importlib.import_module(f"{__name__}.{self.framework}")

    def training(self, images, labels, recipe):
        """Its Training."""
        return self.load().Training(self, images, labels, recipe)


def augmentation(recipe, side, theta, tx, ty, zx, zy):
    """A recipe's parameters of `warp`, with theta in radians, from arrays of draws in [-1, 1].

    side: rows and columns of the images.
    """
    return (
        theta * math.radians(recipe.rotation),
        tx * (recipe.width_shift * side),
        ty * (recipe.height_shift * side),
        1 + zx * recipe.zoom,
        1 + zy * recipe.zoom,
    )


def on_cpu(nets):
    """The contenders on a CPU; `nets` is the number that some train together."""
    torch, keras, jax = "torch_net", "keras_net", "jax_net"
    bfloat16 = {"channels_last": True, "precision": "bfloat16"}
    return [
        Contender("minicnn cpu", "minicnn_net", "cpu"),
        Contender("minicnn numpy", "minicnn_net", "numpy"),
        Contender("PyTorch", torch),
        Contender("PyTorch channels_last", torch, channels_last=True),
        Contender("PyTorch compiled", torch, compiled=True),
        Contender("PyTorch compiled, channels_last", torch, compiled=True, channels_last=True),
        Contender("PyTorch bfloat16, channels_last", torch, **bfloat16),
        Contender(f"PyTorch {nets} nets by vmap", torch, nets=nets, channels_last=True),
        Contender("Keras (PyTorch)", keras, backend="torch"),
        Contender("Keras (JAX)", keras, backend="jax"),
        Contender("JAX", jax),
        Contender("JAX scan over steps", jax, scan=True),
        Contender(f"JAX {nets} nets by vmap", jax, nets=nets),
    ]


def at_commit(commit, folder=None):
    """The kernels in C of an earlier commit, whose files are in `folder`."""
    name, folder = f"minicnn at {commit}, float32", folder and str(folder)
    return Contender(name, "commit_net", "cpu", commit=commit, folder=folder)


def on_cuda(nets):
    """The contenders on a GPU; `nets` is the number that some train together."""
    many = f"{nets} nets by vmap"

    def ours(precision, nets=1):
        name = f"minicnn {precision}, {nets} net{'s' * (nets > 1)}"
        return Contender(name, "minicnn_net", "cuda", nets, precision)

    def torch(name, precision="tf32", nets=1, **options):
        return Contender(f"PyTorch {name}", "torch_net", "cuda", nets, precision, **options)

    def jax(name, nets=1, **options):
        return Contender(f"JAX {name}", "jax_net", "cuda", nets, "tf32", **options)

    def keras(name, backend):
        return Contender(f"Keras ({name})", "keras_net", "cuda", 1, "tf32", backend)

    last = {"channels_last": True}
    return [
        *(ours(precision, n) for precision in ("bfloat16", "tf32", "float32") for n in (1, nets)),
        torch("float32", "float32"),
        torch("TF32"),
        torch("TF32, channels_last", **last),
        torch("bfloat16, channels_last", "bfloat16", **last),
        torch("TF32, CUDA graph", graph=True),
        torch("TF32, channels_last, CUDA graph", graph=True, **last),
        torch("bfloat16, channels_last, CUDA graph", "bfloat16", graph=True, **last),
        torch("TF32, compiled", compiled=True),
        torch("TF32, compiled, channels_last", compiled=True, **last),
        torch("bfloat16, compiled, channels_last", "bfloat16", compiled=True, **last),
        torch(f"TF32, {many}", nets=nets),
        torch(f"bfloat16, {many}", "bfloat16", nets),
        torch(f"TF32, {many}, CUDA graph", nets=nets, graph=True),
        torch(f"bfloat16, {many}, CUDA graph", "bfloat16", nets, graph=True),
        torch(f"TF32, {many}, compiled", nets=nets, compiled=True),
        keras("PyTorch", "torch"),
        keras("JAX", "jax"),
        jax("TF32"),
        jax("TF32, scan over steps", scan=True),
        jax(f"TF32, {many}", nets),
        jax(f"TF32, {many}, scan over steps", nets, scan=True),
    ]
