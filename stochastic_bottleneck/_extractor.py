"""The path from images to their representations, as a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from torch import Tensor, nn

from stochastic_bottleneck import _checks
from stochastic_bottleneck._layers import is_sharded
from stochastic_bottleneck.bottleneck import StochasticBottleneck
from stochastic_bottleneck.codes import pack_bits
from stochastic_bottleneck.encoders import Encoder
from stochastic_bottleneck.posteriors import Posterior

Representation = Literal["h", "z", "upsampled", "bits"]


class Encoding(NamedTuple):
    """What a model computes of a batch of images; None for what was not needed.

    Args:
        h: the encoder's features. Shape: (N, F)
        z: mode of the latent. Shape: (N, D)
        upsampled: `z` after the upsampler. Shape: (N, F)
        posterior: distribution of the latent.
    """

    h: Tensor
    z: Tensor | None = None
    upsampled: Tensor | None = None
    posterior: Posterior | None = None

    def representation(self, name: Representation) -> Tensor:
        """One representation; bits are packed here."""
        found: Tensor = getattr(self, "z" if name == "bits" else name)
        return pack_bits(found, validate=False) if name == "bits" else found

    def check_finite(self) -> None:
        """Raise an error if features or latents are not finite; reading the values waits for the device."""
        features, latents = (self.h, self.upsampled), (self.z, *(self.posterior or ()))
        for what, fields in (("features that are", features), ("a latent that is", latents)):
            for field in fields:
                if isinstance(field, Tensor) and field.ndim:  # a 0-d temperature is shared
                    finite = field.isfinite().flatten(1).all(1)
                    if not finite.all():
                        raise ValueError(
                            f"{len(finite) - int(finite.sum())} of {len(finite)} images gave {what} not finite; look "
                            "for inf or nan in the images, and for weights that have diverged, or pass validate=False"
                        )


class FeatureExtractor(nn.Module):
    """Images to representations; for "h" alone the bottleneck is left out, unless the posterior is wanted.

    Args:
        encoder: images to features h.
        bottleneck: features to the latent.
        representations: names; `forward` returns the first.
        posterior: compute the posterior even for "h" alone.
    """

    def __init__(
        self,
        encoder: Encoder,
        bottleneck: StochasticBottleneck,
        representations: Sequence[Representation],
        *,
        posterior: bool = False,
    ) -> None:
        super().__init__()
        for name in representations:
            _checks.choice("representation", name, get_args(Representation))
        if "bits" in representations and bottleneck.kind != "bern":
            raise ValueError(
                'representation "bits" needs a bottleneck of kind "bern", got "gauss"; use "z", or pack the '
                "signs with codes.pack_bits(z > 0)"
            )
        self.encoder, self.representation = encoder, representations[0]
        self.bottleneck = bottleneck if posterior or set(representations) != {"h"} else None
        # Otherwise the upsampler is skipped. A sharded bottleneck has its parameters inside its forward only.
        self._upsamples = "upsampled" in representations or is_sharded(bottleneck)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x).representation(self.representation)

    def read(self, x: Tensor) -> Encoding:
        """All that the representations need, from one pass of the encoder."""
        h: Tensor = self.encoder(x)
        if self.bottleneck is None:
            return Encoding(h)
        if self._upsamples:
            upsampled, z, posterior = self.bottleneck(h, sample=False)
            return Encoding(h, z, upsampled, posterior)
        posterior = self.bottleneck.posterior(h)
        return Encoding(h, posterior.mode(), None, posterior)
