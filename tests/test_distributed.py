"""Real processes against one: the loss, its gradient, training, and refusals that leave nobody waiting.

The processes start once for each of the two groups of checks, save what they computed, and the tests compare.
"""

import copy
import math
import time
import warnings
from contextlib import contextmanager
from datetime import timedelta
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tolerances import assert_close
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stochastic_bottleneck import InfoNCELoss, StochasticBottleneck, StochConWrapper, functional
from stochastic_bottleneck.distributed import gather_rows
from stochastic_bottleneck.evaluation import encode

pytestmark = pytest.mark.distributed

WORLD, ROWS = 2, 3  # processes, and rows of each
WHOLE = WORLD * ROWS
WIDTH, DIM = 6, 5
LIMIT = 150  # seconds until processes that wait for each other count as hanging


def rows_of(rank):
    return slice(rank * ROWS, (rank + 1) * ROWS)


def tensors(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- starting processes ------------------------------------------------------------------------------------


def launch(work, folder, world=WORLD):
    """What `work(rank)` returned in each of the processes of one gloo group, and what it warned of."""
    processes = mp.spawn(_process, (work, str(folder), world), world, join=False)
    end = time.monotonic() + LIMIT
    try:
        while not processes.join(timeout=1):  # raises when one of them has
            assert time.monotonic() < end, f"{work.__name__} still runs after {LIMIT} s"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _process(rank, work, folder, world):
    torch.set_num_threads(1)
    start = {"init_method": f"file://{folder}/meeting", "rank": rank, "world_size": world}
    dist.init_process_group("gloo", **start, timeout=timedelta(seconds=60))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = work(rank)
        torch.save({**result, "warnings": [str(w.message) for w in caught]}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


# ---- what both sides compute -------------------------------------------------------------------------------

KINDS = {
    "bern": {"kind": "bern"},
    "bern hard": {"kind": "bern", "hard": True},
    "gauss": {"kind": "gauss"},
    "gauss isotropic": {"kind": "gauss", "variance": "isotropic"},
}
MODELS = {(kind, symmetric): {} for kind in KINDS for symmetric in (False, True)}
MODELS |= {
    ("bern", False, "blocks"): {"block_size": 2},
    ("bern", False, "alone"): {"gather_distributed": False},
}
LOSSES = {
    "mean": {},
    "cold": {"temperature": 0.05},
    "blocks": {"block_size": 2},
    "none": {"reduction": "none"},
    "none in blocks": {"reduction": "none", "block_size": 4},
    "alone": {"gather_distributed": False},
}
SHAPES = {"one way": (WHOLE, 4), "both ways": (2, WHOLE, 4)}
NOISE = tensors(2, WHOLE, DIM, seed=7)  # of both branches


def row_encoder():
    """No statistics over the batch, which two processes would not share."""
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3), nn.GroupNorm(2, WIDTH), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def row_model(kind, symmetric, *_):
    torch.manual_seed(0)
    bottleneck = StochasticBottleneck(dim=DIM, in_features=WIDTH, location_std=None, **KINDS[kind])
    head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 4))
    encoder = row_encoder()
    return StochConWrapper(encoder, bottleneck=bottleneck, head=head, symmetric=symmetric).double()


@contextmanager
def known_noise(rows):
    """The latents of these rows of the whole batch draw their own part of one noise, whoever holds them."""
    draws = iter(NOISE)

    def draw(like, generator=None):
        return next(draws)[rows]

    with mock.patch.multiple(functional, logistic_noise=draw, normal_noise=draw):
        yield


def model_step(case, rows=slice(None), wrap=lambda model: model):
    """Loss and the gradient of every parameter."""
    model = row_model(*case)
    wrapped = wrap(model)  # kept until after the backward pass: its hooks average the gradient
    x, x_prime = (tensors(WHOLE, 3, 5, 5, seed=seed)[rows] for seed in (1, 2))
    with known_noise(rows):
        output = wrapped(x, x_prime)
    loss = InfoNCELoss(**{"gather_distributed": True, **MODELS[case]})(*output[:2])
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}


