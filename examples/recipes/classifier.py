"""Linear classifiers on what a network makes of images: features, or a latent, or several at once."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Representations(nn.Module):
    """Several representations of the same images, by copies of the modules that make them.

    A module that begins with the first one, held as its attribute `encoder`, is given that one's output instead of
    running it again: the features and the latent of `StochConWrapper` cost one pass of the encoder.

    Args:
        parts: modules that each map images to rows, the encoder first. They are left as they are: not frozen, moved
            to a device, or converted.

    Raises:
        ValueError: for no module at all.
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not parts:
            raise ValueError('represent must name at least one module, got none; give {"h": encoder}')
        copies = copy.deepcopy(dict(parts))  # in one call, so that what they share stays shared
        self.first = next(iter(copies))
        encoder = copies[self.first]
        self.continued = [name for name, part in copies.items() if getattr(part, "encoder", None) is encoder]
        for name in self.continued:
            copies[name].encoder = nn.Identity()
        self.parts = nn.ModuleDict(copies)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Rows of each representation. Shape: (N, C, H, W) -> (N, F) each."""
        found: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            found[name] = part(found[self.first] if name in self.continued else x)
        return found


class Classifier(nn.Module):
    """A linear layer to the classes' logits on each representation.

    Layers start at zero, as in SimCLR's code (`zero_init_logits_layer`): the gradient of a linear layer does not
    depend on its weights, so nothing is lost, and no random numbers are needed. Under a trained encoder, the first step
    moves the layer alone.

    The layers run in float32 whatever the precision: in bfloat16, with its 8 bits, the logits of the best classes
    would often be equal, and which of them counts would be a matter of order.

    A frozen classifier stays in evaluation mode except for its linear layers, whoever calls `train()`: batch norms use
    their running statistics and leave them alone, as in SimCLR's and lightly's evaluation. No parameter there requires
    a gradient, so autograd keeps no graph of it either.

    Args:
        represent: maps images to one or more representations.
        widths: of each representation.
        classes: number of classes.
        frozen: whether the linear layers alone are trained.

    Raises:
        ValueError: for a representation without a width.
    """

    def __init__(
        self, represent: Representations, widths: Mapping[str, int], classes: int, *, frozen: bool
    ) -> None:
        super().__init__()
        missing = [name for name in represent.parts if name not in widths]
        if missing:
            raise ValueError(f"widths must tell the width of {', '.join(missing)}, got {dict(widths)}")
        self.represent, self.frozen = represent.requires_grad_(not frozen), frozen
        self.heads = nn.ModuleDict({name: nn.Linear(widths[name], classes) for name in represent.parts})
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)
        self.train()  # whatever mode the pretrained model was left in; Lightning keeps the mode it finds

    @property
    def trained(self) -> nn.Module:
        """The part that training changes."""
        return self.heads if self.frozen else self

    def train(self, mode: bool = True) -> Classifier:
        """Switch everything, or, of a frozen classifier, the linear layers."""
        super().train(mode)
        if self.frozen:
            self.represent.eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits on each representation. Shape: (N, C, H, W) -> (N, classes) each."""
        rows = self.represent(x)
        with torch.autocast(x.device.type, enabled=False):
            return {name: head(rows[name].float()) for name, head in self.heads.items()}
