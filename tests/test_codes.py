"""Binary codes: packing, Hamming distance and counting metrics, for numpy arrays and torch tensors."""

import math
import tracemalloc

import numpy as np
import oracles
import pandas
import pytest
import torch
from numpy.lib.stride_tricks import as_strided
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stochastic_bottleneck import _hamming, codes

KINDS = {"numpy": np.asarray, "torch": lambda x: torch.from_numpy(np.asarray(x).copy())}


def random_bits(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 2, shape)


# ---- packing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_width_packs_as_numpy_does_and_unpacks(kind):
    for dim in range(1, 131):
        bits = random_bits(3, dim, seed=dim)
        packed = codes.pack_bits(KINDS[kind](bits))
        assert type(packed) is type(KINDS[kind](bits))
        assert tuple(packed.shape) == (3, math.ceil(dim / 8))
        np.testing.assert_array_equal(np.asarray(packed), np.packbits(bits, axis=-1), strict=True)
        unpacked = codes.unpack_bits(packed, dim)
        np.testing.assert_array_equal(np.asarray(unpacked), bits.astype(np.uint8), strict=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(9,), (2, 3, 9), (0, 9)])
def test_leading_dimensions(kind, shape):
    bits = KINDS[kind](random_bits(*shape))
    packed = codes.pack_bits(bits)
    assert tuple(packed.shape) == (*shape[:-1], 2)
    assert (codes.unpack_bits(packed, 9) == bits).all()


TORCH = (torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64)


@pytest.mark.parametrize("dtype", [*TORCH, bool, np.uint8, np.int64, np.float16, np.float64])
def test_dtypes_and_layouts(dtype):
    bits = random_bits(10, 4)
    given = torch.from_numpy(bits).to(dtype) if dtype in TORCH else bits.astype(dtype)
    for validate in (True, False):
        packed = codes.pack_bits(given.T, validate=validate)
        np.testing.assert_array_equal(np.asarray(packed), np.packbits(bits.T, axis=-1))


# ---- distance ----------------------------------------------------------------------------------------------

PATHS = {
    "numpy": codes.hamming_distance,
    "numpy 1": codes.hamming_distance,
    "tensors": codes.hamming_distance,
    "another device": _hamming.distances,  # the path of tensors that are not on the host
}
LAYOUTS = {
    "all pairs": lambda a, b: (a[:, None], b[None]),
    "more dimensions": lambda a, b: (a[:, None, None], b.reshape(5, 2, -1)),
    "steps": lambda a, b: (a[::2], b[1::2]),
    "columns": lambda a, b: (a.T.copy().T, b[:, None].T.copy().T),
    "one with many": lambda a, b: (a[0], b[:1]),
    "two": lambda a, b: (a[0], b[1]),
    "none": lambda a, b: (a[:0], b[:1]),
    "both broadcast": lambda a, b: (as_strided(x, (10, 6, x.shape[-1]), (x.strides[0], 0, 1)) for x in (a, b)),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("chunk", [2, 10**6])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_hamming_distance_of_all_layouts(path, chunk, layout, monkeypatch):
    monkeypatch.setattr(_hamming, "HOST_CHUNK", chunk)
    monkeypatch.setattr(_hamming, "DEVICE_CHUNK", chunk)
    if path == "numpy 1":
        monkeypatch.delattr(np, "bitwise_count", raising=False)
    for width in (1, 3, 8, 16, 17):
        rng = np.random.default_rng(width)
        a, b = LAYOUTS[layout](*rng.integers(0, 256, (2, 10, width), dtype=np.uint8))
        pairs = np.broadcast_arrays(a, b)
        expected = [oracles.hamming(*pair) for pair in zip(*(x.reshape(-1, width) for x in pairs), strict=True)]
        distance = np.asarray(PATHS[path](*((a, b) if "numpy" in path else map(torch.from_numpy, (a, b)))))
        assert distance.dtype == np.int64
        assert distance.shape == pairs[0].shape[:-1]
        assert distance.ravel().tolist() == expected


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that an operation returns."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = (x.untyped_storage().nbytes() for x in tree_leaves(result) if isinstance(x, torch.Tensor))
        self.size = max(self.size, *sizes)
        return result


@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize("path", ["numpy", "tensors", "another device"])
def test_all_pairs_take_little_more_memory_than_the_result(path, broadcast, monkeypatch):
    monkeypatch.setattr(_hamming, "DEVICE_CHUNK", 2**16)
    a, b = np.random.default_rng(0).integers(0, 256, (2, 1200, 16), dtype=np.uint8)
    a, b = (a, b) if path == "numpy" else (torch.from_numpy(a), torch.from_numpy(b))
    a, b = a[:, None], b[None]
    if broadcast:
        a, b = np.broadcast_arrays(a, b) if path == "numpy" else torch.broadcast_tensors(a, b)
    tracemalloc.start()
    try:
        with Largest() as largest:
            distance = PATHS[path](a, b)
        peak = tracemalloc.get_traced_memory()[1]  # numpy's memory; torch's is not traced
    finally:
        tracemalloc.stop()
    assert tuple(distance.shape) == (1200, 1200)
    assert peak < 1.3 * 8 * 1200**2
    assert largest.size <= 8 * 1200**2


def test_hamming_distance_works_under_compile_and_vmap(fresh_compiler):
    a, b = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 7, 9), dtype=np.uint8))
    expected = codes.hamming_distance(a[:, None], b[None])
    compiled = torch.compile(codes.hamming_distance, fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(a[:, None], b[None]), expected)
    assert torch.equal(torch.vmap(lambda row: codes.hamming_distance(row, b))(a), expected)


