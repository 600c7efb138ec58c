"""The model card of a saved model: a README.md that says what the model is and how to use it."""

from __future__ import annotations

from typing import Any

from stochastic_bottleneck import codes
from stochastic_bottleneck.hub import _parts, _preprocessing

TEMPLATE = """\
---
{{ card_data }}
---

# Image encoder with {{ latent }}

Trained by stochastic contrastive learning ([StochCon](https://arxiv.org/abs/2110.00552)) and saved with
[stochastic-bottleneck](https://pypi.org/project/stochastic-bottleneck/) {{ version }}.

| | |
| --- | --- |
| Encoder | {{ encoder }}: {{ parameters }} parameters, {{ features }} features |
| Latent | {{ latent }} (`kind="{{ kind }}"`) |
| Preprocessing | {{ preprocessing }} |
| Compression | {{ compression }} |

## Use

```python
{{ usage }}
```

The model runs in evaluation mode and gives the same values for the same images. `model.encode` also takes \
"upsampled", and `stochastic_bottleneck.evaluation.encode` whole data sets, with each image's uncertainty. \
`model(view, view_prime)` runs the training pass.
"""


def fields(model: Any, config: dict[str, Any]) -> dict[str, str]:
    """What the template of a `HubModel` with this config is filled in with."""
    bottleneck, cfg = model.bottleneck, model.pretrained_cfg
    width, dim, bits = bottleneck.in_features, bottleneck.dim, bottleneck.kind == "bern"
    return {
        "version": config["library_version"],
        "kind": bottleneck.kind,
        "latent": f"{dim} stochastic bits" if bits else f"a Gaussian latent of {dim} dimensions",
        "encoder": _encoder(config),
        "parameters": f"{sum(p.numel() for p in model.encoder.parameters()):,}",
        "features": str(width),
        "preprocessing": "not saved with the model" if cfg is None else _preprocessing.describe(cfg),
        "compression": _compression(8 * ((dim + 7) // 8) if bits else 32 * dim, width, cfg),
        "usage": _usage(config, bits, cfg),
    }


def _encoder(config: dict[str, Any]) -> str:
    named = config["encoder"]
    if named["name"] is None:
        return f"`{config['classes']['encoder']}`"
    options = ", ".join(f"{name}={value!r}" for name, value in (named["options"] or {}).items())
    stem = ", with SimCLR's stem for small images" if named["small_images"] else ""
    return f"`{named['name']}`" + (f" (`{options}`)" if options else "") + stem


def _compression(bits: int, width: int, cfg: dict[str, Any] | None) -> str:
    ratios = [f"{_times(codes.compression_ratio((width,), bits, 32))} less than the features in float32"]
    if cfg is not None:
        channels, height, width = cfg["input_size"]
        ratio = codes.compression_ratio((channels, height, width), bits)
        ratios.append(f"{_times(ratio)} less than the image ({height} x {width}, 8 bits a channel)")
    return f"{bits // 8:,} bytes per image, {' and '.join(ratios)}"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}x" if ratio >= 100 else f"{ratio:.3g}x"


def _usage(config: dict[str, Any], bits: bool, cfg: dict[str, Any] | None) -> str:
    missing = [part for part, build in _parts.builders(config, most_bytes=0).items() if build is None]
    arguments = "".join(f", {part}={part}" for part in missing)
    lines = [
        *(f"# {part}: built as it was for training, {config['classes'][part]}" for part in missing),
        f'model = HubModel.from_pretrained("path/to/this/folder"{arguments})',
    ]
    if cfg is None:
        imports = ["from stochastic_bottleneck.hub import HubModel"]
        lines.append("# images: a tensor (N, C, H, W), preprocessed as in training")
    else:
        imports = ["from PIL import Image", "from stochastic_bottleneck.hub import HubModel, preprocessing"]
        lines.append('images = preprocessing(model)(Image.open("image.jpg")).unsqueeze(0)')
    lines.append('features = model.encode(images, "h")')
    lines.append('codes = model.encode(images, "bits")' if bits else 'latents = model.encode(images, "z")')
    return "\n".join([*imports, "", *lines])
