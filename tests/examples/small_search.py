"""A small saved StochCon model, for the tests of the examples that search."""

import torch
from small_images import batch

from stochastic_bottleneck.hub import HubModel

CFG = {"input_size": (3, 32, 32), "crop_pct": 1.0, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
ENCODER = {"layers": (1, 1, 1, 1), "channels": (16, 32, 32, 48), "stem_width": 8}


def write_model(folder, *, seed=0, **options):
    """Save a model with 20 bits, so that the last byte is padded, whose norms have seen some images."""
    torch.manual_seed(seed)
    model = HubModel(
        "timm:resnet10t",
        **{"encoder_options": ENCODER, "small_images": True, "pretrained_cfg": CFG, "dim": 20} | options,
    )
    images = (batch(48).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        for _ in range(20):
            model(images, images)
    model.save_pretrained(folder)
    return folder
