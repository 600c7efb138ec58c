"""Binary codes: packing, distance and counts, for numpy arrays and torch tensors alike."""

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stochastic_bottleneck import codes

KINDS = {"numpy": np.asarray, "torch": lambda x: torch.from_numpy(np.asarray(x).copy())}
pytestmark = pytest.mark.filterwarnings("error")


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


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64]
)
def test_torch_dtypes_and_layouts(dtype):
    bits = torch.from_numpy(random_bits(10, 4)).to(dtype)
    expected = torch.from_numpy(np.packbits(bits.T.double().numpy().astype(bool), axis=-1))
    assert torch.equal(codes.pack_bits(bits.T), expected)
    assert torch.equal(codes.pack_bits(bits.T, validate=False), expected)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float64])
def test_numpy_dtypes(dtype):
    bits = random_bits(4, 10)
    np.testing.assert_array_equal(codes.pack_bits(bits.astype(dtype)), np.packbits(bits, axis=-1))


# ---- distance ----------------------------------------------------------------------------------------------

CODES = st.integers(1, 9).flatmap(
    lambda n: st.tuples(st.binary(min_size=n, max_size=n), st.binary(min_size=n, max_size=n))
)


@pytest.mark.parametrize("kind", KINDS)
@given(pair=CODES)
def test_hamming_distance_counts_differing_bits(kind, pair):
    a, b = (KINDS[kind](np.frombuffer(x, dtype=np.uint8)) for x in pair)
    distance = codes.hamming_distance(a, b)
    assert distance == oracles.hamming(*pair)
    assert distance == codes.hamming_distance(b, a)
    assert codes.hamming_distance(a, a) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_hamming_distance_broadcasts_to_all_pairs(kind):
    bits = random_bits(5, 300)
    packed = codes.pack_bits(KINDS[kind](bits))
    distance = codes.hamming_distance(packed[:, None], packed[None])
    assert str(distance.dtype).endswith("int64")
    np.testing.assert_array_equal(np.asarray(distance), (bits[:, None] != bits[None]).sum(-1))


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


@pytest.mark.parametrize(
    "bits", [BITS, torch.from_numpy(BITS), torch.from_numpy(BITS).bool(), BITS.astype(np.float16)]
)
def test_counts_of_bits(bits):
    np.testing.assert_allclose(codes.share_of_ones(bits), [0.25, 1.0, 0.5, 0.5])
    np.testing.assert_allclose(codes.bit_entropy(bits), [entropy(0.25, 0.75), 0.0, 1.0, 1.0])
    assert codes.distinct_codes(bits) == 3
    # bit 1 is constant and left out; bits 2 and 3 are opposites; bit 0 against either is 1 / sqrt(3)
    assert codes.bit_correlation(bits) == pytest.approx((1 + 2 / math.sqrt(3)) / 3)


def test_correlation_of_independent_copied_and_constant_bits():
    independent = random_bits(20_000, 8)
    assert codes.bit_correlation(independent) < 3 / math.sqrt(20_000)
    assert codes.bit_correlation(np.repeat(independent[:, :1], 3, axis=1)) == pytest.approx(1.0)
    assert math.isnan(codes.bit_correlation(np.ones((4, 3))))
    assert math.isnan(codes.bit_correlation(BITS[:, :2]))


def test_distinct_codes_beyond_one_byte():
    bits = np.zeros((3, 20))
    bits[1, 19] = 1
    assert codes.distinct_codes(bits) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_information_of_a_bit_about_the_class(kind):
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


# ---- errors ------------------------------------------------------------------------------------------------

U8 = np.zeros((2, 3), np.uint8)
ERRORS = [
    (codes.pack_bits, ([0, 1],), TypeError, "z must be a numpy array or a tensor, got list"),
    (
        codes.pack_bits,
        (np.array(1),),
        ValueError,
        r"z must have at least one bit in its last dimension, got shape \(\)",
    ),
    (codes.pack_bits, (torch.zeros(2, 0),), ValueError, r"at least one bit .* got shape \(2, 0\)"),
    (codes.pack_bits, (np.array([0.5]),), ValueError, "z must hold only 0 and 1; take the mode"),
    (codes.pack_bits, (torch.tensor([math.nan]),), ValueError, "z must hold only 0 and 1"),
    (codes.pack_bits, (torch.tensor([2]),), ValueError, "z must hold only 0 and 1"),
    (codes.unpack_bits, ([1], 8), TypeError, "codes must be a numpy array or a tensor, got list"),
    (
        codes.unpack_bits,
        (torch.zeros(1), 8),
        TypeError,
        "codes must be packed codes of dtype uint8, got torch.float32",
    ),
    (
        codes.unpack_bits,
        (np.zeros(1), 8),
        TypeError,
        "codes must be packed codes of dtype uint8, got float64",
    ),
    (
        codes.unpack_bits,
        (U8, 25),
        ValueError,
        r"dim=25 needs codes 4 bytes wide and dim >= 1, got shape \(2, 3\)",
    ),
    (codes.unpack_bits, (U8, 16), ValueError, "dim=16 needs codes 2 bytes wide"),
    (codes.unpack_bits, (U8, 0), ValueError, "dim=0 needs"),
    (codes.unpack_bits, (U8[:, :0], 8), ValueError, "codes must have at least one byte"),
    (codes.hamming_distance, (U8, U8[:, :2]), ValueError, "a and b must be equally wide, got 3 and 2 bytes"),
    (
        codes.hamming_distance,
        (U8, torch.from_numpy(U8)),
        TypeError,
        "a and b must both be .* got ndarray and Tensor",
    ),
    (codes.hamming_distance, (U8.astype(int), U8), TypeError, "a must be packed codes of dtype uint8"),
    (codes.hamming_distance, (U8, U8.astype(int)), TypeError, "b must be packed codes of dtype uint8"),
    (codes.compression_ratio, ((), 8), ValueError, "image_shape, bits and bits_per_channel must be positive"),
    (codes.compression_ratio, ((4, 0), 8), ValueError, "must be positive"),
    (codes.compression_ratio, ((4, 4), 0), ValueError, "must be positive"),
    (codes.compression_ratio, ((4, 4), 8, 0), ValueError, "must be positive"),
    (
        codes.share_of_ones,
        (np.zeros(3),),
        ValueError,
        r"bits must have shape \(N, D\) .* got \(3,\); unpack codes",
    ),
    (codes.bit_entropy, (np.zeros((0, 3)),), ValueError, "bits must have shape"),
    (codes.distinct_codes, (np.full((2, 2), 7),), ValueError, "bits must hold only 0 and 1"),
    (codes.bit_correlation, ("10",), TypeError, "bits must be a numpy array or a tensor, got str"),
    (
        codes.bit_class_information,
        (BITS, np.zeros(3)),
        ValueError,
        r"labels must have shape \(4,\), one an image",
    ),
]


@pytest.mark.parametrize(("function", "args", "error", "message"), ERRORS)
def test_mistakes_are_named(function, args, error, message):
    with pytest.raises(error, match=message):
        function(*args)
