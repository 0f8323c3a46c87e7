"""Networks of blocks in C: their passes against NumPy in float64, and to the bit.

test_cpu_block_kernels.py tests the kernels that they run beside convolutions.
"""

import gc
import weakref
from copy import copy
from itertools import product

import numpy as np
import pytest
from cases import relative
from fusing_convolution import FusingConvolution
from hypothesis import given
from hypothesis import strategies as st
from levels import examples
from stacks import batch, follow_signs, state
from test_fusion import FUSED, LAYERED, SHAPE

from minicnn import BatchNormalization, Conv2D, Dense, Dropout, Flatten, Sequential, machine, model
from minicnn.backends.cpu_blocks import BlockPlan
from minicnn.backends.ops_cpu import Operations
from minicnn.network.blocks import find_network
from minicnn.network.plan import Plan, plan_layout
from minicnn.network.stack import connect, layout_bytes

pytestmark = pytest.mark.usefixtures("kernels_in_c")


# ---------------------------------------------------------------------------------------------
# Whole networks, against NumPy in float64


class Stack:
    """A random network of one to three blocks."""

    def __init__(self, seed):
        random = np.random.default_rng(seed)

        def choose(*values):
            return values[random.integers(len(values))]

        self.shape = (*map(int, random.integers(4, 13, 2)), choose(1, 2, 3, 32))
        self.layers, self.E, self.B = [], choose(1, 2, 3), choose(5, 6, 8)
        last = choose("before", "after", "none")
        count = choose(1, 2, 3)
        for i in range(count):
            filters = choose(3, 5, 8, 20, 32, 33, 64)
            size, strides = choose((3, 2), (3, 1), ((2, 3), 1), (1, 1), (5, 2), (3, (2, 1)))
            activation = choose("relu", "relu", "linear")
            self.layers += [
                Conv2D(filters, size, strides, "same", activation),
                BatchNormalization(choose(0.0, 0.1), choose(1e-3, 1e-2)),
            ]
            if last == "before" if i == count - 1 else choose(True, False):
                self.layers += [Dropout(choose(0.2, 0.4))]
        self.layers += [Flatten(), *[Dropout(0.5)] * (last == "after"), Dense(4, "softmax")]

    def __repr__(self):
        kinds = [(type(layer).__name__, *vars(layer).values()) for layer in self.layers]
        return f"Stack of {self.E} nets, batch {self.B}, on {self.shape}: {kinds}"

    def model(self, device, dtype="float32"):
        """Its model, with biases, scales and shifts that are not the initial ones."""
        found = Sequential(self.layers, self.shape, self.E, 3, 7, device, dtype)
        random = np.random.default_rng(5)
        found.set_weights(
            [
                w + random.normal(0, 0.3, w.shape) ** 2 if w.ndim == 2 else w
                for w in found.get_weights()
            ]
        )
        return found


def with_convolution(ops, fuses):
    """The operations with a FusingConvolution."""
    found = copy(ops)
    found.convolution = FusingConvolution(ops, fuses)
    return found


def layer_by_layer(ops):
    """The operations without networks of blocks."""
    found = copy(ops)
    found.fusion = lambda nodes, nets, batch: None
    return found


def gradients_of_blocks(gradients):
    """The gradients of each block, and of the dense layer, as one vector each."""
    per_block = [gradients[at : at + 4] for at in range(0, len(gradients), 4)]
    return [np.concatenate([g.ravel() for g in of_block]) for of_block in per_block]


def assert_passes_are_numpys(ops, stack):
    """Assert that loss, gradients, moving statistics and predictions are NumPy's in float64."""
    ours, reference = stack.model(ops), stack.model("numpy", "float64")
    reference.set_weights(ours.get_weights())
    x, labels = batch(ours, stack.B)
    plans = [m.plan(stack.B, training=True) for m in (ours, reference)]
    assert [type(plan) for plan in plans] == [BlockPlan, Plan]
    follow_signs(plans[1], plans[0])
    (loss, found), (expected_loss, expected) = (
        m.loss_and_gradients(x.astype(m.dtype), labels) for m in (ours, reference)
    )
    assert relative(loss, expected_loss) < 1e-5
    for pair in zip(*(gradients_of_blocks(g) for g in (found, expected)), strict=True):
        assert relative(*pair) < 1e-5
    for m, plan in zip((ours, reference), plans, strict=True):
        with m.ops.session():
            plan.update_moving()
    assert relative(ours.moving, reference.moving) < 1e-5
    predicted, exact = (m.predict(x[0].astype(m.dtype)) for m in (ours, reference))
    assert relative(predicted, exact) < 1e-5


stacks = st.builds(Stack, st.integers(0, 2**32 - 1))
EVERY_FUSES = [*product([False, True], repeat=3)]


