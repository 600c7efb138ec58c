"""A run's folder with a small StochCon Bern in it, for the tests of the examples that search."""

import json

import torch
from recipes.augment import Normalize
from recipes.models import make_model
from safetensors.torch import save_file
from small_images import batch

CONFIG = {
    "encoder": "small",
    "dim": 20,  # not a multiple of eight: the last byte is padded
    "projection_dim": 8,
    "norm": "batch",
    "symmetric": False,
    "temperature": 1.0,
    "hard": False,
    "location_std": 2.0,
}


def write_run(folder, *, seed=0, name="bern", **changes):
    """Write config.json and the weights of a model whose norms have seen some images; returns the model's folder."""
    config = {**CONFIG, **changes}
    torch.manual_seed(seed)
    options = {key: value for key, value in config.items() if key not in ("encoder", "dim", "projection_dim")}
    model = make_model("bern", config["encoder"], config["dim"], config["projection_dim"], **options)
    images = Normalize()(batch(48))
    with torch.no_grad():
        for _ in range(20):
            model(images, images)
    pretrained = folder / name / "pretrain"
    pretrained.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, pretrained / "weights.safetensors")
    return folder / name
