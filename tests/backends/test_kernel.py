"""Kernels on any driver: reading the sources, checking the launches."""

import numpy as np
import pytest
from planted import TOY

from minicnn.backends import kernel
from minicnn.backends.kernel import Driver, Program

E = 2


class Paper(Driver):
    """A driver that only keeps the launches."""

    def __init__(self):
        super().__init__()
        self.compiled, self.ran = [], []

    def compile(self, program):
        self.compiled.append(program)

    def address(self, array):
        return array.ctypes.data

    def run(self, launch):
        self.ran.append(launch)


@pytest.fixture
def paper():
    return Paper()


def arguments(**changed):
    """Valid arguments of toy.cu's kernel, with some changed."""
    good = {
        "x": np.zeros((E, 3, 4), np.float32),
        "add": None,
        "factor": np.ones(1),
        "shape": {"rows": 3, "columns": 4},
        "offset": 7,
        "negate": True,
        "y": np.zeros((E, 12), np.float32),
    }
    return list({**good, **changed}.values())


def test_a_signature_is_read_from_the_source():
    [(name, parameters)] = Program(TOY).kernels.items()
    assert name == "scale"
    assert [p.name for p in parameters] == ["x", "add", "factor", "shape", "offset", "negate", "y"]
    kinds = ["per net", "per net", "array", "struct", "number", "number", "per net"]
    assert [p.kind for p in parameters] == kinds
    assert [p.written for p in parameters] == [False] * 6 + [True]
    assert [p.may_be_null for p in parameters] == [False, True] + [False] * 5
    assert parameters[2].dtype == np.float64
    assert parameters[3].dtype.names == ("rows", "columns")


def test_sources_are_one_text_that_names_its_files():
    text = Program(TOY, ("WIDTH=32", "FLAG")).text
    assert text.startswith("#define WIDTH 32\n#define FLAG\n")
    assert text.count("struct PerNet") == 1 and "#include" not in text
    lines = text.splitlines()
    at = lines.index("struct Shape {")
    marks = [i for i in range(at) if lines[i].startswith("#line")]
    number = int(lines[marks[-1]].split()[1]) + at - marks[-1] - 1
    assert TOY.read_text().splitlines()[number - 1] == "struct Shape {"
    assert '"toy.cu"' in lines[marks[-1]]


def by_name(**changed):
    return dict(
        zip("x add factor shape offset negate y".split(), arguments(**changed), strict=True)
    )


@pytest.mark.parametrize("positional", range(8))
def test_arguments_are_given_by_place_or_by_name(paper, positional):
    named = by_name(y=np.ones((E, 12), np.float32))
    given = list(named.values())
    rest = dict(reversed(list(named.items())[positional:]))  # in any order
    paper.launch(TOY, "scale", (2,), (64,), *given[:positional], **rest)
    paper.launch(TOY, "scale", (2,), (64,), *given)
    ours, theirs = paper.ran
    assert [v.tobytes() for v in ours.values] == [v.tobytes() for v in theirs.values]
    assert [id(a) for _, a in ours.arrays] == [id(a) for _, a in theirs.arrays]


def test_names_are_held_against_the_declaration(paper):
    def refused(*given, **named):
        with pytest.raises(TypeError) as caught:
            paper.launch(TOY, "scale", (2,), (64,), *given, **named)
        return str(caught.value)

    named = by_name()
    takes = "takes x, add, factor, shape, offset, negate, y"
    assert refused(**named, gain=1) == f"toy.cu: scale: got 'gain', {takes}"
    twice = "toy.cu: scale: got 'x' by its place and by its name, expected one"
    assert refused(named["x"], **named) == twice
    offset, y = named.pop("offset"), named.pop("y")
    assert refused(**named) == "toy.cu: scale: offset, y: got nothing, expected a value"
    many = "toy.cu: scale: got 8 arguments, takes 7"
    assert refused(*arguments(), None) == many and refused(*arguments(), None, y=y) == many
    assert paper.ran == []
    with pytest.raises(TypeError, match=r"^toy\.cu: scale: offset: got "):
        paper.launch(TOY, "scale", (2,), (64,), **named, offset=None, y=y)
    assert isinstance(offset, int)


def test_the_parameters_of_every_kernel_can_be_read():
    found = [name for path in kernel.SOURCES.glob("*.cu") for name in Program(path).kernels]
    assert len(found) == len(set(found)) > 20