def loss_step(options, shape, rows=slice(None), dtype=torch.float64, wrap=lambda loss: loss, **how):
    """Loss and its gradient in both views, the mean taken of rows that were not reduced."""
    views = [tensors(*shape, seed=seed)[..., rows, :].to(dtype).requires_grad_() for seed in (3, 4)]
    loss = wrap(InfoNCELoss(**{"gather_distributed": True, **options}))(*views)
    gradients = torch.autograd.grad(loss.mean(), views, **how)
    return [loss.detach(), *(gradient.detach() for gradient in gradients)]


def compiled(loss):
    return torch.compile(loss, fullgraph=True, backend="aot_eager")


WAYS = {
    "compiled": {"wrap": compiled},
    "to be differentiated again": {"create_graph": True},
    "float16": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16},
}


# ---- two processes equal one -------------------------------------------------------------------------------


def compute(rank):
    return {
        "models": {case: model_step(case, rows_of(rank), DistributedDataParallel) for case in MODELS},
        "losses": {
            (name, shape): loss_step(LOSSES[name], SHAPES[shape], rows_of(rank))
            for name in LOSSES
            for shape in SHAPES
        },
        "ways": {
            (way, shape): loss_step({}, SHAPES[shape], rows_of(rank), **WAYS[way])
            for way in WAYS
            for shape in SHAPES
        },
        "training": {kind: train(kind, rank) for kind in ("bern", "gauss", "frozen")},
    }


