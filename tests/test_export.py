"""Export: what the exported program and the ONNX file give is what the model encodes."""

import copy
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from stochastic_bottleneck import StochasticBottleneck, StochConWrapper, codes
from stochastic_bottleneck.export import export_onnx, export_program, verify_onnx

WIDTH, DIM = 6, 11
SIZES = (1, 3, 8)
PATHS = [("bern", "bits"), ("bern", "h"), ("bern", "upsampled"), ("gauss", "z")]
each_path = pytest.mark.parametrize(("kind", "representation"), PATHS)


def images(n=4, seed=0, size=8):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def model(kind="bern", dim=DIM, seed=0, **options):
    """A model whose statistics are no longer those it was built with, in training mode."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Conv2d(3, WIDTH, 3, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
    built = StochConWrapper(encoder, kind=kind, dim=dim, projection_dim=4, **options)
    for seed in range(3):
        built(images(16, 10 + seed), images(16, 20 + seed))
    return built


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An ONNX file of each path."""
    folder = tmp_path_factory.mktemp("onnx")
    written = {}
    for kind, representation in PATHS:
        written[kind, representation] = folder / f"{kind}-{representation}.onnx"
        export_onnx(model(kind), written[kind, representation], images(), representation)
    return written


def run(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": x.numpy()})[0]


# ---- torch.export ------------------------------------------------------------------------------------------


@each_path
def test_the_program_is_encode(kind, representation, tmp_path):
    m = model(kind)
    program = export_program(m, images(), representation)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    for n in SIZES:
        x = images(n, seed=n)
        expected = m.encode(x, representation)
        assert torch.equal(program.module()(x), expected)
        assert torch.equal(loaded.module()(x), expected)


def test_one_example_image_is_enough():
    m = model()
    program = export_program(m, images(1))
    assert torch.equal(program.module()(images(5)), m.encode(images(5), "bits"))


def test_a_batch_of_fixed_size_can_be_asked_for():
    program = export_program(model(), images(3), dynamic_batch=False)
    assert program.module()(images(3)).shape == (3, 2)
    with pytest.raises(AssertionError):
        program.module()(images(4))


def test_exporting_leaves_the_model_alone():
    m = model()
    m.encoder.backbone[1].eval()  # a frozen batch norm in a model in training
    flags = {name: module.training for name, module in m.named_modules()}
    state = copy.deepcopy(m.state_dict())
    random = torch.get_rng_state()
    export_program(m, images())
    assert {name: module.training for name, module in m.named_modules()} == flags
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in m.state_dict().items())


@pytest.mark.parametrize("dim", [1, 7, 8, 9, 64])
def test_packing_is_that_of_codes(dim, tmp_path):
    m, x = model(dim=dim), images(20)
    z = m.encode(x, "z")
    export_onnx(m, tmp_path / "model.onnx", images())
    for packed in (export_program(m, images()).module()(x), torch.from_numpy(run(tmp_path / "model.onnx", x))):
        assert torch.equal(packed, codes.pack_bits(z))
        assert np.array_equal(packed.numpy(), np.packbits(z.numpy() > 0, axis=1))


def test_whitening_is_exported_as_one_affine_map(tmp_path):
    m, x = model("gauss", normalization="whiten"), images(20)
    with torch.autocast("cpu", torch.bfloat16):  # changes nothing
        export_onnx(m, tmp_path / "model.onnx", images(), "z")
        verify_onnx(tmp_path / "model.onnx", m, x)
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert len([op for op in operators if op in ("MatMul", "Gemm")]) == 2  # the projector and the map
    found = torch.from_numpy(run(tmp_path / "model.onnx", x))
    torch.testing.assert_close(found, m.encode(x, "z"), rtol=1e-5, atol=1e-5)


# ---- ONNX --------------------------------------------------------------------------------------------------


