"""What is drawn for the views, beside what torchvision's transforms draw.

Two-sample tests on fixed seeds: a law is accepted where such a difference is likelier than one in a thousand. Laws
that are a little off are refused, far below that.
"""

import itertools

import pytest
import torch
from recipes import draws
from recipes.draws import HUE, NOTHING, RATIO, Draws, draw, draw_crops
from scipy.stats import chi2_contingency, chisquare, ks_2samp, kstest
from torchvision import transforms as T

COUNT = 20_000
ACCEPTED, REFUSED = 1e-3, 1e-6
STEPS = ("brightness", "contrast", "saturation", "hue")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def ours(*, strength=0.5, blur=0.3, seed=1):
    return draw(COUNT, 32, 32, min_scale=0.08, strength=strength, blur=blur, generator=seeded(seed))


def likelihood(sample, other):
    """How likely such a difference between two samples is, value by value. Shape: (N,) or (N, values)."""
    _, codes = torch.cat((sample, other)).unique(dim=0, return_inverse=True)
    counts = torch.stack([part.bincount(minlength=len(codes.unique())) for part in codes.split(len(sample))])
    rare = counts.sum(dim=0) < 20
    together = counts[:, rare].sum(dim=1, keepdim=True)
    table = torch.cat((counts[:, ~rare], together[:, : int(together.sum() > 0)]), dim=1)
    return chi2_contingency(table.numpy()).pvalue


def shares(marks, expected):
    """Within five standard deviations of a binomial share."""
    deviation = (expected * (1 - expected) / len(marks)) ** 0.5
    return abs(marks.double().mean().item() - expected) < 5 * deviation


# ---- crops ---------------------------------------------------------------------------------------------------


def our_crops(height, width, least):
    return torch.stack(draw_crops(COUNT, height, width, least, seeded(2)), dim=1)


def torchvision_crops(height, width, least):
    torch.manual_seed(3)
    image, scale, ratio = torch.empty(3, height, width), [least, 1.0], list(RATIO)
    return torch.tensor([T.RandomResizedCrop.get_params(image, scale, ratio) for _ in range(COUNT)])


def likelihoods_of_crops(sample, other):
    """The same for place, sides, area and ratio, each for itself."""
    features = []
    for crops in (sample, other):
        sides = crops[:, 2:].double()
        more = (sides.prod(dim=1), sides[:, 1] / sides[:, 0])
        features.append(torch.column_stack((crops.double(), *more)).numpy())
    return [ks_2samp(*(x[:, i] for x in features), method="asymp").pvalue for i in range(6)]


SIZES = {"square": (32, 32, 0.08), "half": (32, 32, 0.5), "tall": (48, 20, 0.08), "wide": (16, 48, 0.2)}


@pytest.mark.parametrize(("height", "width", "least"), SIZES.values(), ids=SIZES)
def test_crops_are_drawn_as_by_torchvision(height, width, least):
    likelihoods = likelihoods_of_crops(
        our_crops(height, width, least), torchvision_crops(height, width, least)
    )
    assert min(likelihoods) > ACCEPTED


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 6)])
def test_crops_of_few_pixels_are_as_likely_one_by_one(height, width):
    crops = our_crops(height, width, 0.08)
    assert likelihood(crops, torchvision_crops(height, width, 0.08)) > ACCEPTED
    assert len(crops.unique(dim=0)) > 10


def test_the_middle_is_taken_as_often_where_few_crops_fit():
    crops, others = our_crops(8, 48, 0.3), torchvision_crops(8, 48, 0.3)
    middle = torch.tensor([0, 18, 8, 11])  # all of the height, and 4/3 of it
    shared = [(x == middle).all(dim=1).double().mean() for x in (crops, others)]
    assert shared[0] > 0.9
    assert likelihood(crops, others) > ACCEPTED


@pytest.mark.parametrize(
    ("name", "value", "size"),
    [("ATTEMPTS", 7, "wide"), ("RATIO", (0.7, 4 / 3), "square"), ("RATIO", (3 / 4, 1.36), "wide")],
)
def test_another_law_of_crops_is_refused(monkeypatch, name, value, size):
    others = torchvision_crops(*SIZES[size])
    monkeypatch.setattr(draws, name, value)
    assert min(likelihoods_of_crops(our_crops(*SIZES[size]), others)) < REFUSED