@pytest.mark.parametrize("version", ["direct", "winograd"])
@examples(60)
@given(stack=stacks)
def test_passes_are_numpys_in_float64(cpu_ops, version, stack):
    assert_passes_are_numpys(Operations(cpu_ops.cpu, version), stack)


@pytest.mark.parametrize("fuses", EVERY_FUSES)
@examples(20)
@given(stack=stacks)
def test_passes_are_numpys_whatever_the_convolution_fuses(cpu_ops, fuses, stack):
    assert_passes_are_numpys(with_convolution(cpu_ops, fuses), stack)


@pytest.mark.parametrize("rate", [0, 0.4])
def test_one_value_a_channel_has_no_gradient(cpu_ops, rate):
    """Adam would turn a rounding error into a step of the learning rate."""
    layers = [
        Conv2D(32, (4, 3)),
        BatchNormalization(),
        Flatten(),
        Dropout(rate),
        Dense(3, "softmax"),
    ]
    m = Sequential(layers, (4, 3, 5), nets=2, device=cpu_ops)
    _, (kernel, bias, gamma, beta, _, dense_bias) = m.loss_and_gradients(*batch(m, 1))
    assert not kernel.any() and not bias.any() and not gamma.any()
    assert beta.any() and dense_bias.any()


# ---------------------------------------------------------------------------------------------
# Equality to the bit

# Channels that are whole panels, and others; with and without dropout, ReLU and strides.
BLOCKS = [
    Conv2D(32, 3, activation="relu"),
    BatchNormalization(0.9),
    Dropout(0.3),
    Conv2D(32, 3, padding="same", activation="relu"),
    BatchNormalization(0.8),
    Conv2D(32, 5, 2, "same", "relu"),
    BatchNormalization(0.9),
    Dropout(0.2),
    Conv2D(7, (2, 3)),
    BatchNormalization(0.9),
    Flatten(),
    Dropout(0.4),
    Dense(4, activation="softmax"),
]
IMAGES = 15, 14, 3


def blocks_on(ops, nets=3, first_net=0):
    return Sequential(BLOCKS, IMAGES, nets, first_net, seed=3, device=ops)


def steps_of(model, B=6, nets=slice(None)):
    """(state, loss, probabilities) after two steps of some of the nets of `batch`."""
    x, labels = batch(blocks_on(model.ops), B)
    for _ in range(2):
        loss, _ = model.train_on_batch(x[nets], labels[nets])
    assert isinstance(model.plan(B, training=True), BlockPlan)
    return [*state(model), loss.tobytes(), model.predict(x[0]).tobytes()]


def test_threads_change_no_bit_of_a_step(shared_ops, monkeypatch):
    results = []
    for count in (1, 2, 3, 5):
        monkeypatch.setattr(machine, "cores", lambda count=count: count)
        results.append(steps_of(blocks_on(shared_ops)))
    assert all(found == results[0] for found in results)


def test_a_net_alone_is_the_net_among_three_to_the_bit(cpu_ops):
    together = blocks_on(cpu_ops)
    steps_of(together)
    for e in range(3):
        alone = blocks_on(cpu_ops, nets=1, first_net=e)
        steps_of(alone, nets=slice(e, e + 1))
        for name in ("params", "moving", "moment_1", "moment_2"):
            row = getattr(together, name)[e : e + 1]
            np.testing.assert_array_equal(getattr(alone, name), row, err_msg=name)


def test_captured_passes_are_the_eager_ones_to_the_bit(cpu_ops):
    results = []
    for captured in (False, True):
        m = blocks_on(cpu_ops)
        x, labels = batch(m, 5)
        plan = m.plan(5, training=True)
        inference = m.plan(5, training=False)
        plan.x[...] = inference.x[...] = x
        plan.labels[...] = labels
        m.learning_rate[...] = 0.01
        step, infer = (lambda m=m, p=plan: m.train_step(p)), inference.forward
        with cpu_ops.session():
            if captured:
                step, infer = cpu_ops.capture(step), cpu_ops.capture(infer)
            for _ in range(3):
                step()
                infer()
        results.append([*state(m), inference.output.tobytes()])
    assert results[0] == results[1]


# ---------------------------------------------------------------------------------------------
# Against the layers one by one


def both_plans(ops, B, training):
    """(its plan of blocks, the plan of layers of an equal model) for a batch."""
    plans = []
    for device in (ops, layer_by_layer(ops)):
        m = blocks_on(device)
        x, labels = batch(m, B)
        plan = m.plan(B, training)
        plan.x[...], plan.labels[...] = x, labels
        with ops.session():
            (plan.forward_backward if training else plan.forward)()
        plans.append(plan)
    assert [type(plan) for plan in plans] == [BlockPlan, Plan]
    return plans