@each_path
def test_the_file_says_what_it_holds(kind, representation, files):
    loaded = onnx.load(files[kind, representation])
    (given,), (made,) = loaded.graph.input, loaded.graph.output
    assert (given.name, made.name) == ("images", representation)
    assert given.type.tensor_type.shape.dim[0].dim_param == "batch"
    byte = onnx.TensorProto.UINT8 if representation == "bits" else onnx.TensorProto.FLOAT
    assert made.type.tensor_type.elem_type == byte
    metadata = {entry.key: entry.value for entry in loaded.metadata_props}
    assert (metadata["kind"], metadata["dim"], metadata["representation"]) == (kind, str(DIM), representation)


@each_path
def test_the_file_gives_what_the_model_does(kind, representation, files):
    m = model(kind)
    for n in SIZES:
        x = images(n, seed=n)
        expected = m.encode(x, representation)
        found = torch.from_numpy(run(files[kind, representation], x))
        compared = verify_onnx(files[kind, representation], m, x)
        assert (compared.representation, compared.images) == (representation, n)
        if representation == "bits":
            assert torch.equal(found, expected)
            assert compared == ("bits", n, 16 * n, 0, 0.0)
        else:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            assert compared.values == expected.numel()
            assert compared.different == (found != expected).sum()
            assert compared.largest == (found - expected).abs().max()


def test_bits_that_differ_are_counted_and_refused(files):
    """The model changes after the export; the count is numpy's."""
    m, x = model(), images(8, seed=5)
    m.bottleneck.projector.weight.data[0].neg_()
    m.bottleneck.projector.bias.data[0].neg_()
    m.bottleneck.location_norm.running_mean[0].neg_()
    ours, theirs = m.encode(x, "bits").numpy(), run(files["bern", "bits"], x)
    flipped = np.unpackbits(ours ^ theirs).sum()
    assert flipped == 8
    compared = verify_onnx(files["bern", "bits"], m, x, tolerance=100.0)
    with torch.no_grad():
        logits = m.eval().bottleneck.posterior(m.encode(x)).logits[:, 0]
    assert compared.different == flipped
    assert compared.largest == pytest.approx(logits.abs().max().item())
    with pytest.raises(ValueError, match=r"bits: 8 of 128 differ, the largest logit .*tolerance 0\.0001"):
        verify_onnx(files["bern", "bits"], m, x)


def test_a_logit_within_rounding_of_zero_is_counted_and_allowed(files):
    m, x = model(), images(8, seed=5)
    with torch.no_grad():
        logits = m.eval().bottleneck.posterior(m.encode(x)).logits
        row, bit = divmod(logits.abs().argmin().item(), DIM)
        scale = 2.0 / (m.bottleneck.location_norm.running_var[bit] + 1e-5).sqrt()
        # Just over to the other side of zero, closer than any other logit is.
        m.bottleneck.location_norm.running_mean[bit] += logits[row, bit] * 1.0001 / scale
        moved = m.bottleneck.posterior(m.encode(x)).logits
    assert moved[row, bit] * logits[row, bit] < 0
    compared = verify_onnx(files["bern", "bits"], m, x)
    assert compared.different == 1
    assert compared.largest == moved[row, bit].abs()
    assert 0 < compared.largest < 1e-4


# ---- mistakes ----------------------------------------------------------------------------------------------


def test_a_file_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "new" / "model.onnx"
    export_onnx(model(), path, images())
    before = path.read_bytes()

    def refuse(*_):
        raise RuntimeError("full disk")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(RuntimeError, match="full disk"):
        export_onnx(model(seed=1), path, images())
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(missing, tmp_path, monkeypatch):
    m, path = model(), tmp_path / "model.onnx"
    calls = {"onnxruntime": lambda: verify_onnx(path, m, images())}
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {missing}; .*stochastic-bottleneck\[export\]"):
        calls.get(missing, lambda: export_onnx(m, path, images()))()


