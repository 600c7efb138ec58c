"""Several processes against one: loss, gradients, training, sharded models, process groups and refusals.

The processes start once for all tests and save their results, which the tests compare with one process.
"""

import copy
import math
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from oracles import normal, views
from processes import launch
from tolerances import assert_close
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from toy_model import DIM, KINDS, WIDTH, row_model

from stochastic_bottleneck import InfoNCELoss, StochConWrapper, functional
from stochastic_bottleneck.distributed import gather_rows
from stochastic_bottleneck.evaluation import encode

pytestmark = pytest.mark.distributed

WORLD, ROWS = 2, 3  # processes, and rows of each
WHOLE = WORLD * ROWS


def rows_of(rank):
    return slice(rank * ROWS, (rank + 1) * ROWS)


# ---- computed by several processes and by one --------------------------------------------------------------

MODELS = {  # name: kind, options of the wrapper, options of the loss
    **{kind: (kind, {}, {}) for kind in KINDS},
    **{f"{kind} symmetric": (kind, {"symmetric": True}, {}) for kind in ("bern", "gauss isotropic")},
    "bern whitened": ("bern", {"normalization": "whiten"}, {}),
    "gauss whitened, symmetric": ("gauss", {"normalization": "whiten", "symmetric": True}, {}),
    "bern in tiles": ("bern", {}, {"block_size": 2}),
    "bern without gathering": ("bern", {}, {"gather_distributed": False}),
}
LOSSES = {  # name: options of the loss, and how it is computed
    "mean": ({}, {}),
    "low temperature": ({"temperature": 0.05}, {}),
    "tiles": ({"block_size": 2}, {}),
    "per row": ({"reduction": "none"}, {}),
    "per row in tiles": ({"reduction": "none", "block_size": 4}, {}),
    "compiled": ({}, {"wrap": lambda loss: torch.compile(loss, fullgraph=True, backend="aot_eager")}),
    "with create_graph": ({}, {"create_graph": True}),
    "float16": ({}, {"dtype": torch.float16}),
    "bfloat16": ({}, {"dtype": torch.bfloat16}),
    "ring": ({"ring": True}, {}),
    "ring, compiled": ({"ring": True}, {"wrap": lambda loss: torch.compile(loss, fullgraph=True, backend="aot_eager")}),
    "without gathering": ({"gather_distributed": False}, {}),
}
SHAPES = {"one loss": (WHOLE, 4), "two losses": (2, WHOLE, 4)}
NOISE = normal(2, WHOLE, DIM, seed=7)  # for both branches


def gathering(cases):
    return [name for name in cases if "without gathering" not in name]


@contextmanager
def known_noise(rows):
    """Replace the noise of the latents by these rows of `NOISE`."""
    noise = iter(NOISE)

    def sample(like, generator=None):
        return next(noise)[rows]

    with mock.patch.multiple(functional, logistic_noise=sample, normal_noise=sample):
        yield


def model_step(name, rows=slice(None), wrap=lambda model: model):
    """Loss and the gradient of every parameter."""
    kind, model_options, loss_options = MODELS[name]
    model = row_model(kind, **model_options)
    wrapped = wrap(model)  # alive until after backward: its hooks average the gradient
    x, x_prime = (normal(WHOLE, 3, 5, 5, seed=seed)[rows] for seed in (1, 2))
    with known_noise(rows):
        output = wrapped(x, x_prime)
    loss = InfoNCELoss(**{"gather_distributed": True, **loss_options})(*output[:2])
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}


def loss_step(options, shape, rows=slice(None), dtype=torch.float64, wrap=lambda loss: loss, create_graph=False):
    """Loss, and the gradient of its mean in both views."""
    inputs = [normal(*shape, seed=seed)[..., rows, :].to(dtype).requires_grad_() for seed in (3, 4)]
    loss = wrap(InfoNCELoss(**{"gather_distributed": True, **options}))(*inputs)
    gradients = torch.autograd.grad(loss.mean(), inputs, create_graph=create_graph)
    return [loss.detach(), *(gradient.detach() for gradient in gradients)]


