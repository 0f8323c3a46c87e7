"""Every backend follows the declaration in backend.py: the same operations, the same parameters."""

import inspect

import numpy as np
import pytest

from minicnn import devices
from minicnn.backends import native, ops_cuda, ops_numpy
from minicnn.backends.backend import Backend
from minicnn.backends.cuda import Cuda
from minicnn.emulator import Emulator

DECLARED = [name for name in vars(Backend) if callable(getattr(Backend, name)) and name[0] != "_"]
BY_DRIVER = "session", "free_memory", "empty", "zeros", "to_device", "to_host", "copy"


@pytest.fixture(params=["numpy", "cpu", "emulated"])
def backend(request, cuda_device, cpu_ops):
    """A backend of each kind, tf32 among them."""
    if request.param == "numpy":
        return ops_numpy
    return cpu_ops if request.param == "cpu" else ops_cuda.Operations(Emulator(), "naive", "tf32")


def parameters(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_the_declaration_is_not_empty():
    assert len(DECLARED) > 25 and set(BY_DRIVER) < set(DECLARED)


@pytest.mark.parametrize("operation", DECLARED)
def test_a_backend_has_every_operation_with_the_declared_parameters(backend, operation):
    function = getattr(backend, operation)
    assert parameters(function) == parameters(getattr(Backend, operation))
    inherited = getattr(function, "__func__", None) is vars(Backend)[operation]
    assert not inherited or operation == "fusion"


@pytest.mark.parametrize("operation", BY_DRIVER)
@pytest.mark.parametrize("driver", [Cuda, Emulator])
def test_a_driver_has_what_cudas_backend_takes_from_it(driver, operation):
    function = vars(driver)[operation]
    assert parameters(function) == parameters(getattr(Backend, operation))


def test_a_backend_says_what_it_can(backend):
    assert isinstance(backend, Backend)
    assert backend.name in devices.NAMES
    assert backend.precision in backend.precisions
    assert set(backend.precisions) <= set(devices.PRECISIONS)
    assert "float32" in backend.dtypes
    assert backend.lockstep in (True, False)


def test_a_backend_repeats_a_function_by_its_capture(backend):
    if backend.capture is None:
        assert backend is ops_numpy
        return
    with backend.session():
        x, y = backend.to_device(np.ones((1, 4), np.float32)), backend.zeros((1, 4), np.float32)
        replay = backend.capture(lambda: backend.copy(x, y))
        assert not backend.to_host(y).any()  # a capture runs nothing
        replay()
        np.testing.assert_array_equal(backend.to_host(y), 1)


def test_a_backend_made_by_hand_is_taken_as_it_is(backend):
    assert devices.choose(backend) == (backend.name, backend, "as given")


def test_what_is_no_backend_is_refused():
    for device in ("tpu", None, np, native, Backend, object()):
        assert not isinstance(device, Backend)
        with pytest.raises(ValueError, match=r"^device: got .*, expected one of 'auto', "):
            devices.choose(device)


@pytest.mark.parametrize("name", devices.NAMES)
def test_an_unknown_precision_is_refused(name):
    for precision in ("bf16", "float16", "", 32):
        refusal = f"^precision: got {precision!r}, expected one of 'float32', 'tf32', 'bfloat16'$"
        with pytest.raises(ValueError, match=refusal):
            devices.choose(name, precision)


def test_a_precision_that_the_driver_has_not_is_refused(monkeypatch, cuda_device):
    driver = Emulator()
    driver.has_tensor_cores = False
    assert ops_cuda.Operations(driver).precisions == ("float32",)
    for precision in ("tf32", "bfloat16"):
        refusal = f"^precision: got {precision!r}, expected one of 'float32'$"
        with pytest.raises(ValueError, match=refusal):
            ops_cuda.Operations(driver, precision=precision)