def test_masks_are_those_of_the_layers_one_by_one(cpu_ops):
    blocks, layers = both_plans(cpu_ops, 5, training=True)
    found = [a.mask for a in blocks.arrays if a.mask is not None]
    masks = (getattr(frame.saved, "mask", None) for _, frame in layers.passes)
    expected = [mask for mask in masks if mask is not None]
    assert len(found) == 3
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.ravel(), other.ravel())
        assert 0 < one.mean() < 1


@pytest.mark.parametrize("training", [True, False])
def test_results_are_those_of_the_layers_one_by_one(cpu_ops, training):
    blocks, layers = both_plans(cpu_ops, 5, training)
    assert relative(blocks.output, layers.output) < 1e-5
    assert blocks.nbytes < layers.nbytes or not training


# ---------------------------------------------------------------------------------------------
# Plans


@pytest.mark.parametrize("name", FUSED)
def test_networks_of_blocks_are_planned_as_such(cpu_ops, name):
    shape = model.MNIST_SHAPE if name == "the seed network" else SHAPE
    assert cpu_ops.fusion(connect(FUSED[name], shape), 1, 3)


# Blocks that do not fit the kernels in CUDA are blocks in C.
ALL_SIZES = {"filters", "wide strides", "wide along one axis", "a large dense layer"}
ALL_SIZES |= {"more classes than threads"}


@pytest.mark.parametrize("name", sorted({*LAYERED} - {"no Flatten"}))
def test_other_stacks_run_layer_by_layer(cpu_ops, name):
    layers = LAYERED[name]
    m = Sequential(layers, SHAPE, nets=2, device=cpu_ops)
    x, labels = batch(m, 3)
    loss, gradients = m.loss_and_gradients(x, labels)
    expected = BlockPlan if name in ALL_SIZES else Plan
    assert type(m.plan(3, training=True)) is expected
    reference = Sequential(layers, SHAPE, nets=2, device="numpy")
    expected_loss, _ = reference.loss_and_gradients(x, labels)
    assert relative(loss, expected_loss) < 1e-5


def test_a_block_has_its_layers(cpu_ops):
    nodes = connect(BLOCKS, IMAGES)
    network = find_network(nodes)
    assert [block.convolution.name for block in network.blocks] == [
        "conv2d", "conv2d_1", "conv2d_2", "conv2d_3"
    ]  # fmt: skip
    assert [block.normalization.layer.momentum for block in network.blocks] == [0.9, 0.8, 0.9, 0.9]
    drops = [(block.drop.rate, block.drop.name) for block in network.blocks]
    assert drops == [(0.3, "dropout"), (0, ""), (0.2, "dropout_1"), (0.4, "dropout_2")]
    streams = [block.drop.stream for block in network.blocks if block.drop.rate]
    assert streams == [node.stream for node in nodes if isinstance(node.layer, Dropout)]
    assert [block.relu for block in network.blocks] == [True, True, True, False]
    assert [block.channels for block in network.blocks] == [3, 32, 32, 32]
    assert [block.filters for block in network.blocks] == [32, 32, 32, 7]
    assert network.dense is nodes[-1]


def test_some_convolutions_fuse_and_others_do_not(cpu_ops):
    """The tests above are of both."""
    blocks = cpu_ops.fusion(connect(BLOCKS, IMAGES), 1, 6).blocks
    assert [any(block.fuses) for block in blocks] == [False, True, True, False]
    assert [block.above for block in blocks] == [*(b.fuses for b in blocks[1:]), blocks[3].fuses]
    direct = Operations(cpu_ops.cpu, "direct")
    assert not any(any(b.fuses) for b in direct.fusion(connect(BLOCKS, IMAGES), 1, 6).blocks)


@pytest.mark.parametrize("fuses", EVERY_FUSES)
@pytest.mark.parametrize("training", [True, False])
def test_a_plan_takes_what_its_layout_says(cpu_ops, fuses, training):
    m = blocks_on(with_convolution(cpu_ops, fuses))
    layout = plan_layout(m.nodes, 3, 5, training, m.dtype, m.ops)
    assert m.plan(5, training).nbytes == layout_bytes(layout)
    # What the next convolution normalises is not stored; the dense layer's input is.
    stored = [key for key in layout if key[0] == "normalized"]
    assert stored == (
        [("normalized", i) for i in range(3 if fuses[0] else 0, 4)] if training else []
    )


def test_a_plan_is_freed_with_its_model(cpu_ops):
    m = blocks_on(cpu_ops)
    plans = [weakref.ref(m.plan(5, training)) for training in (True, False)]
    steps_of(m)
    gc.disable()
    try:
        del m
        assert all(plan() is None for plan in plans)
    finally:
        gc.enable()
