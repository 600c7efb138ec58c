"""What the claims measure on features and bits, against counts by hand, numpy and what must hold."""

import gzip
import math

import numpy as np
import pytest
import torch
from PIL import Image
from recipes.claims import baselines, bits, corruptions, counting, doubt, entropy, uncertainty
from recipes.feeds import DataError
from small_images import batch
from torch import nn

from stochastic_bottleneck import StochConWrapper
from stochastic_bottleneck.evaluation import rejection_curve

# ---- few bits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f1", "fewest", "share"),
    [
        ([0.1, 0.5, 0.96, 0.97, 1.0], 11, 0.96),
        ([0.1, 0.96, 0.90, 0.97, 1.0], 50, 0.90),  # 5 bits were lucky: with 11 the score was lower again
        ([0.1, 0.2, 0.3, 0.4, 1.0], 128, 0.3),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 128, 0.6),
    ],
)
def test_the_fewest_bits_keep_their_share_from_there_on(f1, fewest, share):
    found = {"counts": [1, 5, 11, 50, 128], "f1": f1}
    assert bits.enough(found) == fewest
    assert bits.kept(found) == pytest.approx(share)


def test_a_latent_of_fewer_bits_keeps_everything():
    assert bits.kept({"counts": [1, 8], "f1": [0.2, 0.5]}) == 1.0


# ---- other codes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def features():
    draw = np.random.default_rng(0)
    mixing = draw.standard_normal((16, 16)) * np.linspace(3, 0.5, 16)[:, None]
    rows = (draw.standard_normal((700, 16)) @ mixing + 2).astype(np.float32)
    return rows[:500], rows[500:]


@pytest.mark.parametrize("method", ["itq", "pca_signs", "random_signs"])
@pytest.mark.parametrize("count", [8, 16])
def test_codes_have_the_bits_that_they_say(features, method, count):
    train, test = baselines.METHODS[method](*features, count)
    assert (train.shape, test.shape) == ((500, count), (200, count))
    assert set(np.unique(train)) == {0.0, 1.0}
    assert 0.3 < train.mean() < 0.7


def test_pca_signs_are_those_of_numpy(features):
    train, test = features
    middle = train.mean(axis=0)
    axes = np.linalg.svd(train - middle, full_matrices=False)[2][:4].T
    expected = (test - middle) @ axes > 0
    found = baselines.pca_signs(train, test, 4)[1] > 0.5
    same = (found == expected).mean(axis=0)
    assert np.maximum(same, 1 - same).min() > 0.99  # a component's sign is arbitrary


def test_itq_loses_less_than_the_principal_components_signs(features):
    """What ITQ minimises: the distance of rotated components, at length one, from their signs."""
    train, test = features
    direct, rotated = (method(train, test, 8)[0] for method in (baselines.pca_signs, baselines.itq))
    unit = train - train.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)

    def unexplained(codes):
        signs = np.c_[2 * codes - 1, np.ones(len(codes))]
        return np.linalg.lstsq(signs, unit, rcond=None)[1].sum()

    assert unexplained(rotated) < unexplained(direct)


def test_product_quantisation_has_a_byte_for_each_part(features):
    train, test = features
    found = baselines.product_quantised(train, test, 16)
    assert (found[0].shape, found[1].shape) == (train.shape, test.shape)
    for part in (slice(0, 8), slice(8, 16)):  # 16 bits: two parts of 8 features, at most 256 centroids each
        assert len(np.unique(found[0][:, part], axis=0)) <= 256
    errors = [np.square(baselines.product_quantised(train, test, b)[1] - test).mean() for b in (8, 16, 32)]
    assert errors[0] > errors[1] > errors[2]


def test_codes_that_cannot_be_had_are_none(features):
    train, test = features
    assert baselines.pca_signs(train, test, 32) is None
    assert baselines.itq(train, test, 32) is None
    assert baselines.random_signs(train, test, 32)[0].shape == (500, 32)
    assert baselines.product_quantised(train, test, 24) is None  # 16 features do not make three parts
    assert baselines.product_quantised(train, test, 12) is None
    assert baselines.product_quantised(train[:255], test, 8) is None


# ---- joint entropy --------------------------------------------------------------------------------------------


def test_independent_bits_hold_what_they_could():
    coins = np.random.default_rng(0).integers(0, 2, (20_000, 32))
    assert entropy.upper_bound(coins).bits == pytest.approx(32, abs=0.1)
    assert entropy.effective_bits(coins) == pytest.approx(32, abs=0.2)
    assert entropy.lower_bound(coins) == pytest.approx(math.log2(20_000), abs=0.01)


def test_copies_hold_what_their_originals_do():
    coins = np.random.default_rng(0).integers(0, 2, (5_000, 4))
    copies = np.repeat(coins, 8, axis=1)[:, np.random.default_rng(1).permutation(32)]
    assert entropy.upper_bound(copies).bits == pytest.approx(
        4, abs=0.05
    )  # a group of eight finds each bit's copies
    assert entropy.effective_bits(copies) == pytest.approx(4, abs=0.05)
    assert entropy.lower_bound(copies) == pytest.approx(4, abs=0.05)


def test_the_correction_takes_bias_away():
    """Over many samples of a known distribution: the plain count lies below, the corrected one nearer to the truth."""
    draw = np.random.default_rng(0)
    p = draw.dirichlet(np.ones(16))
    truth = -(p * np.log2(p)).sum()
    samples = [(draw.choice(16, 100, p=p)[:, None] >> np.arange(4)) & 1 for _ in range(300)]
    plain = np.mean([entropy.plug_in(sample)[0] for sample in samples])
    corrected = np.mean([entropy.miller_madow(sample) for sample in samples])
    assert plain < truth
    assert abs(corrected - truth) < abs(plain - truth) / 3


