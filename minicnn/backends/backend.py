"""What a backend offers: all that layers, models and training know of a device.

Three backends follow this declaration: ops_numpy.py, a module of plain functions; ops_cpu.py, with
kernels in C; ops_cuda.py, with kernels in CUDA. devices.py chooses one. ops_numpy.py defines what
each operation computes; the signatures below are the same everywhere.

Shapes: E nets, B images of a batch (N of a data set), H W rows and columns, Cin Cout channels (C
where they are equal), Ho Wo output rows and columns, K = kh*kw*Cin, or the inputs of a dense layer.
`...` stands for the axes of any layer's output.

- An operation writes its results into arrays of the caller, and allocates none.
- dx is the gradient of the loss with respect to x; dz is the one with respect to a layer's output
  before its activation.
- `window` is a geometry.Window.
- `workspace` is an array of bytes, as many as the operation's `..._workspace` returns for the sizes
  of the call. Its content does not outlive the operation.
- `step`, an integer, is an array of one element on the device, so that a captured step reads its
  current value. `learning_rate` (n,) float64 lies there, too: it holds the rate of each step.
"""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Backend(Protocol):
    """The declaration. An object or a module with these members is an instance of it."""

    name: str  # of the device
    dtypes = ("float32",)  # that a model may have
    precisions = ("float32",)  # of products that the device offers, ...
    precision = "float32"  # ... and the one that this backend uses
    lockstep = False  # whether nets train faster together than one after the other
    threaded = False  # if not lockstep: whether the threads of a process share the work for a net
    capture = None  # or capture(function): a function that repeats all that function() would do

    def session(self):
        """A context manager; operations run within it."""

    def fusion(self, nodes, nets, batch):
        """A network of fused operations for these stack.Nodes; None: they run layer by layer.

        Such a network has `layout`, as plan.plan_layout, and `plan`, which makes a plan.Plan.
        """

    def free_memory(self):
        """Bytes that arrays may still take; None where the system does not say."""

    # ---- arrays: NumPy's, or another kind with the same attributes and indexing ----------------

    def empty(self, shape, dtype):
        """An array whose content is not set."""

    def zeros(self, shape, dtype):
        """An array of zeros."""

    def to_device(self, array):
        """A NumPy array as one of the device's."""

    def to_host(self, array, out=None):
        """A NumPy copy of one of the device's arrays; in `out`, a NumPy array, if it is given."""

    def copy(self, source, target):
        """Copy one of the device's arrays into another of the same shape."""

    # ---- the batch -----------------------------------------------------------------------------

    def load_batch(self, images, labels, order, ranges, seed, nets, step, x, y):
        """images (N, H, W) or (N, H, W, C), labels (N,) or None, order (E, steps, B), ranges (2, 5)
        or (2, 7) or None -> x (E, B, H, W, C) and, unless labels is None, y (E, B).
        """

    # ---- activations, in place -----------------------------------------------------------------

    def activate(self, name, y):
        """y (E, B, ...) -> y."""

    def activate_backward(self, name, y, dy):
        """y, dy (E, B, ...) -> dy, with respect to the activation's input."""

    # ---- convolution ---------------------------------------------------------------------------

    def conv2d_workspace(self, nets, batch, window, channels, filters):
        """Bytes of workspace for any of the three passes."""

    def conv2d(self, x, kernel, bias, window, activation, y, workspace):
        """x (E, B, H, W, Cin), kernel (E, kh, kw, Cin, Cout), bias (E, Cout)
        -> y (E, B, Ho, Wo, Cout).
        """

    def conv2d_weight_gradient(self, x, dz, window, dkernel, dbias, workspace):
        """x (E, B, H, W, Cin), dz (E, B, Ho, Wo, Cout) -> dkernel, dbias."""

    def conv2d_input_gradient(self, dz, kernel, window, dx, workspace):
        """dz (E, B, Ho, Wo, Cout), kernel (E, kh, kw, Cin, Cout) -> dx (E, B, H, W, Cin)."""

    # ---- dense layers --------------------------------------------------------------------------

    def dense_workspace(self, nets, batch, inputs, units):
        """Bytes of workspace for any of the three passes."""

    def dense(self, x, kernel, bias, activation, y, workspace):
        """x (E, B, K), kernel (E, K, units), bias (E, units) -> y (E, B, units)."""

    def dense_weight_gradient(self, x, dz, dkernel, dbias, workspace):
        """x (E, B, K), dz (E, B, units) -> dkernel, dbias."""

    def dense_input_gradient(self, dz, kernel, dx, workspace):
        """dz (E, B, units), kernel (E, K, units) -> dx (E, B, K)."""

    # ---- batch normalisation -------------------------------------------------------------------

    def batch_norm_workspace(self, nets, batch, shape):
        """Bytes of workspace for either pass; `shape` is an image's, (..., C)."""

    def batch_norm(self, x, gamma, beta, epsilon, mean, variance, y, workspace):
        """x (E, B, ..., C), gamma, beta (E, C) -> y (E, B, ..., C), mean, variance (E, C)."""

    def batch_norm_inference(self, x, gamma, beta, epsilon, mean, variance, y):
        """x (E, B, ..., C), gamma, beta, mean, variance (E, C) -> y (E, B, ..., C)."""

    def batch_norm_backward(
        self, x, dy, gamma, epsilon, mean, variance, dx, dgamma, dbeta, workspace, activation
    ):
        """x, dy (E, B, ..., C), gamma, mean, variance (E, C) -> dx, dgamma, dbeta."""

    def update_moving(self, moving, batch, momentum):
        """moving, batch (E, C) -> moving, in place."""

    # ---- dropout -------------------------------------------------------------------------------

    def dropout(self, x, rate, seed, nets, stream, step, mask, y):
        """x (E, B, ...), nets (E,) -> mask, a bool for each element, and y (E, B, ...)."""

    def dropout_backward(self, dy, rate, mask, dx):
        """dy, mask (E, B, ...) -> dx."""

    # ---- max pooling ---------------------------------------------------------------------------

    def max_pool(self, x, window, winner, y):
        """x (E, B, H, W, C) -> y and, unless it is None, winner (E, B, Ho, Wo, C) uint16."""

    def max_pool_backward(self, dy, window, winner, dx):
        """dy, winner (E, B, Ho, Wo, C) -> dx (E, B, H, W, C)."""

    # ---- loss, metrics, optimizer --------------------------------------------------------------

    def softmax_cross_entropy(self, logits, labels, smoothing, loss, correct, dlogits):
        """logits (E, B, classes), labels (E, B), a number -> loss, correct (E,), dlogits."""

    def accumulate(self, loss, correct, step, sums):
        """loss, correct (E,) -> sums (E, 3) float64, in place, unless it is None; step += 1."""

    def collect(self, source, step, target):
        """source (E, ...) -> target (E, steps, ...) at `step`; step += 1."""

    def adam(self, params, gradients, m, v, step, learning_rate, beta_1, beta_2, epsilon):
        """params, gradients, m, v (E, P), learning_rate (n,) -> params, m, v, in place.

        The step with number s, from 0, takes learning_rate[s % n]; `step` is s.
        """

    def average(self, params, averaged, step, shares):
        """params (E, P), shares (n,) float64 -> averaged (E, P), in place, after a step.

        The step with number s, from 0, takes shares[s % n]; `step` is s + 1.
        """