def test_a_launch_is_packed_as_the_kernel_reads_it(paper):
    x = np.zeros((E, 5, 4), np.float32)[:, 1:4]  # rows of 12 elements, 20 apart
    given = arguments(x=x)
    paper.launch(TOY, "scale", (1,), (64,), *given)
    [launch] = paper.ran
    assert launch.grid == (1, 1, E) and launch.block == (64, 1, 1)
    values = dict(
        zip(("x", "add", "factor", "shape", "offset", "negate", "y"), launch.values, strict=True)
    )
    assert values["x"].item() == (x.ctypes.data, 20)
    assert values["add"].item() == (0, 0)
    assert values["factor"] == given[2].ctypes.data
    assert values["shape"].tobytes() == np.array([3, 4], np.int32).tobytes()
    assert values["offset"].dtype == np.int32 and values["offset"] == 7
    assert values["negate"].nbytes == 1
    assert list(kernel.pointers(launch.values)) == [v.ctypes.data for v in launch.values]


def test_a_program_is_compiled_once_for_its_defines(paper):
    for defines in ((), (), ("A=1",), ("A=2",), ("A=1",)):
        paper.launch(TOY, "scale", (1,), (64,), *arguments(), defines=defines)
    assert [program.defines for program in paper.compiled] == [(), ("A=1",), ("A=2",)]


FLOATS = np.zeros((E, 12), np.float32)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": np.zeros((E, 12))}, TypeError, "x: got an array of float64, expected float32"),
        ({"x": None}, TypeError, "x: got None, expected an array of float32"),
        ({"x": 3.0}, TypeError, "x: got 3.0, expected an array"),
        ({"x": FLOATS.reshape(E, 3, 4).transpose(0, 2, 1)}, ValueError, "x: got strides"),
        ({"x": FLOATS[:, ::2]}, ValueError, "x: got strides .*contiguous"),
        ({"x": np.float32(1).reshape(())}, ValueError, "x: got a number, expected an array with"),
        ({"y": np.zeros((3, 12), np.float32)}, ValueError, "y: got 3 nets, expected 2"),
        ({"factor": np.ones(4)[::2]}, ValueError, "factor: got strides"),
        ({"factor": 1.0}, TypeError, "factor: got 1.0, expected an array of float64"),
        (
            {"shape": {"rows": 3}},
            TypeError,
            r"shape: got \['rows'\], expected \['columns', 'rows'\]",
        ),
        ({"shape": {"rows": 2**31, "columns": 1}}, ValueError, "shape: .*2147483648"),
        ({"offset": 2.5}, ValueError, "offset: got 2.5, expected a number of int32"),
        ({"offset": 2**31}, ValueError, "offset: got 2147483648, expected a number of int32"),
        ({"offset": True}, TypeError, "offset: got True"),
        ({"offset": np.nan}, ValueError, "offset: got nan, expected a number of int32"),
        ({"offset": np.inf}, ValueError, "offset: got inf, expected a number of int32"),
        ({"offset": "7"}, TypeError, "offset: got '7', expected a number of int32"),
        ({"offset": 1j}, TypeError, "offset: got 1j, expected a number of int32"),
        ({"offset": FLOATS}, TypeError, "offset: got array"),
        ({"negate": 1}, TypeError, "negate: got 1, expected a number of bool"),
    ],
)
def test_wrong_arguments_are_refused(paper, changed, error, message):
    with pytest.raises(error, match=rf"^toy\.cu: scale: {message}"):
        paper.launch(TOY, "scale", (1,), (64,), *arguments(**changed))
    assert paper.ran == []


def test_an_array_too_large_for_32_bits_is_refused(paper):
    huge = np.broadcast_to(np.float32(0), (1, 1, 2**31))  # takes no memory
    huge = np.lib.stride_tricks.as_strided(huge, (1, 2**31), (4, 4))
    with pytest.raises(ValueError, match=r"x: got 2,147,483,648 elements per net, expected at"):
        paper.launch(TOY, "scale", (1,), (64,), *arguments(x=huge, y=FLOATS[:1]))


def test_a_read_only_array_is_not_written(paper):
    y = np.zeros((E, 12), np.float32)
    y.flags.writeable = False
    with pytest.raises(ValueError, match="y: got a read-only array"):
        paper.launch(TOY, "scale", (1,), (64,), *arguments(y=y))


@pytest.mark.parametrize("count", [6, 8])
def test_a_wrong_number_of_arguments_is_refused(paper, count):
    with pytest.raises(TypeError, match=rf"toy\.cu: scale: got {count} arguments, takes 7"):
        paper.launch(TOY, "scale", (1,), (64,), *[*arguments(), 1][:count])


def test_a_missing_kernel_is_refused(paper):
    with pytest.raises(ValueError, match=r"toy\.cu: scales: no such kernel"):
        paper.launch(TOY, "scales", (1,), (64,), *arguments())