@pytest.mark.parametrize("opset", [13, 99])
def test_an_opset_that_torch_cannot_write_is_refused(opset, tmp_path):
    with pytest.raises(ValueError, match=rf"torch can write this model in, got {opset}, and torch wrote 18"):
        export_onnx(model(), tmp_path / "model.onnx", images(), opset_version=opset)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("opset", [18, np.int64(20)])
def test_an_opset_is_honoured(opset, tmp_path):
    export_onnx(model(), tmp_path / "model.onnx", images(), opset_version=opset)
    assert [entry.version for entry in onnx.load(tmp_path / "model.onnx").opset_import] == [opset]
    assert verify_onnx(tmp_path / "model.onnx", model(), images()).different == 0


def test_a_compiled_model_is_exported_and_verified(tmp_path, fresh_compiler):
    m = model()
    compiled = torch.compile(m)
    assert torch.equal(export_program(compiled, images()).module()(images()), m.encode(images(), "bits"))
    export_onnx(compiled, tmp_path / "model.onnx", images())
    assert verify_onnx(tmp_path / "model.onnx", compiled, images()).different == 0


def test_images_that_the_file_was_not_exported_for_are_refused(files, tmp_path):
    path, taken = (files["bern", "bits"], r"images must be torch.float32 of shape \(batch, 3, 8, 8\), which .* got ")
    for given, message in (
        (images(size=9), r"torch.float32 of \(4, 3, 9, 9\); pass such images"),
        (images()[:, 0], r"torch.float32 of \(4, 8, 8\)"),
        (images().bfloat16(), r"torch.bfloat16 of \(4, 3, 8, 8\)"),
        (images().double(), r"torch.float64 of"),
    ):
        with pytest.raises(ValueError, match=taken + message):
            verify_onnx(path, model().to(given.dtype), given)
    with pytest.raises(ValueError, match=r"images must be images that the model takes, got .*"):
        verify_onnx(path, model().bfloat16(), images())
    export_onnx(model(), tmp_path / "fixed.onnx", images(3), dynamic_batch=False)
    with pytest.raises(ValueError, match=r"of shape \(3, 3, 8, 8\), which .* got torch.float32 of \(4, 3"):
        verify_onnx(tmp_path / "fixed.onnx", model(), images(4))


def test_a_file_that_onnxruntime_cannot_run_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    export_onnx(model().bfloat16(), path, images().bfloat16())
    with pytest.raises(ValueError, match="float32 model if this one is bfloat16 or float64"):
        verify_onnx(path, model().bfloat16(), images().bfloat16())


def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='"bits" needs a bottleneck of kind "bern", got "gauss"'):
        export_program(model("gauss"), images())
    monkeypatch.setattr("stochastic_bottleneck.export.MAX_BYTES", 100)
    with pytest.raises(ValueError, match="bytes of weights, and one ONNX file takes 100; use export_program"):
        export_onnx(model(), tmp_path / "model.onnx", images())


def test_a_file_of_another_model_is_refused(files, tmp_path):
    path = files["bern", "bits"]
    with pytest.raises(ValueError, match=r"kind 'bern' and dim 12, got kind 'bern' and dim 11 in "):
        verify_onnx(path, model(dim=12), images())
    with pytest.raises(ValueError, match="kind 'gauss' and dim 11, got kind 'bern'"):
        verify_onnx(path, model("gauss"), images())
    foreign = onnx.load(path)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="got kind None and dim None"):
        verify_onnx(tmp_path / "foreign.onnx", model(), images())


def test_an_output_of_another_width_is_refused(files):
    other = StochConWrapper(
        nn.Conv2d(3, 9, 3), bottleneck=StochasticBottleneck(dim=DIM, in_features=9), projection_dim=4
    )
    with pytest.raises(ValueError, match=r"must give h of shape \(4, 9\) .*got \(4, 6\)"):
        verify_onnx(files["bern", "h"], other, images())
