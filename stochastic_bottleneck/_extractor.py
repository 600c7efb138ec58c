"""The path from images to a representation, as a module."""

from __future__ import annotations

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
    """Images as a model sees them.

    Args:
        features: the representation asked for.
        h: the encoder's features. Shape: (N, F)
        posterior: of the latent; None where there was no need for it.
    """

    features: Tensor
    h: Tensor
    posterior: Posterior | None

    def refuse_not_finite(self) -> None:
        """Refuse images whose features or latent are not finite; reading the values waits for the device."""
        features = (self.h, self.features) if self.features.is_floating_point() else (self.h,)
        for what, fields in (("features that are", features), ("a latent that is", self.posterior or ())):
            for field in fields:
                if isinstance(field, Tensor) and field.ndim:  # a 0-d temperature is shared
                    finite = field.isfinite().flatten(1).all(1)
                    if not finite.all():
                        raise ValueError(
                            f"{len(finite) - int(finite.sum())} of {len(finite)} images gave {what} not finite; look "
                            "for inf or nan in the images, and for weights that have diverged, or pass validate=False"
                        )


class FeatureExtractor(nn.Module):
    """Images to one representation; for "h" the bottleneck is left out, unless the posterior is wanted."""

    def __init__(
        self,
        encoder: Encoder,
        bottleneck: StochasticBottleneck,
        representation: Representation,
        *,
        posterior: bool = False,
    ) -> None:
        super().__init__()
        _checks.choice("representation", representation, get_args(Representation))
        if representation == "bits" and bottleneck.kind != "bern":
            raise ValueError(
                'representation "bits" needs a bottleneck of kind "bern", got "gauss"; use "z", or pack the '
                "signs with codes.pack_bits(z > 0)"
            )
        self.encoder, self.representation = encoder, representation
        self.bottleneck = bottleneck if posterior or representation != "h" else None
        # Otherwise the upsampler is spared. A sharded bottleneck has whole parameters in its forward only.
        self._whole = representation == "upsampled" or is_sharded(bottleneck)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x).features

    def read(self, x: Tensor) -> Encoding:
        """Representation, features and posterior."""
        h: Tensor = self.encoder(x)
        if self.bottleneck is None:
            return Encoding(h, h, None)
        if self._whole:
            upsampled, z, posterior = self.bottleneck(h, sample=False)
        else:
            posterior = self.bottleneck.posterior(h)
            upsampled, z = h, posterior.mode()
        features = {"h": h, "upsampled": upsampled, "z": z}.get(self.representation)
        return Encoding(pack_bits(z, validate=False) if features is None else features, h, posterior)