def train(kind, rank):
    """Three ordinary steps on images of this process's own."""
    torch.manual_seed(rank)  # noise, and weights until DistributedDataParallel has made them equal
    encoder = nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU())
    options = {"dim": DIM, "projection_dim": 4, "feature_dim": WIDTH}
    model = StochConWrapper(encoder, kind="gauss" if kind == "gauss" else "bern", **options)
    model.freeze_encoder(kind == "frozen")
    parallel = DistributedDataParallel(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer, loss = torch.optim.Adam(model.parameters(), lr=0.01), InfoNCELoss(gather_distributed=True)
    noise = []
    for _ in range(3):
        optimizer.zero_grad()
        output = parallel(*torch.randn(2, 4, 3, 5, 5))
        noise.append(output.z.detach())
        loss(*output[:2]).backward()
        optimizer.step()
    after = {name: p.detach() for name, p in model.named_parameters()}
    return {"before": before, "after": after, "z": torch.stack(noise)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return launch(compute, tmp_path_factory.mktemp("compute"))


def gathering(cases):
    return [case for case in cases if "alone" not in case]


@pytest.mark.parametrize("case", gathering(MODELS), ids=str)
def test_model_equals_one_process_on_the_whole_batch(ranks, case):
    expected = model_step(case)
    assert all(value.any() for value in expected.values())
    assert_close(sum(rank["models"][case]["loss"] for rank in ranks) / WORLD, expected["loss"])
    for rank in ranks:
        assert rank["models"][case].keys() == expected.keys()
        for name in expected.keys() - {"loss"}:
            assert_close(rank["models"][case][name], expected[name])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", gathering(LOSSES))
def test_loss_equals_one_process_on_the_whole_batch(ranks, name, shape):
    loss, *gradients = loss_step(LOSSES[name], SHAPES[shape])
    results = [rank["losses"][name, shape] for rank in ranks]
    if LOSSES[name].get("reduction") == "none":
        for rank, result in enumerate(results):  # each process's own rows, of either view
            expected = torch.cat([half[..., rows_of(rank)] for half in loss.split(WHOLE, dim=-1)], dim=-1)
            assert_close(result[0], expected)
    else:
        assert_close(sum(result[0] for result in results) / WORLD, loss)
    for view, expected in enumerate(gradients):  # DistributedDataParallel divides by the number of processes
        assert_close(torch.cat([result[1 + view] for result in results], dim=-2) / WORLD, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS)
def test_other_ways_to_the_same_loss(ranks, way, shape):
    dtype = WAYS[way].get("dtype", torch.float64)
    loss, *gradients = loss_step({}, SHAPES[shape], dtype=dtype)
    results = [rank["ways"][way, shape] for rank in ranks]
    assert_close(sum(result[0] for result in results) / WORLD, loss)
    for view, expected in enumerate(gradients):
        found = torch.cat([result[1 + view] for result in results], dim=-2)
        assert found.dtype == dtype
        assert_close(found / WORLD, expected)


def test_without_gathering_the_negatives_of_the_other_process_are_missing(ranks):
    case = ("bern", False, "alone")
    alone = [rank["models"][case] for rank in ranks]
    expected = model_step(case)
    assert sum(result["loss"] for result in alone) / WORLD < expected["loss"] - 0.1
    assert not torch.allclose(alone[0]["encoder.backbone.0.weight"], expected["encoder.backbone.0.weight"])
    for shape in SHAPES:
        loss, *_ = loss_step(LOSSES["alone"], SHAPES[shape])
        assert sum(rank["losses"]["alone", shape][0] for rank in ranks) / WORLD < loss - 0.1


@pytest.mark.parametrize("kind", ["bern", "gauss", "frozen"])
def test_training_keeps_the_weights_of_all_processes_equal(ranks, kind):
    first, second = (rank["training"][kind] for rank in ranks)
    assert not torch.equal(first["z"], second["z"])
    for name, weight in first["after"].items():
        assert torch.equal(weight, second["after"][name]), name
        held = kind == "frozen" and name.startswith("encoder.")
        assert torch.equal(weight, first["before"][name]) == held, name


def test_no_process_warns(ranks):
    told = {message for rank in ranks for message in rank["warnings"]}
    assert told == set()


# ---- sharded parameters ------------------------------------------------------------------------------------

SHARDED = {  # names of the modules, in order; "" is the model
    "whole": [""],
    "parts": ["encoder", "bottleneck", "head"],
    "parts and whole": ["encoder", "bottleneck", ""],
}
REPRESENTATIONS = ("h", "z", "upsampled", "bits")


def shard(rank):
    """What models sharded by `fully_shard` give, before and after a training step, and what whole ones do."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    x = tensors(WHOLE, 3, 5, 5, seed=1)
    results = {}
    for name, paths in SHARDED.items():
        model = row_model("bern", True)
        whole = row_model("bern", True)
        for path in paths:
            fully_shard(model.get_submodule(path), mesh=mesh)
        assert all(hasattr(p, "to_local") for p in model.parameters())
        found = []
        for _ in range(2):
            for which in REPRESENTATIONS:
                found.append((model.encode(x, which), whole.encode(x, which)))
                there, here = (encode(m, x, which, batch_size=4) for m in (model, whole))
                found.append((torch.from_numpy(there.features), torch.from_numpy(here.features)))
                found.append((torch.from_numpy(there.uncertainty), torch.from_numpy(here.uncertainty)))
            for m in (model, whole):
                with known_noise(slice(None)):
                    output = m(x, tensors(WHOLE, 3, 5, 5, seed=2))
                InfoNCELoss()(*output[:2]).backward()
                torch.optim.SGD(m.parameters(), lr=0.1).step()
                m.zero_grad()
        for bad in (x * math.nan, x.float(), x[:0]):  # refused without leaving anything gathered or half run
            with pytest.raises((ValueError, TypeError)):
                model.encode(bad, "bits")
        found.append((model.encode(x, "bits"), whole.encode(x, "bits")))
        results[name] = found
    return {"results": results}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    if not hasattr(pytest.importorskip("torch.distributed.fsdp"), "fully_shard"):
        pytest.skip("torch has no fully_shard before 2.6")
    return launch(shard, tmp_path_factory.mktemp("shard"))


@pytest.mark.parametrize("name", SHARDED)
def test_a_sharded_model_encodes_as_a_whole_one(shards, name):
    for rank in shards:
        for sharded, whole in rank["results"][name]:
            if whole.is_floating_point():
                assert_close(sharded, whole)
            else:
                assert torch.equal(sharded, whole)


# ---- refusals ----------------------------------------------------------------------------------------------

UNEVEN = {  # shapes of v and v_prime on each process, and the part of the message that names them
    "rows": ([(3, 4), (3, 4)], [(2, 4), (2, 4)], "rank 0: (3, 4) and (3, 4), rank 1: (2, 4) and (2, 4)"),
    "width": ([(3, 4), (3, 4)], [(3, 5), (3, 5)], "rank 0: (3, 4) and (3, 4), rank 1: (3, 5) and (3, 5)"),
    "same size": ([(2, 6), (2, 6)], [(3, 4), (3, 4)], "rank 0: (2, 6) and (2, 6), rank 1: (3, 4) and (3, 4)"),
    "empty": ([(3, 4), (3, 4)], [(0, 4), (0, 4)], "rank 1: (0, 4) and (0, 4)"),
    "ways": ([(1, 3, 4)] * 2, [(3, 4)] * 2, "rank 0: (1, 3, 4) and (1, 3, 4), rank 1: (3, 4) and (3, 4)"),
    "one view": ([(3, 4), (3, 4)], [(3, 4), (2, 4)], "rank 1: (3, 4) and (2, 4)"),
}
OTHER = {  # views and options on each process, and the message
    "None": (
        lambda rank: ((torch.ones(3, 4), torch.ones(3, 4) if rank else None), {}),
        "one batch shape on every process, got rank 0: (3, 4) and no dense tensor but NoneType, rank 1: (3, 4) and",
    ),
    "list": (
        lambda rank: (([[1.0]] if rank else torch.ones(3, 4), torch.ones(3, 4)), {}),
        "rank 1: no dense tensor but list and (3, 4)",
    ),
    "sparse": (
        lambda rank: ((torch.ones(3, 4).to_sparse() if rank else torch.ones(3, 4), torch.ones(3, 4)), {}),
        "rank 1: no dense tensor but a sparse_coo one and (3, 4)",
    ),
    "many dimensions": (
        lambda rank: ((torch.ones((1,) * 9 if rank else (3, 4)),) * 2, {}),
        "rank 1: (1, 1, 1, 1, 1, 1, 1, 1, 1) and",
    ),
    "device": (
        lambda rank: ((torch.ones(3, 4, device="meta" if rank else "cpu"),) * 2, {}),
        "one device on every process, got rank 0: cpu and cpu, rank 1: meta and meta; move",
    ),
    "temperature": (
        lambda rank: ((torch.ones(3, 4),) * 2, {"temperature": 0.1 + 0.1 * rank}),
        "one temperature on every process, got rank 0: 0.1, rank 1: 0.2; set it alike on every process",
    ),
    "gradient": (
        lambda rank: ((torch.ones(3, 4, requires_grad=not rank),) * 2, {}),
        "one requires_grad on every process, got rank 0: True, rank 1: False; run every process with or",
    ),
}
UNLIKE = {  # dtype on each process, and the part of the message that names them
    "precision": (torch.float32, torch.float64, "rank 0: float32 and float32, rank 1: float64 and float64"),
    "integers": (torch.float32, torch.int64, "rank 1: not floating point and not floating point"),
}


def refuse(rank):
    """Messages of the errors, and a loss that shows both processes still in step afterwards."""
    loss, messages = InfoNCELoss(gather_distributed=True), {}
    refused = {name: [torch.ones(shape) for shape in case[rank]] for name, case in UNEVEN.items()}
    refused |= {name: torch.ones(2, 3, 4, dtype=case[rank]) for name, case in UNLIKE.items()}
    for name, views in refused.items():
        try:
            loss(*views)
        except ValueError as error:
            messages[name] = str(error)
    for name, (case, _) in OTHER.items():
        views, options = case(rank)
        try:
            InfoNCELoss(gather_distributed=True, **options)(*views)
        except ValueError as error:
            messages[name] = str(error)
    broken = InfoNCELoss(gather_distributed=True)
    broken.temperature = 1e-5 if rank else 0.5
    try:
        broken(torch.ones(3, 4), torch.ones(3, 4))
    except ValueError as error:
        messages["options"] = str(error)
    try:
        gather_rows(torch.ones(3, 4, requires_grad=not rank))
    except ValueError as error:
        messages["gathered gradients"] = str(error)
    try:
        gather_rows(torch.ones(3, 4 + rank))
    except ValueError as error:
        messages["gathered rows"] = str(error)
    return {"messages": messages, "loss": loss_step({}, SHAPES["one way"], rows_of(rank))[0]}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    return launch(refuse, tmp_path_factory.mktemp("refuse"))


@pytest.mark.parametrize("name", UNEVEN)
def test_uneven_batches_are_refused_on_every_process(refusals, name):
    for rank in refusals:
        message = rank["messages"][name]
        assert message.startswith("gather_distributed needs one batch shape on every process, got rank 0: ")
        assert UNEVEN[name][-1] in message
        assert "drop_last=True" in message


@pytest.mark.parametrize("name", UNLIKE)
def test_unlike_dtypes_are_refused_on_every_process(refusals, name):
    for rank in refusals:
        message = rank["messages"][name]
        assert message.startswith("gather_distributed needs one dtype on every process, got rank 0: float32")
        assert UNLIKE[name][-1] in message


@pytest.mark.parametrize("name", OTHER)
def test_whatever_one_process_is_handed_every_process_says_so(refusals, name):
    for rank in refusals:
        assert rank["messages"][name].startswith("gather_distributed needs one ")
        assert OTHER[name][1] in rank["messages"][name]


def test_uneven_rows_are_not_gathered(refusals):
    for rank in refusals:
        assert (
            "gather_rows needs one batch shape on every process, got rank 0: (3, 4), rank 1: (3, 5)"
            in rank["messages"]["gathered rows"]
        )


def test_options_changed_on_one_process_and_gradients_of_one_are_refused_on_all(refusals):
    for rank in refusals:
        assert (
            "one usable input on every process, got rank 0: True, rank 1: False"
            in rank["messages"]["options"]
        )
        assert (
            "gather_rows needs one requires_grad on every process" in rank["messages"]["gathered gradients"]
        )


def test_a_refusal_leaves_the_processes_in_step(refusals):
    assert_close(sum(rank["loss"] for rank in refusals) / WORLD, loss_step({}, SHAPES["one way"])[0])


# ---- a group inside a larger job -----------------------------------------------------------------------------


def groups_of_two(rank):
    """Four processes as 2 x 2: ranks 0 and 2, and 1 and 3, are data-parallel, on batches of their own."""
    groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    group, place = groups[rank % 2], rank // 2
    options = {"group": group, "gather_distributed": True}
    found = {}
    for way, how in GROUP_WAYS.items():
        views = [tensors(WHOLE, 4, seed=10 * (rank % 2) + s)[rows_of(place)].requires_grad_() for s in (3, 4)]
        loss = how(InfoNCELoss(**options))(*views)
        found[way] = [loss.detach(), *torch.autograd.grad(loss, views, create_graph=way == "again")]
        found[way] = [x.detach() for x in found[way]]
    copied = copy.deepcopy(InfoNCELoss(**options))
    found["copy"] = copied(*(x.detach() for x in views))
    torch.manual_seed(0)
    model = nn.Linear(4, 5).double()
    parallel = DistributedDataParallel(model, process_group=group)
    views = [tensors(WHOLE, 4, seed=10 * (rank % 2) + s)[rows_of(place)] for s in (3, 4)]
    InfoNCELoss(**options)(*(parallel(x) for x in views)).backward()
    found["weight"] = model.weight.grad
    message = ""
    try:
        InfoNCELoss(gather_distributed=True, group=groups[1 - rank % 2])
    except TypeError as error:
        message = str(error)
    temperatures = InfoNCELoss(0.1 + 0.1 * place, **options)
    try:
        temperatures(*views)
    except ValueError as error:
        message += str(error)
    return {**found, "message": message}


GROUP_WAYS = {"plain": lambda loss: loss, "compiled": compiled, "again": lambda loss: loss}


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    return launch(groups_of_two, tmp_path_factory.mktemp("groups"), 4)


@pytest.mark.parametrize("column", [0, 1])
def test_a_group_gathers_its_own_rows_only(grouped, column):
    views = [tensors(WHOLE, 4, seed=10 * column + s).requires_grad_() for s in (3, 4)]
    expected = InfoNCELoss()(*views)
    gradients = torch.autograd.grad(expected, views)
    ranks = [grouped[column], grouped[column + 2]]
    for way in GROUP_WAYS:
        assert_close(sum(rank[way][0] for rank in ranks) / 2, expected)
        for view, gradient in enumerate(gradients):
            assert_close(torch.cat([rank[way][1 + view] for rank in ranks]) / 2, gradient)
    for rank in ranks:
        assert_close(rank["copy"], rank["plain"][0])
        assert "group must be a process group that this process belongs to" in rank["message"]
        assert "rank 0: 0.1, rank 1: 0.2" in rank["message"]


@pytest.mark.parametrize("column", [0, 1])
def test_a_group_trains_as_one_process_on_its_whole_batch(grouped, column):
    torch.manual_seed(0)
    model = nn.Linear(4, 5).double()
    InfoNCELoss()(*(model(tensors(WHOLE, 4, seed=10 * column + s)) for s in (3, 4))).backward()
    for rank in (column, column + 2):
        assert_close(grouped[rank]["weight"], model.weight.grad)


@pytest.mark.parametrize("group", [3, "data", [0, 1]])
def test_what_is_no_group_is_refused(group):
    with pytest.raises(TypeError, match="group must be a process group that this process belongs to"):
        InfoNCELoss(gather_distributed=True, group=group)
    with pytest.raises(ValueError, match="group must be None without gather_distributed=True"):
        InfoNCELoss(group=group)


# ---- second derivatives --------------------------------------------------------------------------------------


def second_step(rows=slice(None)):
    """Gradient of a function of the gradient, as a gradient penalty has it; one view is made from the other."""
    v, w = (tensors(WHOLE, 4, seed=seed)[rows].requires_grad_() for seed in (3, 4))
    v_prime = w + 0.5 * v
    losses = InfoNCELoss(0.3, gather_distributed=True, reduction="none")(v, v_prime)
    (first,) = torch.autograd.grad(losses.sum(), v, create_graph=True)
    return [x.detach() for x in torch.autograd.grad(first.square().sum(), (v, w))]


def second(rank):
    return {"second": second_step(rows_of(rank))}


def test_second_derivatives_equal_one_process_on_the_whole_batch(tmp_path):
    found = launch(second, tmp_path)
    for view, expected in enumerate(second_step()):
        assert expected.abs().max() > 1e-3
        assert_close(torch.cat([rank["second"][view] for rank in found]), expected)


# ---- nothing to gather -------------------------------------------------------------------------------------


@pytest.fixture
def group_of_one(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def assert_gathers_nothing():
    views = tensors(ROWS, 4, seed=3), tensors(ROWS, 4, seed=4)
    gathered, offset = gather_rows(*views)
    assert offset == 0
    assert all(a is b for a, b in zip(gathered, views, strict=True))
    assert torch.equal(InfoNCELoss(gather_distributed=True)(*views), InfoNCELoss()(*views))


def test_without_a_process_group_gathering_is_the_identity():
    assert not dist.is_initialized()
    assert_gathers_nothing()


def test_in_a_group_of_one_gathering_is_the_identity(group_of_one):
    assert_gathers_nothing()