def test_crops_lie_inside_and_reach_both_edges():
    for height, width, least in SIZES.values():
        top, left, down, across = draw_crops(COUNT, height, width, least, seeded(4))
        assert min(top.min(), left.min()) == 0
        assert (down.min() >= 1) & (across.min() >= 1)
        assert ((top + down).max(), (left + across).max()) == (height, width)


# ---- colours, flip and blur ----------------------------------------------------------------------------------


def factor_of(drawn, step):
    """The factor of one step. Shape: (views that are jittered,)."""
    return drawn.factors[drawn.steps == step]


def torchvision_jitter(strength):
    torch.manual_seed(5)
    jitter = T.ColorJitter(*(reach * strength for reach in draws.REACH))
    ranges = [getattr(jitter, name) for name in STEPS]
    drawn = [T.ColorJitter.get_params(*ranges) for _ in range(COUNT)]
    return torch.stack([x[0] for x in drawn]), torch.tensor([x[1:] for x in drawn])


@pytest.mark.parametrize("strength", [0.25, 1.0, 2.0])  # at 2, factors would be negative
def test_factors_and_order_are_drawn_as_by_torchvision(strength):
    drawn = ours(strength=strength)
    order, factors = torchvision_jitter(strength)
    for step in range(4):
        mine, other = factor_of(drawn, step), factors[:, step]
        assert ks_2samp(mine.numpy(), other.numpy(), method="asymp").pvalue > ACCEPTED
        assert kstest(mine.numpy(), "uniform", (other.min(), other.max() - other.min())).pvalue > ACCEPTED
    assert likelihood(drawn.steps[drawn.steps[:, 0] != NOTHING], order) > ACCEPTED


def test_another_law_of_factors_is_refused():
    _, factors = torchvision_jitter(0.5)
    for step in range(4):
        mine = factor_of(ours(strength=0.56), step)
        assert ks_2samp(mine.numpy(), factors[:, step].numpy(), method="asymp").pvalue < REFUSED


def test_all_24_orders_are_as_likely():
    steps = ours().steps
    jittered = steps[steps[:, 0] != NOTHING]
    orders, counts = jittered.unique(dim=0, return_counts=True)
    assert orders.tolist() == [list(order) for order in itertools.permutations(range(4))]
    assert chisquare(counts.numpy()).pvalue > ACCEPTED


def test_a_jitter_has_all_four_steps_or_none():
    assert ours().steps.sort(dim=1).values.unique(dim=0).tolist() == [[0, 1, 2, 3], [NOTHING] * 4]
    assert (ours(strength=0.0).steps == NOTHING).all()


def test_shares_of_flips_jitters_grey_and_blurs():
    drawn = ours(blur=0.3)
    jittered = drawn.steps[:, 0] != NOTHING
    marks = {0.5: drawn.flip, 0.8: jittered, 0.2: drawn.grey, 0.3: drawn.sigma > 0}
    assert all(shares(mark, expected) for expected, mark in marks.items())
    assert not any(shares(mark, expected + 0.02) for expected, mark in marks.items())
    assert (ours(blur=0.0).sigma == 0).all()
    assert (ours(blur=1.0).sigma > 0).all()


def test_the_blur_is_drawn_as_by_torchvision():
    torch.manual_seed(6)
    others = [T.GaussianBlur.get_params(*draws.SIGMA) for _ in range(COUNT)]
    sigma = ours(blur=1.0).sigma
    assert ks_2samp(sigma.numpy(), others, method="asymp").pvalue > ACCEPTED
    assert ks_2samp(sigma.numpy() + 0.15, others, method="asymp").pvalue < REFUSED


def correlations(a, b):
    """In standard deviations of independent samples. Shape: (N, P), (N, Q) -> (P, Q)."""
    table = torch.corrcoef(torch.cat((a, b), dim=1).double().T)
    return table[: a.shape[1], a.shape[1] :] * len(a) ** 0.5