def test_long_codes_do_not_overflow_a_byte():
    for kind in KINDS.values():
        zeros, ones = kind(np.zeros(1000, np.uint8)), kind(np.full(1000, 255, np.uint8))
        assert codes.hamming_distance(zeros, ones) == 8000


# ---- counts ------------------------------------------------------------------------------------------------


def test_compression_ratio():
    assert codes.compression_ratio((224, 224, 3), 2048) == 588.0
    assert codes.compression_ratio((32, 32, 3), 11) == 32 * 32 * 3 * 8 / 11
    assert codes.compression_ratio([4, 4], 8, bits_per_channel=16) == 32.0


def entropy(*probabilities):
    return -sum(p * math.log2(p) for p in probabilities if p > 0)


BITS = np.array([[0, 1, 0, 1], [0, 1, 1, 0], [1, 1, 0, 1], [0, 1, 1, 0]])


@pytest.mark.parametrize("bits", [BITS, torch.from_numpy(BITS), torch.from_numpy(BITS).bool(), BITS.astype(np.float16)])
def test_counts_of_bits(bits):
    np.testing.assert_allclose(codes.share_of_ones(bits), [0.25, 1.0, 0.5, 0.5])
    np.testing.assert_allclose(codes.bit_entropy(bits), [entropy(0.25, 0.75), 0.0, 1.0, 1.0])
    assert codes.distinct_codes(bits) == 3
    # Bit 1 is constant and left out; bits 2 and 3 are opposites; bit 0 with either has 1 / sqrt(3).
    assert codes.bit_correlation(bits) == pytest.approx((1 + 2 / math.sqrt(3)) / 3)
    assert codes.effective_bits(bits) == pytest.approx(3**2 / (3 + 2 * (1 + 2 / 3)))


def test_correlation_of_independent_copied_and_constant_bits():
    independent = random_bits(20_000, 8)
    assert codes.bit_correlation(independent) < 3 / math.sqrt(20_000)
    assert codes.bit_correlation(np.repeat(independent[:, :1], 3, axis=1)) == pytest.approx(1.0)
    assert math.isnan(codes.bit_correlation(np.ones((4, 3))))
    assert math.isnan(codes.bit_correlation(BITS[:, :2]))
    assert codes.effective_bits(independent) == pytest.approx(8, abs=0.01)
    assert codes.effective_bits(independent.reshape(-1, 128)[:128]) == pytest.approx(64, rel=0.05)  # of few images
    assert codes.effective_bits(np.repeat(independent[:, :2], 3, axis=1)) == pytest.approx(2, abs=0.01)
    assert [codes.effective_bits(BITS[:, bits]) for bits in ([0, 1], [1])] == pytest.approx([1, 0])


def test_distinct_codes_beyond_one_byte():
    bits = np.zeros((3, 20))
    bits[1, 19] = 1
    assert codes.distinct_codes(bits) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_information_between_bits_and_class(kind):
    labels = np.repeat(np.arange(4), 25)
    perfect, useless, constant = labels >= 2, np.tile([0, 1, 0, 1, 0], 20), np.ones(100)
    noisy = random_bits(100)
    bits = np.stack([perfect, 1 - perfect, useless, constant, noisy], axis=1).astype(int)
    information = codes.bit_class_information(KINDS[kind](bits), KINDS[kind](labels))
    expected = entropy(noisy.mean(), 1 - noisy.mean())
    for c in range(4):
        p = noisy[labels == c].mean()
        expected -= entropy(p, 1 - p) / 4
    np.testing.assert_allclose(information, [1.0, 1.0, 0.0, 0.0, expected], atol=1e-12)


@pytest.mark.parametrize("kind", [list, lambda y: pandas.Series(y, dtype="Int64"), torch.tensor])
def test_labels_of_all_integer_types(kind):
    labels = random_bits(4)
    expected = codes.bit_class_information(BITS, labels)
    np.testing.assert_array_equal(codes.bit_class_information(BITS, kind(labels)), expected)
    np.testing.assert_array_equal(codes.bit_class_information(BITS, labels.astype(bool)), expected)


# ---- errors ------------------------------------------------------------------------------------------------

U8 = np.zeros((2, 3), np.uint8)
V, T = ValueError, TypeError
REFUSED = [  # more of them: tests/bad_calls.py
    (codes.pack_bits, (torch.ones(2, device="meta"),), V, "got a meta tensor; pass validate=False"),
    (codes.unpack_bits, (U8, 16), V, "dim=16 needs codes 2 bytes wide"),
    (codes.hamming_distance, (U8, torch.from_numpy(U8)), T, "a and b must both be .* got ndarray and Tensor"),
    (codes.hamming_distance, (U8, np.zeros((3, 3), np.uint8)), V, r"broadcast .* got shapes \(2, 3\) and \(3, 3"),
    (codes.bit_class_information, (BITS, list("abca")), T, "labels must be integers.*got .a. in list of dtype <U1"),
    (codes.bit_class_information, (BITS, [[0], [1, 2], 0, 0]), V, "labels must be .* got list: setting"),
]


@pytest.mark.parametrize(("function", "args", "error", "message"), REFUSED)
def test_bad_arguments_are_refused(function, args, error, message):
    with pytest.raises(error, match=message):
        function(*args)
