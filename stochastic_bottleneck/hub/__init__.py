"""Models saved in folders as safetensors and a JSON config, through huggingface_hub's mixin.

Importing this module needs the extra "hub".
"""

from stochastic_bottleneck._extras import require

for _package in ("huggingface_hub", "safetensors"):  # before the imports below, to name the extra
    require(_package, "stochastic_bottleneck.hub", "hub")

from stochastic_bottleneck.hub._preprocessing import preprocessing  # noqa: E402
from stochastic_bottleneck.hub.model import HubModel  # noqa: E402

__all__ = ["HubModel", "preprocessing"]
