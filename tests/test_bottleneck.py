"""`StochasticBottleneck`: projector, latent and upsampler; lazy widths, precision, compilation, errors."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from saved_models import generator
from tolerances import assert_close
from torch import nn
from toy_model import KINDS

from stochastic_bottleneck import StochasticBottleneck
from stochastic_bottleneck._layers import mlp

N, F, D = 8, 6, 4


def bottleneck(kind="bern", **options):
    return StochasticBottleneck(kind, D, **{"in_features": F, **options})


def features(n=N, width=F, seed=0, dtype=torch.float32):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


LEARNABLE = {f"{kind} learnable scale": {"kind": kind, "learnable_scale": True} for kind in ("bern", "gauss")}
WHITENED = {f"{kind} whitened": {"kind": kind, "normalization": "whiten"} for kind in ("bern", "gauss")}
each_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
each_learnable = pytest.mark.parametrize("options", LEARNABLE.values(), ids=LEARNABLE)
ALL_KINDS = KINDS | LEARNABLE | WHITENED
every_kind = pytest.mark.parametrize("options", ALL_KINDS.values(), ids=ALL_KINDS)


# ---- shapes, train and eval --------------------------------------------------------------------------------


@each_kind
def test_training_draws_and_evaluation_takes_the_mode_unless_sample_is_given(options):
    module = bottleneck(**options)
    for draw in (module(features()), module.eval()(features(), sample=True)):
        assert not torch.equal(draw.z, draw.posterior.mode())
        if options["kind"] == "bern":
            assert set(draw.z.unique().tolist()) == {0.0, 1.0} if options.get("hard") else draw.z.min() > 0
    for mode in (module(features()), module.train()(features(), sample=False)):
        assert torch.equal(mode.z, mode.posterior.mode())
        assert options["kind"] == "gauss" or set(mode.z.unique().tolist()) == {0.0, 1.0}


@each_kind
@pytest.mark.parametrize("upsampler", ["linear", "mlp"])
def test_several_samples_are_single_ones_of_one_posterior(options, upsampler):
    module = bottleneck(**options, upsampler=upsampler)
    several = module(features(), generator=generator(), samples=3)
    assert several.z.shape == (3, N, D)
    assert several.features.shape == (3, N, F)
    source = generator()
    for z, upsampled in zip(several.z, several.features, strict=True):
        single = module(features(), generator=source)
        assert torch.equal(z, single.z)
        assert torch.equal(upsampled, single.features)
    assert torch.equal(several.posterior[0], single.posterior[0])
    assert torch.equal(module(features(), samples=0).z, several.posterior.mode())
    assert module.eval()(features(), samples=3).z.shape == (N, D)


@every_kind
def test_every_parameter_gets_a_gradient_in_training(options):
    module = bottleneck(**options)
    h = features().requires_grad_()
    module(h, features(seed=3)).features.square().sum().backward()
    assert h.grad.abs().sum() > 0
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all()
        moved = parameter.grad.abs().amax(dim=-1) if parameter.ndim == 2 else parameter.grad.abs()
        # A bias before the normalisation has no effect.
        assert (moved[D:] if name == "projector.bias" else moved).gt(1e-12).all(), name


# ---- the formula -------------------------------------------------------------------------------------------


@each_kind
def test_without_normalisation_it_is_the_formula_of_the_paper(options):
    module = bottleneck(**options, location_std=None)
    h, other, state = features(), features(seed=3), torch.get_rng_state()
    output = module(h, other, generator=generator())
    assert torch.equal(torch.get_rng_state(), state)
    parameters = h @ module.projector.weight.T + module.projector.bias
    if options["kind"] == "bern":
        u = torch.rand(N, D, generator=generator())
        z = torch.sigmoid(parameters + u.log() - (1 - u).log())
        z = (z > 0.5).float() if options.get("hard") else z
    else:
        parameters_of_other = other @ module.projector.weight.T + module.projector.bias
        # The bound on log_std is within 1e-3 of the identity here.
        std = (10 * torch.tanh(parameters_of_other[:, D:] / 10)).exp()
        assert_close(std, parameters_of_other[:, D:].exp(), factor=1e3)
        z = parameters[:, :D] + std * torch.randn(N, D, generator=generator())
        assert output.posterior.log_std.shape == std.shape
    assert_close(output.z, z)
    assert_close(output.features, z @ module.upsampler.weight.T + module.upsampler.bias)


@pytest.mark.parametrize("kind", ["bern", "gauss"])
@pytest.mark.parametrize("location_std", [0.5, 2.0, 4])
def test_locations_are_normalised_over_the_batch(kind, location_std):
    module = bottleneck(kind, location_std=location_std)
    with torch.no_grad():
        module.projector.weight.mul_(100.0)
        module.projector.bias.add_(7.0)
    location = module.posterior(features(256))[0]
    assert_close(location.mean(0), torch.zeros(D), factor=10)
    assert_close(location.std(0, correction=0), torch.full((D,), float(location_std)), factor=10)


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_whitening_is_a_triangular_map_to_the_shrunk_correlations(shrinkage):
    module = bottleneck("gauss", normalization="whiten", shrinkage=shrinkage).double()
    h = features(256, dtype=torch.float64)
    location = module.posterior(h).mean / 2.0
    x = module.projector(h)[:, :D].detach().numpy()
    shrunk = (1 - shrinkage) * np.corrcoef(x.T) + shrinkage * np.eye(D)
    expected = np.linalg.solve(np.linalg.cholesky(shrunk), ((x - x.mean(0)) / x.std(0)).T).T
    assert_close(location, torch.from_numpy(expected), factor=1e9)  # 1e-5 is added to the variance
    if shrinkage == 0:
        assert_close(torch.from_numpy(np.corrcoef(location.detach().numpy().T)), torch.eye(D).double(), factor=1e9)
    if shrinkage == 1:
        assert_close(location, bottleneck("gauss").double().location_norm(module.projector(h)[:, :D]))


@pytest.mark.parametrize(("offset", "std"), [(100, 1e-2), (1000, 0.1), (20, 0)])
def test_whitening_finds_a_small_variance_beside_a_large_mean(offset, std):
    h = (offset + std * features(256)).requires_grad_()
    module = bottleneck(normalization="whiten")
    logits = module(h).posterior.logits
    logits.square().mean().backward()
    assert h.grad.isfinite().all()
    exact = copy.deepcopy(module).double().posterior(h.detach().double()).logits
    torch.testing.assert_close(logits.double(), exact, atol=0.1, rtol=0)


@pytest.mark.parametrize("constant", [0.1, 1000.7])
def test_whitening_leaves_a_constant_dimension_at_0(constant):
    x = features(317)
    x[:, 1] = constant
    module = StochasticBottleneck("bern", F, projector="identity", normalization="whiten", shrinkage=0)
    found = module(x)
    assert found.posterior.logits[:, 1].abs().max() < 0.2
    assert found.posterior.logits.std(0).sort().values[1:].min() > 1.9
    module.location_norm.momentum = 1.0
    module(x)
    assert module.eval()(x).posterior.logits[:, 1].abs().max() < 0.2


def test_whitening_in_evaluation_is_one_affine_map_of_running_statistics():
    module = bottleneck(normalization="whiten", shrinkage=0.01)
    for seed in range(60):
        module(3 + 5 * features(512, seed=seed))
    module.eval()
    logits = module.posterior(3 + 5 * features(20_000, seed=99)).logits
    # Four standard errors of 5,000 images or so in the running averages, and the shrinkage.
    assert (logits.mean(0).abs() < 4 * 2.0 / math.sqrt(5000)).all()
    assert (torch.corrcoef(logits.T) - torch.eye(D)).abs().max() < 4 / math.sqrt(5000) + 0.02
    a, b = features(2, seed=5)
    middle = module.posterior(torch.stack([a, b, (a + b) / 2])).logits
    assert_close(middle[2], middle[:2].mean(0), factor=10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_whitening_in_half_precision_keeps_its_statistics_in_float32(dtype):
    module = StochasticBottleneck("gauss", 64, in_features=F, normalization="whiten", shrinkage=0.01).to(dtype)
    for seed in range(60):
        module(features(512, seed=seed).to(dtype))
    assert module.eval()(features(2000, seed=99).to(dtype)).z.float().std(0).max() < 2.2  # location_std is 2


@pytest.mark.parametrize("rows", [2, 3, 16, 64])
def test_whitening_of_a_batch_smaller_than_the_dimension_is_bounded(rows):
    module = StochasticBottleneck("gauss", 64, in_features=F, normalization="whiten")
    h = features(rows).requires_grad_()
    location = module.posterior(h).mean / 2.0
    location.square().mean().backward()
    # Shrinkage s bounds the gain in each direction to 1 / sqrt(s).
    assert location.norm() <= math.sqrt(rows * 64 / 0.1) * 1.01
    assert h.grad.isfinite().all()
    module = StochasticBottleneck("gauss", 64, in_features=F, normalization="whiten", shrinkage=0)
    with pytest.raises(ValueError, match=f"shrinkage must be above 0 for batches .* dim=64 .* {rows} images"):
        module(features(rows))


def test_a_batch_that_is_not_finite_spoils_no_later_one():
    module = bottleneck("gauss", normalization="whiten")
    before = copy.deepcopy(module)
    assert not module(features(64) * math.inf).z.isfinite().any()
    assert torch.equal(module.posterior(features(64)).mean, before.posterior(features(64)).mean)


def test_without_normalisation_there_are_no_statistics_and_a_batch_may_be_one_image():
    module = bottleneck(normalization=None)
    assert module.location_std is None
    assert [name for name, _ in module.named_buffers()] == ["temperature"]
    assert module(features(1)).z.shape == (1, D)


def test_evaluation_uses_running_statistics_without_changing_them():
    module = bottleneck()
    for _ in range(300):
        module(3 + 5 * torch.randn(64, F))
    before = copy.deepcopy(module.state_dict())
    module.eval()
    h = 3 + 5 * torch.randn(512, F)
    logits = module.posterior(h).logits
    # Five standard errors of 512 images, and of the ten or so batches in the running mean.
    assert (logits.mean(0).abs() < 5 * 2.0 * math.sqrt(1 / 512 + 1 / 640)).all()
    assert ((logits.std(0) / 2.0 - 1).abs() < 5 * math.sqrt((1 / 512 + 1 / 640) / 2)).all()
    assert_close(module.posterior(h[:1]).logits[0], logits[0])  # independent of the batch
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key


# ---- learnable scale -------------------------------------------------------------------------------------


def as_fixed(module, location_std=2.0):
    """The same module with a fixed scale."""
    other = bottleneck(module.kind, location_std=location_std)
    state = {name: value for name, value in module.state_dict().items() if name != "log_scale"}
    other.load_state_dict(state)
    return other.train(module.training)


@each_learnable
@pytest.mark.parametrize("location_std", [0.5, 3])
def test_a_learnable_scale_starts_at_location_std_and_acts_as_a_fixed_one(options, location_std):
    module = bottleneck(**options, location_std=location_std)
    assert_close(module.log_scale.exp(), [location_std])
    for training, scale in itertools.product((True, False), (location_std, 1.5)):
        module.train(training).log_scale.data.fill_(math.log(scale))
        fixed = as_fixed(module, scale)
        found, right = (m(features(), features(seed=3), generator=generator()) for m in (module, fixed))
        assert_close(found.z, right.z)
        assert_close(found.posterior[0], right.posterior[0])


@each_learnable
def test_a_learnable_scale_gets_the_gradient_of_finite_differences(options):
    module = bottleneck(**options).double()

    def objective(log_scale):
        output = torch.func.functional_call(
            module, {"log_scale": log_scale}, (features(dtype=torch.float64),), {"generator": generator()}
        )
        return output.features.sum() + output.posterior.kl().sum()

    assert torch.autograd.gradcheck(objective, (module.log_scale.detach().clone().requires_grad_(),))


# ---- opposing features -------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["diagonal", "isotropic"])
@pytest.mark.parametrize("training", [True, False])
def test_opposing_features_give_the_variance_only(variance, training):
    module = bottleneck("gauss", variance=variance).train(training)
    h, other = features(), features(seed=3)
    mixed, own, theirs = module.posterior(h, other), module.posterior(h), module.posterior(other)
    assert torch.equal(mixed.mean, own.mean)
    assert torch.equal(mixed.log_std, theirs.log_std)
    assert not torch.allclose(own.log_std, theirs.log_std)
    if training:
        noise = {"sample": True, "generator": generator()}
        expected = mixed.mean + mixed.log_std.exp() * torch.randn(N, D, generator=generator())
        assert_close(module(h, other, **noise).z, expected)


def test_log_std_is_bounded_so_that_results_stay_finite():
    module = bottleneck("gauss", location_std=None)
    posterior = module.posterior(1e6 * features())
    assert posterior.log_std.abs().max() <= 10
    assert posterior.std.isfinite().all()
    assert posterior.kl().isfinite().all()


# ---- projector and upsampler -------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("out", [None, 5])
@pytest.mark.parametrize("upsampler", ["linear", "mlp"])
@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_maps(options, projector, upsampler, out, lazy):
    maps = {"projector": projector, "upsampler": upsampler, "out_features": out}
    module = bottleneck(**options, **maps, in_features=None if lazy else F)
    assert module(features()).features.shape == (N, out or F)
    assert (module.in_features, module.out_features) == (F, out or F)
    shapes = {name: p.shape for name, p in bottleneck(**options, **maps).state_dict().items()}
    assert {name: p.shape for name, p in module.state_dict().items()} == shapes
    expected = {"linear": [nn.Linear], "mlp": [nn.Sequential, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]}
    assert [type(m) for m in module.projector.modules()] == expected[projector]
    assert [type(m) for m in module.upsampler.modules()] == expected[upsampler]


@pytest.mark.parametrize("lazy", [False, True])
def test_identity_maps(lazy):
    for options, width in ((KINDS["bern"], D), (KINDS["gauss"], 2 * D), (KINDS["gauss isotropic"], D + 1)):
        maps = {"projector": "identity", "upsampler": "identity", "out_features": D, "location_std": None}
        module = bottleneck(**options, **maps, in_features=None if lazy else width)
        h = features(width=width)
        output = module(h)
        assert torch.equal(output.features, output.z)
        assert torch.equal(output.posterior[0], h[:, :D])
        assert not list(module.parameters())


def test_custom_lazy_modules_keep_their_widths_and_training_flags():
    frozen = nn.BatchNorm1d(F).eval()
    projector = nn.Sequential(frozen, nn.LazyLinear(9), nn.LazyLinear(D))
    module = bottleneck(projector=projector, upsampler=nn.LazyLinear(7), out_features=7, in_features=None)
    with torch.inference_mode():
        assert module(features()).features.shape == (N, 7)
    module(features()).features.square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert not frozen.training
    assert projector.training
    assert projector[1].weight.shape == (9, F)


# ---- lazy width --------------------------------------------------------------------------------------------

MAPS = pytest.mark.parametrize("maps", ["linear", "mlp"])


def lazy(maps="linear", kind="bern"):
    return bottleneck(kind, in_features=None, projector=maps, upsampler=maps)


@MAPS
def test_the_first_batch_draws_no_extra_noise_and_is_counted_once(maps):
    module, source = lazy(maps), generator(3)
    module(features(), generator=source)
    assert {int(b) for name, b in module.named_buffers() if name.endswith("num_batches_tracked")} == {1}
    assert torch.equal(torch.rand(1, generator=source), torch.rand(N * D + 1, generator=generator(3))[-1:])


@MAPS
def test_a_batch_that_does_not_fit_the_loaded_state_is_refused(maps):
    module = lazy(maps)
    module.load_state_dict(bottleneck(projector=maps, upsampler=maps).state_dict())
    with pytest.raises(ValueError, match=rf"features must be {F} wide \(in_features\), got 9"):
        module(features(width=9))
    assert module(features()).features.shape == (N, F)


@MAPS
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_before_the_first_batch_are_independent(maps, copier):
    module = lazy(maps)
    other = copier(module)
    assert other(features(width=9)).features.shape == (N, 9)
    assert module.in_features is None
    assert module(features()).features.shape == (N, F)


@MAPS
def test_materialize_equals_a_width_given_to_the_constructor(maps):
    torch.manual_seed(1)
    early = bottleneck(projector=maps, upsampler=maps)
    torch.manual_seed(1)
    late = lazy(maps)
    held = list(late.parameters())
    late.materialize(np.int64(F))
    assert all(a is b for a, b in zip(held, late.parameters(), strict=True))
    assert (late.in_features, late.out_features) == (F, F)
    assert repr(late) == repr(early)
    for (name, a), b in zip(late.state_dict().items(), early.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    late.materialize(F)


# ---- temperature -------------------------------------------------------------------------------------------


def test_set_temperature_works_in_place():
    module = bottleneck(temperature=1.0)
    buffer = module.temperature
    module.set_temperature(0.25)
    assert module.temperature is buffer
    assert buffer.item() == 0.25
    logits = module.posterior(features()).logits
    noise = torch.logit(torch.rand(N, D, generator=generator()))
    assert_close(module(features(), generator=generator()).z, torch.sigmoid((logits + noise) / 0.25), factor=10)
    assert "temperature" not in dict(module.named_parameters())


@pytest.mark.parametrize("hard", [False, True])
def test_the_temperature_can_change_before_the_backward_pass(hard):
    module, twin = bottleneck(hard=hard), bottleneck(hard=hard)
    twin.load_state_dict(module.state_dict())
    weights = torch.randn(N, D)
    output = module(features(), generator=generator())
    module.set_temperature(0.25)
    assert output.posterior.temperature == 1.0
    (output.z * weights).sum().backward()
    (twin(features(), generator=generator()).z * weights).sum().backward()
    assert module.projector.weight.grad.any()
    assert torch.equal(module.projector.weight.grad, twin.projector.weight.grad)


# ---- precision, compilation, export ------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("maps", ["linear", "mlp"])
def test_autocast(options, dtype, maps):
    module = bottleneck(**options, projector=maps, upsampler=maps)
    with torch.autocast("cpu", dtype=dtype):
        output = module(features(), features(seed=3))
        kl = output.posterior.kl()
        assert module(features().to(dtype)).features.dtype == dtype
    assert output.features.dtype == output.posterior[0].dtype == dtype
    assert kl.dtype == torch.float32
    (output.features.float().sum() + kl.sum()).backward()
    for parameter in module.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_modules_of_other_dtypes(options, dtype):
    module = bottleneck(**options).to(dtype)
    output = module(features(dtype=dtype))
    assert output.features.dtype == output.z.dtype == dtype
    assert output.features.isfinite().all()


# torch reads .grad of tensors at a graph break, and warns.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"in_features": None}, {}, "in_features=None is set by the first batch"),
        ({}, {"generator": generator()}, "generator must be None in compiled code"),
    ],
)
def test_calls_that_cannot_be_compiled_have_a_message_and_fall_back(
    options, arguments, message, fresh_compiler, monkeypatch
):
    module = bottleneck(**options)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(module, fullgraph=True, backend="eager")(features(), **arguments)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        with pytest.raises(RuntimeError, match=message):
            module(features(), **arguments)
    output = torch.compile(module, backend="eager")(features(), **arguments)
    assert output.features.shape == (N, F)


@every_kind
def test_exports_in_evaluation_mode(options):
    module = bottleneck(**options).eval()
    program = torch.export.export(module, (features(),), dynamic_shapes=({0: torch.export.Dim("n", min=2, max=64)},))
    for n in (N, 3):
        exported, expected = program.module()(features(n)), module(features(n))
        assert torch.equal(exported[0], expected.features)
        assert torch.equal(exported[1], expected.z)


# ---- errors ------------------------------------------------------------------------------------------------

T, V = TypeError, ValueError
BUILT = [
    ({"learnable_scale": True, "location_std": None}, V, "learnable_scale=True needs a scale.* location_std=2.0"),
    ({"normalization": "whiten", "location_std": None}, V, "whitening needs a scale.* location_std=2.0"),
    ({"kind": "gauss", "hard": True}, V, 'hard=True needs bits, got kind="gauss"; leave hard=False'),
    ({"projector": "identity"}, V, 'projector="identity" needs in_features=4 .* got 6; use'),
    ({"upsampler": "identity"}, V, 'upsampler="identity" gives dim=4 features, but out_features is 6; set'),
]


@pytest.mark.parametrize(("options", "error", "message"), BUILT)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        StochasticBottleneck(**{"dim": D, "in_features": F, **options})


def test_a_training_batch_of_one_image_is_refused():
    for call in (bottleneck(), bottleneck().posterior):
        with pytest.raises(V, match="a training batch of one image cannot be normalised; use a larger batch"):
            call(torch.ones(1, F))


@pytest.mark.parametrize("lazily", [False, True])
def test_a_projector_of_another_width_is_refused(lazily):
    module = bottleneck("gauss", projector=nn.Linear(F, D), in_features=None if lazily else F)
    message = 'projector must give 8 parameters per image for kind="gauss" and dim=4, got 4'
    with pytest.raises(ValueError, match=message):
        module(features())


def test_an_upsampler_of_another_width_is_refused():
    message = r"upsampler must give 6 features per image \(out_features\), got 7; set out_features"
    with pytest.raises(ValueError, match=message):
        bottleneck(upsampler=nn.Linear(D, 7))(features())
    assert bottleneck(upsampler=nn.Linear(D, 7), out_features=7)(features()).features.shape == (N, 7)


@pytest.mark.parametrize("options", [{"projector": "identity"}, {"upsampler": "identity"}])
def test_identities_that_do_not_fit_the_first_batch_are_refused_each_time(options):
    module = bottleneck(in_features=None, **options)
    for _ in range(2):
        with pytest.raises(ValueError, match=r'="identity" (needs in_features=4|gives dim=4 features, but)'):
            module(features())


@pytest.mark.parametrize("temperature", [math.nan, -1.0, True, [0.5, 1.0]])
def test_tensors_that_are_no_temperature_are_refused(temperature):
    module = bottleneck()
    for call in (module.set_temperature, lambda t: bottleneck(temperature=t)):
        with pytest.raises((T, V), match="temperature must be a finite number of at least 1e-06, got"):
            call(torch.tensor(temperature))
    assert module.temperature == 1.0


# ---- lazy layers -------------------------------------------------------------------------------------------


def test_a_copied_lazy_mlp_keeps_its_dtype():
    clone = copy.deepcopy(mlp(None, None, 5).double())
    assert clone(torch.randn(4, 7).double()).dtype == torch.float64
    assert clone[1].running_mean.dtype == torch.float64