def test_constant_bits_hold_nothing():
    assert entropy.upper_bound(np.zeros((50, 8))).bits == 0
    assert entropy.lower_bound(np.zeros((50, 8))) == 0
    assert entropy.effective_bits(np.zeros((50, 8))) == 0


# ---- counts ---------------------------------------------------------------------------------------------------


def test_shared_codes_are_counted():
    packed = np.array([[1], [1], [1], [2], [3], [3]], dtype=np.uint8)
    found = counting.shared_codes(packed, np.array([0, 0, 1, 1, 2, 2]))
    assert found == {"codes": 2, "images": 5, "purity": 4 / 5}
    alone = counting.shared_codes(packed[[0, 3]], np.array([0, 1]))
    assert alone == {"codes": 0, "images": 0, "purity": None}


def test_nearest_codes_are_those_of_brute_force():
    draw = np.random.default_rng(0)
    base, queries = (draw.integers(0, 256, (n, 4)).astype(np.uint8) for n in (60, 9))
    distance = np.unpackbits(base[None] ^ queries[:, None], axis=2).sum(axis=2)
    found = counting.nearest(base, queries, 5)
    expected = np.sort(distance, axis=1)[:, :5]
    assert (np.take_along_axis(distance, found, axis=1) == expected).all()


# ---- corrupted and foreign images -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", corruptions.STRENGTHS)
def test_corruptions_grow_with_their_severity(kind):
    smooth = torch.nn.functional.interpolate(batch(6).float(), scale_factor=0.25)
    images = torch.nn.functional.interpolate(smooth, size=(32, 32), mode="bilinear").round().to(torch.uint8)
    before = images.clone()
    found = [corruptions.corrupt(images, kind, severity, seed=3) for severity in (1, 3, 5)]
    assert all(x.shape == images.shape and x.dtype == torch.uint8 for x in found)
    distance = [(x.float() - images.float()).abs().mean().item() for x in found]
    assert 0 < distance[0] < distance[1] < distance[2]
    assert torch.equal(images, before)
    assert torch.equal(found[0], corruptions.corrupt(images, kind, 1, seed=3))


def test_corruptions_refuse_what_they_do_not_know():
    with pytest.raises(
        ValueError, match="kind must be one of noise, blur, contrast, pixelate, jpeg, got 'fog'"
    ):
        corruptions.corrupt(batch(1), "fog", 1)
    with pytest.raises(ValueError, match="severity must be between 1 and 5, got 6"):
        corruptions.corrupt(batch(1), "blur", 6)


def test_contrast_keeps_the_mean():
    images = batch(3)
    found = corruptions.corrupt(images, "contrast", 5).float()
    assert torch.allclose(found.mean(dim=(2, 3)), images.float().mean(dim=(2, 3)), atol=0.6)
    assert found.std() < images.float().std()


def write_idx(path, images):
    header = np.array([2051, *images.shape], dtype=">i4").tobytes()
    content = header + images.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return content


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "t10k-images-idx3-ubyte.gz"])
def test_fashion_is_read_from_idx_files(tmp_path, name):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28))
    write_idx(tmp_path / name, images)
    found = corruptions.fashion(tmp_path, 32, 3)
    assert (found.shape, found.dtype) == ((3, 3, 32, 32), torch.uint8)
    assert torch.equal(found[:, 0], found[:, 2])
    expected = np.asarray(
        Image.fromarray(images[0].astype(np.uint8)).resize((32, 32), Image.Resampling.BILINEAR)
    )
    assert np.abs(found[0, 0].numpy().astype(int) - expected).max() <= 2


def test_foreign_files_that_are_missing_or_damaged_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no t10k-images-idx3-ubyte or t10k-images-idx3-ubyte\.gz below"):
        corruptions.read_idx(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte"
    whole = write_idx(path, np.zeros((5, 28, 28)))
    for content in (whole[:-1], whole[:10], b"\0" + whole[1:3] + b"\7" + whole[4:], b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is damaged or no idx file of images"):
            corruptions.read_idx(tmp_path)
    path.unlink()
    path.with_suffix(".gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="is damaged or no idx file of images"):
        corruptions.read_idx(tmp_path)


def test_digits_need_no_download():
    found = corruptions.digits(32, 7)
    assert (found.shape, found.dtype) == ((7, 3, 32, 32), torch.uint8)
    assert found.float().std() > 30


# ---- uncertainty ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bern", "gauss"])
def test_doubt_is_the_posteriors(kind):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU())
    model = StochConWrapper(encoder, kind=kind, dim=4).eval()
    x = torch.rand(5, 3, 8, 8)
    with torch.no_grad():
        model.encode(x)
        posterior = model.bottleneck.posterior(model.encoder(x))
        expected = posterior.entropy() if kind == "bern" else posterior.std.square().mean(dim=1)
        assert torch.allclose(doubt.Doubt(model)(x)[:, 0], expected)


def test_a_curve_keeps_its_area_and_its_end():
    draw = np.random.default_rng(0)
    scores, right = draw.random(333), draw.random(333) < 0.6
    found, whole = uncertainty.curve(scores, right), rejection_curve(scores, right)
    assert found["area"] == whole.area
    assert (found["coverage"][-1], found["accuracy"][-1]) == (1.0, pytest.approx(right.mean()))
    assert len(found["coverage"]) == uncertainty.POINTS
