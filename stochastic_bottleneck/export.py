"""Export of the path from images to a representation: `torch.export` and ONNX."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stochastic_bottleneck import _checks
from stochastic_bottleneck._extras import require
from stochastic_bottleneck._layers import evaluation_mode
from stochastic_bottleneck._replay import devices_of, without_autocast
from stochastic_bottleneck._saved import as_trained
from stochastic_bottleneck._version import __version__
from stochastic_bottleneck.codes import unpack_bits
from stochastic_bottleneck.posteriors import BernoulliPosterior
from stochastic_bottleneck.wrapper import Representation, StochConWrapper

__all__ = ["OnnxComparison", "export_onnx", "export_program", "verify_onnx"]

LIBRARY = "stochastic_bottleneck"
DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}
MAX_BYTES = 1536 * 1024**2
"""From this size of weights on, torch.onnx writes them into a second file."""


class OnnxComparison(NamedTuple):
    """Differences between the output of an ONNX file and that of its model, over all values.

    Args:
        representation: what the file gives: "bits", "h", "z" or "upsampled".
        images: number of images compared.
        values: number of values compared: bits for "bits", numbers otherwise.
        different: number of values that are not equal bit for bit.
        largest: "bits": largest distance from zero among the logits whose bits differ, so that a value in the
            order of float32's rounding means that rounding decided the sign; otherwise the largest absolute
            difference. 0 where nothing differs.
    """

    representation: str
    images: int
    values: int
    different: int
    largest: float


def export_program(
    model: StochConWrapper | str | os.PathLike[str],
    example_images: Tensor,
    representation: Representation = "bits",
    *,
    dynamic_batch: bool = True,
) -> torch.export.ExportedProgram:
    """Export the path from images to a representation with `torch.export`, in evaluation mode.

    `torch.export.save` writes the program to a file. The model is left as it is.

    Args:
        model: the model, which may be compiled or inside DistributedDataParallel, or the folder that
            `hub.HubModel.save_pretrained` wrote; "bits" needs one of kind "bern".
        example_images: images as the model will get them, on the model's device. Shape: (N, C, H, W)
        representation: "bits" for z packed eight to a byte, "z" for the latent's mode, "h" for the encoder's
            features, "upsampled" for rho(z).
        dynamic_batch: take batches of any size from 1 on; False keeps N.

    Returns:
        Program with the images as its one input; it gives what `model.encode(images, representation)` does.

    Raises:
        TypeError: for a model that is not a `StochConWrapper`, or images that are not floating point.
        ValueError: for an unknown representation, bits of a Gaussian, no images, or ones that the model does not take,
            and a folder that `hub.HubModel.from_pretrained` refuses.
        FileNotFoundError: for a folder that does not exist.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> model = StochConWrapper(encoder, dim=16, feature_dim=8)
        >>> program = export_program(model, torch.randn(2, 3, 8, 8))
        >>> images = torch.randn(5, 3, 8, 8)
        >>> torch.equal(program.module()(images), model.encode(images, "bits"))
        True
    """
    model = as_trained(model)
    _check_images(example_images, "example_images")
    _checks.flag("dynamic_batch", dynamic_batch)
    path = model.feature_extractor(representation)
    with without_autocast(devices_of(model, [example_images])), evaluation_mode(model), torch.no_grad():
        # torch's exporter reports the same mistakes less clearly.
        _encode(model, example_images, representation, "example_images")
        path.eval()
        if not dynamic_batch:
            return torch.export.export(path, (example_images,))
        # torch.export takes a size of 1 for a constant.
        images = torch.cat((example_images, example_images)) if len(example_images) == 1 else example_images
        batch = torch.export.Dim("batch", min=1)
        return torch.export.export(path, (images,), dynamic_shapes=({0: batch},))


def export_onnx(
    model: StochConWrapper | str | os.PathLike[str],
    path: str | os.PathLike[str],
    example_images: Tensor,
    representation: Representation = "bits",
    *,
    dynamic_batch: bool = True,
    opset_version: int | None = None,
) -> None:
    """Write the path from images to a representation as an ONNX file, in evaluation mode.

    The input is named "images" and the output as the representation; kind, dim, representation and the
    library's version are in the file's metadata. The file is written under a temporary name and renamed once
    ONNX's checker has accepted it. Compare it with the model with `verify_onnx`.

    Args:
        model: as in `export_program`.
        path: of the file; missing folders are created.
        example_images: as in `export_program`. Shape: (N, C, H, W)
        representation: as in `export_program`.
        dynamic_batch: as in `export_program`.
        opset_version: version of ONNX's operators, 18 or later for most models; None for torch's choice.

    Raises:
        ModuleNotFoundError: without onnx and onnxscript (extra "export").
        TypeError: as `export_program`.
        FileNotFoundError: as `export_program`.
        ValueError: as `export_program`, for weights too large for one file, and for an opset version that torch cannot
            write the model in.
    """
    onnx, _ = (require(package, "export_onnx", "export") for package in ("onnx", "onnxscript"))
    model, path = as_trained(model), _checked_path(path)
    if opset_version is not None:
        opset_version = _checks.integer("opset_version", opset_version, hint="None takes torch's choice")
    program = export_program(model, example_images, representation, dynamic_batch=dynamic_batch)
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size > MAX_BYTES:
        raise ValueError(
            f"model has {size:,} bytes of weights, and one ONNX file takes {MAX_BYTES:,}; use export_program, "
            "or a half-precision model"
        )
    with without_autocast(devices_of(model, [example_images])):
        exported: Any = torch.onnx.export(
            program,
            input_names=["images"],
            output_names=[representation],
            opset_version=opset_version,
            dynamic_shapes={"images": {0: "batch"}} if dynamic_batch else None,  # the size's name in the file
            dynamo=True,
            verbose=False,
        )
    # Where torch cannot convert its own version, 18, to the one asked for, it only logs that.
    written = exported.model.opset_imports[""]
    if opset_version not in (None, written):
        raise ValueError(
            f"opset_version must be one that torch can write this model in, got {opset_version}, and torch wrote "
            f"{written}; pass {written}, or None for torch's choice"
        )
    exported.model.metadata_props.update(_metadata(model, representation))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        exported.save(partial, external_data=False)
        onnx.checker.check_model(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def verify_onnx(
    path: str | os.PathLike[str],
    model: StochConWrapper | str | os.PathLike[str],
    images: Tensor,
    *,
    tolerance: float = 1e-4,
) -> OnnxComparison:
    """Run an ONNX file with onnxruntime, on the CPU, and compare it with the model it was exported from.

    Two programs that round differently may disagree on the sign of a logit very close to 0. Such a bit counts as
    different like any other; the tolerance decides whether its logit is large enough to be an error.

    Args:
        path: of a file that `export_onnx` wrote.
        model: as in `export_program`; runs in evaluation mode.
        images: images on the model's device, of the dtype and size exported. Shape: (N, C, H, W)
        tolerance: "bits": a bit may differ where the model's logit is at most this far from 0; otherwise the
            largest absolute difference allowed.

    Returns:
        Number of values compared and of those that differ, and by how much.

    Raises:
        ModuleNotFoundError: without onnxruntime (extra "export").
        FileNotFoundError: for a file or folder that does not exist.
        TypeError: as `export_program`.
        ValueError: for a file that onnxruntime cannot run, or that is of another model, images of another dtype or size
            than it takes, or differences beyond the tolerance.
    """
    onnxruntime = require("onnxruntime", "verify_onnx", "export")
    model, path = as_trained(model), _checked_path(path)
    _check_images(images, "images")
    if images.is_meta:
        raise ValueError("images must hold values, got a meta tensor; load them first")
    tolerance = _checks.real("tolerance", tolerance, least=0)
    if not path.is_file():
        raise FileNotFoundError(f"path must name an ONNX file, got {str(path)!r}; write one with export_onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own, which share no other class
        raise ValueError(
            f"path must name an ONNX file that onnxruntime can run on the CPU, got {str(path)!r}; write it with "
            f"export_onnx, of a float32 model if this one is bfloat16 or float64 (onnxruntime says: {error})"
        ) from error
    found = session.get_modelmeta().custom_metadata_map
    representation = found.get("representation")
    expected = _metadata(model, str(representation))
    if any(found.get(key) != expected[key] for key in ("kind", "dim")):
        raise ValueError(
            f"path must name an ONNX file of this model, kind {model.bottleneck.kind!r} and dim "
            f"{model.bottleneck.dim}, got kind {found.get('kind')!r} and dim {found.get('dim')} in {str(path)!r}; "
            "write it with export_onnx"
        )
    (taken,) = session.get_inputs()
    sizes = zip(taken.shape, images.shape, strict=False)
    if (
        images.dtype != DTYPES.get(taken.type)
        or images.ndim != len(taken.shape)
        or any(isinstance(size, int) and size != given for size, given in sizes)  # a string: of any size
    ):
        shape = f"({', '.join(map(str, taken.shape))})"
        raise ValueError(
            f"images must be {DTYPES.get(taken.type, taken.type)} of shape {shape}, which {str(path)!r} was exported "
            f"for, got {images.dtype} of {tuple(images.shape)}; pass such images and the model that was exported, or "
            "export the model again"
        )
    (output,) = session.run(None, {"images": images.detach().cpu().numpy()})
    with without_autocast(devices_of(model, [images])):
        comparison = _compare(torch.from_numpy(output), model, images, representation)
    if not comparison.largest <= tolerance:  # a difference that is not a number lies beyond it too
        what = "the largest logit among them" if representation == "bits" else "the largest difference"
        raise ValueError(
            f"{str(path)!r} does not give this model's {representation}: {comparison.different} of "
            f"{comparison.values} differ, {what} {comparison.largest:.3g}, tolerance {tolerance:g}; export the "
            "model again, or raise the tolerance"
        )
    return comparison


def _compare(output: Tensor, model: StochConWrapper, images: Tensor, representation: Any) -> OnnxComparison:
    ours = _encode(model, images, representation, "images").cpu()
    if output.shape != ours.shape or output.dtype != ours.dtype:
        raise ValueError(
            f"the ONNX file must give {representation} of shape {tuple(ours.shape)} and {ours.dtype}, got "
            f"{tuple(output.shape)} and {output.dtype}; export the model again"
        )
    if representation == "bits":
        bits = 8 * ours.shape[1]
        different = unpack_bits(ours, bits) != unpack_bits(output, bits)
        with evaluation_mode(model), torch.no_grad():
            posterior = model.bottleneck.posterior(model.encoder(images))
        if not isinstance(posterior, BernoulliPosterior):  # pragma: no cover - encode has refused it
            raise ValueError('representation "bits" needs a bottleneck of kind "bern"')
        # Padding has no logit, and must not differ.
        padding = bits - model.bottleneck.dim
        distance = F.pad(posterior.logits.float().abs().cpu(), (0, padding), value=float("inf"))
    else:
        different, distance = output != ours, (output - ours).abs()
    largest = distance[different].max().item() if different.any() else 0.0
    return OnnxComparison(representation, len(ours), different.numel(), int(different.sum()), largest)


def _metadata(model: StochConWrapper, representation: str) -> dict[str, str]:
    bottleneck = model.bottleneck
    return {
        "library": f"{LIBRARY} {__version__}",
        "kind": bottleneck.kind,
        "dim": str(bottleneck.dim),
        "representation": representation,
    }


def _encode(model: StochConWrapper, images: Tensor, representation: Representation, name: str) -> Tensor:
    try:
        return model.encode(images, representation)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be images that the model takes, got {tuple(images.shape)} of {images.dtype} on "
            f"{images.device}, of which the model says: {error}"
        ) from error


def _checked_path(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a string or a pathlib.Path, got {path!r}")
    if not os.fspath(path) or Path(path).is_dir():
        raise ValueError(f"path must name a file, got {os.fspath(path)!r}, which is a folder or no name at all")
    return Path(path)


def _check_images(images: Tensor, name: str) -> None:
    _checks.check_floating(images, name)
    if images.ndim == 0 or len(images) == 0:
        raise ValueError(f"{name} must hold at least one image, got shape {tuple(images.shape)}")