def second_step(rows=slice(None)):
    """Gradient of a gradient penalty; one view is computed from the other."""
    v, w = (normal(WHOLE, 4, seed=seed)[rows].requires_grad_() for seed in (3, 4))
    losses = InfoNCELoss(0.3, gather_distributed=True, reduction="none")(v, w + 0.5 * v)
    (first,) = torch.autograd.grad(losses.sum(), v, create_graph=True)
    return [x.detach() for x in torch.autograd.grad(first.square().sum(), (v, w))]


def train(kind, rank):
    """Three training steps on this process's own images."""
    torch.manual_seed(rank)  # noise, and weights until DistributedDataParallel has made them equal
    encoder = nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU())
    options = {"dim": DIM, "projection_dim": 4, "feature_dim": WIDTH}
    model = StochConWrapper(encoder, kind="gauss" if kind == "gauss" else "bern", **options)
    model.freeze_encoder(kind == "frozen")
    parallel = DistributedDataParallel(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer, loss = torch.optim.Adam(model.parameters(), lr=0.01), InfoNCELoss(gather_distributed=True)
    latents = []
    for _ in range(3):
        optimizer.zero_grad()
        output = parallel(*torch.randn(2, 4, 3, 5, 5))
        latents.append(output.z.detach())
        loss(*output[:2]).backward()
        optimizer.step()
    after = {name: p.detach() for name, p in model.named_parameters()}
    return {"before": before, "after": after, "z": torch.stack(latents)}


SHARDED = {  # names of the sharded modules, in order; "" is the model
    "model": [""],
    "modules": ["encoder", "bottleneck", "head"],
    "modules and model": ["encoder", "bottleneck", ""],
}


def sharded_pairs():
    """Pairs of results of a model sharded by `fully_shard` and of a copy, before and after a training step."""
    if not dist.is_available() or not hasattr(torch.distributed, "fsdp"):
        return {}
    from torch.distributed import fsdp
    from torch.distributed.device_mesh import init_device_mesh

    if not hasattr(fsdp, "fully_shard"):  # before torch 2.6
        return {}
    mesh, x = init_device_mesh("cpu", (WORLD,)), normal(WHOLE, 3, 5, 5, seed=1)
    results = {}
    for name, paths in SHARDED.items():
        models = [row_model("bern", symmetric=True) for _ in range(2)]
        for path in paths:
            fsdp.fully_shard(models[0].get_submodule(path), mesh=mesh)
        assert all(hasattr(p, "to_local") for p in models[0].parameters())
        pairs = []
        for _ in range(2):
            for representation in ("h", "z", "upsampled", "bits"):
                pairs.append([model.encode(x, representation) for model in models])
                encoded = [encode(model, x, representation, batch_size=4) for model in models]
                pairs.append([torch.from_numpy(e.features) for e in encoded])
                pairs.append([torch.from_numpy(e.uncertainty) for e in encoded])
            for model in models:
                with known_noise(slice(None)):
                    output = model(x, normal(WHOLE, 3, 5, 5, seed=2))
                InfoNCELoss()(*output[:2]).backward()
                torch.optim.SGD(model.parameters(), lr=0.1).step()
                model.zero_grad()
        for bad in (x * math.nan, x.float(), x[:0]):  # a refusal leaves no parameter gathered
            with pytest.raises((ValueError, TypeError)):
                models[0].encode(bad, "bits")
        pairs.append([model.encode(x, "bits") for model in models])
        results[name] = pairs
    return results


A, B = torch.ones(3, 4), torch.ones(2, 4)
TRACKED = A.clone().requires_grad_()
REFUSALS = {  # views on rank 0 and on rank 1, what differs, and values in the message
    "rows": ((A, A), (B, B), "batch shape", "(3, 4) and (3, 4), rank 1: (2, 4) and (2, 4)"),
    "width": ((A, A), (A.T, A.T), "batch shape", "rank 1: (4, 3) and (4, 3)"),
    "empty": ((A, A), (A[:0], A[:0]), "batch shape", "rank 1: (0, 4) and (0, 4)"),
    "losses": ((A[None], A[None]), (A, A), "batch shape", "(1, 3, 4), rank 1: (3, 4) and (3, 4)"),
    "one view": ((A, A), (A, B), "batch shape", "rank 1: (3, 4) and (2, 4)"),
    "None": ((A, A), (A, None), "batch shape", "rank 1: (3, 4) and no dense tensor but NoneType"),
    "sparse": ((A, A), (A.to_sparse(), A), "batch shape", "rank 1: no dense tensor but a sparse_coo one"),
    "device": ((A, A), (A.to("meta"), A.to("meta")), "device", "cpu and cpu, rank 1: meta and meta"),
    "dtype": ((A, A), (A.double(), A.double()), "dtype", "float32 and float32, rank 1: float64 and float64"),
    "integers": ((A, A), (A.long(), A.long()), "dtype", "rank 1: not floating point and not floating point"),
    "requires_grad": ((TRACKED, A), (A, A), "requires_grad", "rank 0: True, rank 1: False; run every process"),
    "temperature": ((A, A), (A, A), "temperature", "rank 0: 0.1, rank 1: 0.2; set it alike"),
    "bad options": ((A, A), (A, A), "usable input", "rank 0: True, rank 1: False"),
}
TEMPERATURES = {"temperature": (0.1, 0.2), "bad options": (0.5, 1e-5)}  # on rank 0 and on rank 1


def refusal_messages(rank):
    messages = {}
    for name, case in REFUSALS.items():
        loss = InfoNCELoss(gather_distributed=True)
        loss.temperature = TEMPERATURES.get(name, (0.5, 0.5))[rank]
        with pytest.raises(ValueError, match="needs one") as caught:
            loss(*case[rank])
        messages[name] = str(caught.value)
    for name, x in (("gradients", A if rank else TRACKED), ("rows", B if rank else A)):
        with pytest.raises(ValueError, match="needs one") as caught:
            gather_rows(x)
        messages[f"gather_rows, {name}"] = str(caught.value)
    return messages


def compute(rank):
    return {
        "refusals": refusal_messages(rank),  # first: everything after it shows the processes still in step
        "models": {name: model_step(name, rows_of(rank), DistributedDataParallel) for name in MODELS},
        "losses": {
            (name, shape): loss_step(options, SHAPES[shape], rows_of(rank), **way)
            for name, (options, way) in LOSSES.items()
            for shape in SHAPES
        },
        "second": second_step(rows_of(rank)),
        "training": {kind: train(kind, rank) for kind in ("bern", "gauss", "frozen")},
        "sharded": sharded_pairs(),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return launch(compute, tmp_path_factory.mktemp("compute"))


# ---- two processes equal one -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", gathering(MODELS))
def test_model_equals_one_process_on_the_whole_batch(ranks, name):
    expected = model_step(name)
    assert all(value.any() for value in expected.values())
    results = [rank["models"][name] for rank in ranks]
    assert_close(sum(result["loss"] for result in results) / WORLD, expected.pop("loss"))
    for result in results:
        assert result.keys() - {"loss"} == expected.keys()
        for parameter, gradient in expected.items():
            assert_close(result[parameter], gradient)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", gathering(LOSSES))
def test_loss_equals_one_process_on_the_whole_batch(ranks, name, shape):
    options, way = LOSSES[name]
    loss, *gradients = loss_step(options, SHAPES[shape], dtype=way.get("dtype", torch.float64))
    results = [rank["losses"][name, shape] for rank in ranks]
    if options.get("reduction") == "none":
        for rank, result in enumerate(results):  # each process's own rows, of both views
            expected = torch.cat([half[..., rows_of(rank)] for half in loss.split(WHOLE, dim=-1)], dim=-1)
            assert_close(result[0], expected)
    else:
        assert_close(sum(result[0] for result in results) / WORLD, loss)
    for view, expected in enumerate(gradients):  # DistributedDataParallel divides by the number of processes
        found = torch.cat([result[1 + view] for result in results], dim=-2)
        assert found.dtype == expected.dtype
        assert_close(found / WORLD, expected)


def test_second_derivatives_equal_one_process_on_the_whole_batch(ranks):
    for view, expected in enumerate(second_step()):
        assert expected.abs().max() > 1e-3
        assert_close(torch.cat([rank["second"][view] for rank in ranks]), expected)


def test_without_gathering_there_are_fewer_negatives(ranks):
    """The tests above would fail if processes gathered nothing."""
    name = "bern without gathering"
    results, expected = [rank["models"][name] for rank in ranks], model_step(name)
    assert sum(result["loss"] for result in results) / WORLD < expected["loss"] - 0.1
    weight = "encoder.backbone.0.weight"
    assert not torch.allclose(results[0][weight], expected[weight])
    for shape in SHAPES:
        loss, *_ = loss_step({}, SHAPES[shape])
        assert sum(rank["losses"]["without gathering", shape][0] for rank in ranks) / WORLD < loss - 0.1


@pytest.mark.parametrize("kind", ["bern", "gauss", "frozen"])
def test_training_keeps_the_weights_of_all_processes_equal(ranks, kind):
    first, second = (rank["training"][kind] for rank in ranks)
    assert not torch.equal(first["z"], second["z"])
    for name, weight in first["after"].items():
        assert torch.equal(weight, second["after"][name]), name
        is_frozen = kind == "frozen" and name.startswith("encoder.")
        assert torch.equal(weight, first["before"][name]) == is_frozen, name


@pytest.mark.parametrize("name", SHARDED)
def test_a_sharded_model_encodes_as_an_unsharded_one(ranks, name):
    for rank in ranks:
        if not rank["sharded"]:
            pytest.skip("torch has no fully_shard before 2.6")
        for sharded, expected in rank["sharded"][name]:
            if expected.is_floating_point():
                assert_close(sharded, expected)
            else:
                assert torch.equal(sharded, expected)


@pytest.mark.parametrize("name", REFUSALS)
def test_every_process_refuses_inputs_that_differ(ranks, name):
    *_, what, values = REFUSALS[name]
    for rank in ranks:
        message = rank["refusals"][name]
        assert message.startswith(f"gather_distributed needs one {what} on every process, got rank 0: ")
        assert values in message


def test_every_process_refuses_to_gather_rows_that_differ(ranks):
    for rank in ranks:
        message = rank["refusals"]["gather_rows, rows"]
        assert "gather_rows needs one batch shape on every process, got rank 0: (3, 4), rank 1: (2, 4)" in message
        assert "gather_rows needs one requires_grad" in rank["refusals"]["gather_rows, gradients"]


def test_no_process_warns(ranks):
    warnings = {message for rank in ranks for message in rank["warnings"]}
    assert not [message for message in warnings if "FSDP2" not in message]  # which warns of every view


# ---- a process group of a larger job -----------------------------------------------------------------------


def group_views(column, rows=slice(None)):
    return [normal(WHOLE, 4, seed=10 * column + s)[rows].requires_grad_() for s in (3, 4)]


def saved_numbers(inputs, **options):
    """How many numbers are saved for backward."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        InfoNCELoss(gather_distributed=True, block_size=64, **options)(*inputs)
    return sum(sizes)


def two_by_two(rank):
    """Four processes as 2 x 2: ranks 0 and 2, and 1 and 3, are data-parallel, with batches of their own."""
    groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    column, row = rank % 2, rank // 2
    options = {"group": groups[column], "gather_distributed": True}
    inputs = group_views(column, rows_of(row))
    loss = InfoNCELoss(**options)(*inputs)
    result = {"loss": loss.detach(), "gradients": torch.autograd.grad(loss, inputs)}
    again = torch.autograd.grad(InfoNCELoss(**options)(*inputs), inputs, create_graph=True)
    result["gradients with create_graph"] = tuple(x.detach() for x in again)
    inputs = [x.detach() for x in inputs]
    result["copy"] = copy.deepcopy(InfoNCELoss(**options))(*inputs)
    torch.manual_seed(0)
    model = nn.Linear(4, 5).double()
    parallel = DistributedDataParallel(model, process_group=groups[column])
    InfoNCELoss(**options)(*(parallel(x) for x in inputs)).backward()
    result["weight"] = model.weight.grad
    with pytest.raises(TypeError, match="group must be a process group that this process belongs to"):
        InfoNCELoss(gather_distributed=True, group=groups[1 - column])
    with pytest.raises(ValueError, match=r"rank 0: 0\.1, rank 1: 0\.2"):
        InfoNCELoss(0.1 + 0.1 * row, **options)(*inputs)
    inputs = group_views(column, rows_of(row))
    for ring in (False, True):
        for block_size in (None, 2):
            options_of_all = {"ring": ring, "block_size": block_size}
            result["all", ring, block_size] = loss_step(options_of_all, (4 * ROWS, 4), rows_of(rank))
        result["saved", ring] = [saved_numbers(inputs, ring=ring, group=group) for group in (groups[column], None)]
    result["gradients with ring"] = torch.autograd.grad(InfoNCELoss(ring=True, **options)(*inputs), inputs)
    return result


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    return launch(two_by_two, tmp_path_factory.mktemp("groups"), 4)


@pytest.mark.parametrize("column", [0, 1])
def test_a_group_equals_one_process_on_its_whole_batch(grouped, column):
    inputs = group_views(column)
    expected = InfoNCELoss()(*inputs)
    ranks = [grouped[column], grouped[column + 2]]
    assert_close(sum(rank["loss"] for rank in ranks) / 2, expected)
    for view, gradient in enumerate(torch.autograd.grad(expected, inputs)):
        for way in ("gradients", "gradients with create_graph", "gradients with ring"):
            assert_close(torch.cat([rank[way][view] for rank in ranks]) / 2, gradient)
    torch.manual_seed(0)
    model = nn.Linear(4, 5).double()
    InfoNCELoss()(*(model(x) for x in inputs)).backward()
    for rank in ranks:
        assert_close(rank["copy"], rank["loss"])
        assert_close(rank["weight"], model.weight.grad)


@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize("ring", [False, True])
def test_four_processes_equal_one_on_the_whole_batch(grouped, ring, block_size):
    loss, *gradients = loss_step({}, (4 * ROWS, 4))
    results = [rank["all", ring, block_size] for rank in grouped]
    assert_close(sum(result[0] for result in results) / 4, loss)
    for view, gradient in enumerate(gradients, 1):
        assert_close(torch.cat([result[view] for result in results]) / 4, gradient)


def test_only_without_a_ring_memory_grows_with_the_number_of_processes(grouped):
    for rank in grouped:
        (small, large), (ring, larger_ring) = rank["saved", False], rank["saved", True]
        assert ring == larger_ring < small < large


def test_a_ring_needs_gathering():
    with pytest.raises(ValueError, match="ring must be False without gather_distributed=True"):
        InfoNCELoss(ring=True)


# ---- nothing to gather -------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_group", [False, True])
def test_one_process_gathers_nothing(has_group, tmp_path):
    inputs = views(ROWS, 4)
    if has_group:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        gathered, offset = gather_rows(*inputs)
        loss = InfoNCELoss(gather_distributed=True)(*inputs)
    finally:
        if has_group:
            dist.destroy_process_group()
    assert offset == 0
    assert all(a is b for a, b in zip(gathered, inputs, strict=True))
    assert torch.equal(loss, InfoNCELoss()(*inputs))
