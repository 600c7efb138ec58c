"""The wrapper inside the training loops of lightly and solo-learn; for plain PyTorch see `examples/wrap_simclr.py`."""

import lightly.loss
import pytest
import torch
import torchvision
from lightly.models.modules import SimCLRProjectionHead
from oracles import normal
from tolerances import assert_close
from torch import nn
from torch.nn import functional as F

from stochastic_bottleneck import InfoNCELoss, StochConWrapper

N, STEPS, DIM = 8, 3, 16
# A slightly noisy copy, so that a step lowers the loss.
X0 = normal(N, 3, 32, 32, seed=1, dtype=torch.float32)
X1 = X0 + 0.05 * normal(N, 3, 32, 32, seed=2, dtype=torch.float32)


def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18()


def assert_trains(trained, optimizer, loss):
    """The loss decreases, and every parameter, also of the latent, has a gradient and changes."""
    before = {name: parameter.detach().clone() for name, parameter in trained.named_parameters()}
    values = []
    for _ in range(STEPS):
        value = loss()
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < values[0]
    for name, parameter in trained.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if "bias" not in name:  # the gradient of a bias before BatchNorm is a rounding error
            assert parameter.grad.any(), name
            assert not torch.equal(parameter, before[name]), name


def same_noise():
    return torch.Generator().manual_seed(2)


# ---- lightly -----------------------------------------------------------------------------------------------


class LightlySimCLR(nn.Module):
    """As lightly's documentation builds it (examples/pytorch/simclr.py)."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimCLRProjectionHead(512, 512, 128)

    def forward(self, x):
        x = self.backbone(x).flatten(start_dim=1)
        return self.projection_head(x)


@pytest.mark.parametrize("kind", ["bern", "gauss"])
def test_lightly_training(kind):
    simclr = LightlySimCLR(nn.Sequential(*list(resnet().children())[:-1]))
    model = StochConWrapper.from_simclr(simclr, kind=kind, dim=DIM)
    criterion = lightly.loss.NTXentLoss()

    def loss():
        z0, z1 = model(X0, X1, generator=same_noise())[:2]
        return criterion(z0, z1)

    assert_trains(model, torch.optim.SGD(model.parameters(), lr=0.06), loss)
    assert simclr.projection_head.layers[0].weight is model.head.layers[0].weight


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("n", [2, 33])
def test_our_loss_equals_that_of_lightly(temperature, n):
    generator = torch.Generator().manual_seed(n)
    ours = [torch.randn(n, 128, generator=generator, requires_grad=True) for _ in range(2)]
    theirs = [v.detach().clone().requires_grad_() for v in ours]
    values = [InfoNCELoss(temperature)(*ours), lightly.loss.NTXentLoss(temperature)(*theirs)]
    assert_close(values[0], values[1])
    for value in values:
        value.backward()
    for a, b in zip(ours, theirs, strict=True):
        assert b.grad.any()
        assert_close(a.grad, b.grad)


# ---- solo-learn --------------------------------------------------------------------------------------------


class SoloSimCLR(nn.Module):
    """As in solo/methods/base.py and simclr.py; before version 1.0, the backbone was called `encoder`."""

    def __init__(self, name, n_classes=10):
        super().__init__()
        backbone = resnet()
        features_dim = backbone.inplanes
        backbone.fc = nn.Identity()
        backbone.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=2, bias=False)
        setattr(self, name, backbone)
        self.classifier = nn.Linear(features_dim, n_classes)
        self.projector = nn.Sequential(nn.Linear(features_dim, 256), nn.ReLU(), nn.Linear(256, 128))


@pytest.mark.parametrize("name", ["encoder", "backbone"])
def test_solo_learn_training(name):
    """Its training step: the contrastive loss, and an online classifier on detached features."""
    solo = SoloSimCLR(name)
    model = StochConWrapper.from_simclr(solo, kind="bern", dim=DIM)
    both = nn.ModuleList([model, solo.classifier])
    targets = torch.arange(N)

    def loss():
        output = model(X0, X1, generator=same_noise())
        feats = torch.cat((output.h, output.h_prime))
        class_loss = F.cross_entropy(solo.classifier(feats.detach()), targets.repeat(2))
        return InfoNCELoss(temperature=0.1)(output.v, output.v_prime) + class_loss

    assert_trains(both, torch.optim.SGD(both.parameters(), lr=0.1), loss)
    assert getattr(solo, name) is model.encoder.backbone
