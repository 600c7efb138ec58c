"""SimCLR as lightly's documentation builds it (examples/pytorch/simclr.py)."""

from lightly.models.modules import SimCLRProjectionHead
from torch import nn


class LightlySimCLR(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimCLRProjectionHead(512, 512, 128)

    def forward(self, x):
        x = self.backbone(x).flatten(start_dim=1)
        return self.projection_head(x)