@pytest.mark.parametrize(
    ("grid", "block", "named"),
    [
        ((0,), (64,), "grid"),
        ((2**31,), (64,), "grid"),
        ((1, 65536), (64,), "grid"),
        ((1.5,), (64,), "grid"),
        ((np.nan,), (64,), "grid"),
        ((1,), (0,), "block"),
        ((1,), (1025,), "block"),
        ((1,), (32, 33), "block"),
        ((1,), (1, 1, 65), "block"),
    ],
)
def test_sizes_beyond_the_hardwares_are_refused(paper, grid, block, named):
    with pytest.raises(ValueError, match=rf"toy\.cu: scale: got {named} .*expected 1 to"):
        paper.launch(TOY, "scale", grid, block, *arguments())


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [
        (1, (64,), "got grid 1, expected a tuple of up to 2 numbers"),
        ((), (64,), r"got grid \(\), expected"),
        ((1, 1, 1), (64,), r"got grid \(1, 1, 1\), expected a tuple of up to 2 numbers"),
        ((1,), 64, "got block 64, expected a tuple of up to 3 numbers"),
        ((1,), (1, 1, 1, 1), "got block .*, expected a tuple of up to 3"),
    ],
)
def test_sizes_of_another_type_are_refused(paper, grid, block, message):
    with pytest.raises(ValueError, match=rf"^toy\.cu: scale: {message}"):
        paper.launch(TOY, "scale", grid, block, *arguments())


@pytest.mark.parametrize("size", [-1, 1.5, "all"])
def test_shared_memory_is_a_number_of_bytes(paper, size):
    with pytest.raises(ValueError, match=r"^toy\.cu: scale: shared_bytes: got .*, expected"):
        paper.launch(TOY, "scale", (1,), (64,), *arguments(), shared_bytes=size)


def test_a_number_that_is_too_large_for_its_type_is_refused(paper, tmp_path):
    path = tmp_path / "rate.cu"
    path.write_text('extern "C" __global__ void rate(float rate) {}\n')
    for rate in (1.0, np.float32(2), np.nan, np.inf):
        paper.launch(path, "rate", (1,), (1,), rate)
    with pytest.raises(ValueError, match=r"rate: got 1e\+300, expected a number of float32"):
        paper.launch(path, "rate", (1,), (1,), 1e300)


def test_an_array_of_another_device_is_refused(paper):
    class Elsewhere(np.ndarray):
        @property
        def ctypes(self):
            raise AttributeError

    with pytest.raises(TypeError, match=r"x: got a .*Elsewhere, which is not this device's array"):
        paper.launch(TOY, "scale", (1,), (64,), *arguments(x=FLOATS.view(Elsewhere)))


def test_more_nets_than_a_grid_has_places_are_refused(paper):
    many = np.broadcast_to(np.zeros(12, np.float32), (65536, 12))
    x, y = (np.lib.stride_tricks.as_strided(np.zeros(12, np.float32), (65536, 12), (0, 4)),) * 2
    assert many.shape == x.shape
    with pytest.raises(ValueError, match=r"got grid .*65536"):
        paper.launch(TOY, "scale", (1,), (64,), *arguments(x=x, y=y))


def test_a_parameter_of_an_unknown_type_is_refused(tmp_path):
    path = tmp_path / "odd.cu"
    path.write_text('extern "C" __global__ void odd(size_t n) {}\n')
    with pytest.raises(ValueError, match=r"odd\.cu: a kernel's parameter cannot be 'size_t n'"):
        _ = Program(path).kernels


def test_parameters_may_be_written_in_other_ways(tmp_path):
    path = tmp_path / "ways.cu"
    path.write_text(
        'extern "C" __global__ void nothing() {}\n'
        'extern "C" __global__ void array(const float *x, float* __restrict__ y, int* z) {}\n'
        "struct Sizes {\n    int rows,  columns;\n    int depth;\n};\n"
        'extern "C" __global__ void sizes(Sizes s) {}\n'
    )
    kernels = Program(path).kernels
    assert kernels["nothing"] == []
    assert [(p.name, p.kind, p.written) for p in kernels["array"]] == [
        ("x", "array", False),
        ("y", "array", True),
        ("z", "array", True),
    ]
    assert kernels["sizes"][0].dtype.names == ("rows", "columns", "depth")


@pytest.mark.parametrize(
    "fields", ["int a; float b;", "int a[3];", "unsigned int a;", "int a = 3;", "int a; bool b;"]
)
def test_a_struct_of_anything_but_ints_is_refused(tmp_path, fields):
    path = tmp_path / "odd.cu"
    path.write_text(f'struct Odd {{ {fields} }};\nextern "C" __global__ void odd(Odd o) {{}}\n')
    with pytest.raises(ValueError, match=r"odd\.cu: struct Odd: a kernel's struct has only ints"):
        _ = Program(path).kernels