def test_what_is_drawn_is_independent():
    drawn = ours()
    jittered = drawn.steps[:, 0] != NOTHING
    place = [(drawn.top + 0.5) / (33 - drawn.height), (drawn.left + 0.5) / (33 - drawn.width)]
    crop = [drawn.height * drawn.width, (drawn.width / drawn.height).log(), *place]
    every = torch.column_stack((*crop, drawn.flip, jittered, drawn.grey, drawn.sigma > 0))
    steps, factors = drawn.steps[jittered], drawn.factors[jittered]
    turns = steps.argsort(dim=1)
    colours = torch.column_stack((turns[:, HUE], factors.gather(1, turns)))
    own = torch.column_stack((every[jittered][:, [0, 1, 2, 3, 4, 6, 7]], colours))
    for values in (every, own):
        assert (
            correlations(values, values) - len(values) ** 0.5 * torch.eye(values.shape[1])
        ).abs().max() < 5
    first, second = every.chunk(2)  # the two views of each image
    assert correlations(first, second).abs().max() < 5
    assert correlations(every[1:], every[:-1]).abs().max() < 5
    assert correlations(colours[1:], colours[:-1]).abs().max() < 5


def test_groups_name_the_views():
    steps = torch.full((6, 4), NOTHING)
    for view, turn in ((0, 2), (3, 0), (4, 2)):
        steps[view, turn] = HUE
    nothing = torch.zeros(6)
    grey, sigma = torch.tensor([0, 1, 0, 0, 0, 1]).bool(), torch.tensor([0, 0, 0, 0.5, 2.0, 0])
    drawn = Draws(nothing, nothing, nothing, nothing, nothing, steps, nothing, grey, sigma)
    assert [group.tolist() for group in drawn.groups()] == [[3], [], [0, 4], [], [1, 5], [3, 4]]
    assert [group.tolist() for group in drawn.part(slice(3, 6)).groups()] == [[0], [], [1], [], [2], [0, 1]]


def test_views_are_named_by_place_or_by_number():
    drawn = ours()
    numbers = torch.tensor([5, 1, 7])
    assert all(torch.equal(a, b[numbers]) for a, b in zip(drawn.part(numbers), drawn, strict=True))
    assert all(torch.equal(a, b[2:9]) for a, b in zip(drawn.part(slice(2, 9)), drawn, strict=True))


def test_no_grey_may_be_asked_for_and_changes_nothing_else():
    options = {"min_scale": 0.08, "strength": 0.5, "blur": 0.5}
    drawn, without = (
        draw(COUNT, 32, 32, **options, **grey, generator=seeded(1)) for grey in ({}, {"grey": 0.0})
    )
    assert not without.grey.any()
    assert drawn.grey.any()
    assert all(torch.equal(a, b) for a, b in zip(drawn._replace(grey=without.grey), without, strict=True))


def test_every_part_of_a_seed_counts():
    parts = [
        ("a", 1, 2),
        ("b", 1, 2),
        ("a", 2, 1),
        ("a", 12),
        ("a", 1, 2, 0),
        ("a", 2**32 + 1, 2),
        ("a", 1, 2**33 + 2),
    ]
    numbers = {tuple(torch.rand(3, generator=draws.seeded(*part)).tolist()) for part in parts}
    assert len(numbers) == len(parts)
    again = [torch.rand(3, generator=draws.seeded("a", 1, 2)) for _ in range(2)]
    assert torch.equal(*again)


def test_neighbouring_seeds_have_nothing_in_common():
    numbers = torch.stack([torch.rand(4, generator=draws.seeded("x", 0, step)) for step in range(4000)])
    assert len(numbers.unique(dim=0)) == 4000
    assert (numbers.mean(dim=0) - 0.5).abs().max() < 5 / (12 * 4000) ** 0.5
    assert correlations(numbers[1:], numbers[:-1]).abs().max() < 5


def test_the_generator_decides_and_nothing_else():
    before = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(ours(), ours(), strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(ours().top, ours(seed=2).top)
    options = {"min_scale": 0.08, "strength": 0.5, "blur": 0.5}
    torch.manual_seed(1)
    with_global = draw(64, 32, 32, **options)
    for a, b in zip(with_global, draw(64, 32, 32, **options, generator=seeded(1)), strict=True):
        assert torch.equal(a, b)
