"""The forms in which the kernels of fused blocks are compiled.

Forms differ in the work of a warp, and in how activations and gradients are stored. cuda_tiles.py
chooses one for each launch. Read kernels/stored.cuh next.
"""

from itertools import starmap
from math import inf
from typing import NamedTuple

import numpy as np

from .cuda_costs import CACHE

# ---- constants of the kernels: the same as in block.cuh and others
CHUNK, WARP = 32, 32
STEP = 8  # the depth of one mma.sync, in words


class Form(NamedTuple):
    """A form in which correlation.cuh is compiled."""

    groups: int  # of eight pixels, of a warp
    splits: int  # warps that share the same results
    warps: int  # of a thread block, at most: 6, with 168 registers a thread, or 8, with 128

    @property
    def defines(self):
        """The defines that select it."""
        return _defines(
            FORM_GROUPS=self.groups,
            FORM_SPLITS=self.splits,
            FORM_THREADS=self.warps * WARP,
            FORM_BLOCKS=BLOCKS,
        )


BLOCKS = 2  # thread blocks of a multiprocessor, as its registers allow
GRADIENT_FORMS = tuple(starmap(Form, ((9, 1, 6), (6, 1, 6), (4, 1, 8), (2, 1, 8))))
WEIGHT_FORMS = (3, 6), (5, 6), (5, 10)  # (FORM_TAPS, warps) of block_weight_gradient.cu
# Those of launches that rebuild the first block (rebuilt.cuh), which needs registers
REBUILDING = ("REBUILT=1",)  # the define that selects this
REBUILDING_GRADIENT_FORMS = Form(6, 1, 6), Form(4, 1, 6), Form(2, 1, 8)
REBUILDING_WEIGHT_FORMS = ((3, 6),)


class Storage(NamedTuple):
    """How y and dx are stored, and what tensor cores multiply (stored.cuh).

    Shared memory holds staged pixels and weights in words of four bytes.
    """

    precision: str  # its name among the precisions of ops_cuda.Operations
    dtype: np.dtype  # of y and dx; uint16 stands for bfloat16
    defines: tuple  # that select it
    words: int  # of a chunk of channels
    pitch: int  # words from a staged pixel to the next: of correlation.cuh
    weights_pitch: int  # of block_weight_gradient.cu
    weights_run: int  # consecutive pixels there whose words are in different banks
    forward_forms: tuple
    in_flight: int  # pixels that a thread of block_forward.cu loads together
    alignment: int  # channels must be a multiple of it
    cache: float  # as CACHE, in the model of cuda_costs.py

    @property
    def per_word(self):
        """Operands in a word."""
        return CHUNK // self.words

    @property
    def chunk_bytes(self):
        """Bytes of a chunk of a pixel's channels."""
        return CHUNK * self.dtype.itemsize

    def forward_forms_for(self, rebuilding):
        """forward_forms; for a launch that rebuilds the first block with more registers."""
        few, more = Form(4, 1, 8), Form(4, 1, 6)
        return [more if rebuilding and form == few else form for form in self.forward_forms]

    def pixels_in_flight(self, form, gradient):
        """Pixels that a thread of a correlation loads together while it stages."""
        return 4 if gradient else 3 if form.groups > 8 else self.in_flight


TF32 = Storage(
    "tf32",
    np.dtype(np.float32),
    (),
    words=32,
    pitch=40,
    weights_pitch=40,
    weights_run=4,
    forward_forms=tuple(
        starmap(Form, ((9, 1, 6), (6, 1, 6), (3, 2, 6), (8, 2, 6), (4, 1, 8), (2, 4, 8)))
    ),
    in_flight=6,
    alignment=4,
    cache=inf,  # the model's constants were fitted to timed launches without it
)
BFLOAT16 = Storage(
    "bfloat16",
    np.dtype(np.uint16),
    ("STORED=bfloat16",),
    words=16,
    pitch=24,
    weights_pitch=20,
    weights_run=8,
    forward_forms=tuple(
        starmap(Form, ((8, 1, 6), (6, 1, 6), (3, 2, 6), (8, 2, 6), (4, 1, 8), (2, 2, 8)))
    ),
    in_flight=4,
    alignment=8,
    cache=CACHE,
)
STORAGES = TF32, BFLOAT16
_WITHOUT_FORMS = "block_first.cu", "head.cu", "pack_weights.cu", "rebuilt.cu"
WARPS_AT_ONCE = 12  # of block_weight_gradient.cu, of a multiprocessor


def programs(storage):
    """[(file, defines)] of every form of the fused blocks' kernels that takes defines."""
    forms = []
    for gradient_forms, weight_forms, rebuilding in (
        (GRADIENT_FORMS, WEIGHT_FORMS, ()),
        (REBUILDING_GRADIENT_FORMS, REBUILDING_WEIGHT_FORMS, REBUILDING),
    ):
        of_kernels = {
            "block_forward.cu": [f.defines for f in storage.forward_forms_for(bool(rebuilding))],
            "block_input_gradient.cu": [form.defines for form in gradient_forms],
            "block_weight_gradient.cu": [weight_defines(*form) for form in weight_forms],
        }
        for file, found in of_kernels.items():
            forms += [(file, (*defines, *rebuilding)) for defines in found]
    if storage.defines:
        forms += [(file, ()) for file in _WITHOUT_FORMS]
    return [(file, (*defines, *storage.defines)) for file, defines in forms]


def weight_defines(taps, warps):
    """The defines that select a form of block_weight_gradient.cu."""
    blocks = WARPS_AT_ONCE // warps
    return _defines(FORM_TAPS=taps, FORM_THREADS=warps * WARP, FORM_BLOCKS=blocks)


def _defines(**values):
    return tuple(f"{name}={value}" for name, value in values.items())
