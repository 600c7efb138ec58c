"""What the losses have in common: options, a temperature that may be learned, and gathering from other processes."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stochastic_bottleneck import _checks, distributed


class ContrastiveLoss(nn.Module):
    """Options of a loss; `InfoNCELoss` and `ClipLoss` document them."""

    _temperature: float

    def __init__(
        self,
        temperature: float,
        *,
        learnable: bool = False,
        min_temperature: float = _checks.MIN_TEMPERATURE,
        gather_distributed: bool = False,
        group: dist.ProcessGroup | None = None,
        reduction: Literal["mean", "none"] = "mean",
        block_size: int | None = None,
    ) -> None:
        super().__init__()
        _checks.check_info_nce_options(temperature, reduction, block_size)
        _checks.flag("gather_distributed", gather_distributed)
        self.min_temperature = _checks.real("min_temperature", min_temperature, least=_checks.MIN_TEMPERATURE)
        self.learnable = _checks.flag("learnable", learnable)
        if learnable:
            _checks.real("temperature", temperature, least=min_temperature, hint="or lower min_temperature")
        # Not 0-d, which fully_shard refuses.
        self.log_temperature = nn.Parameter(torch.zeros(1)) if learnable else None
        self.temperature = float(temperature)
        if group is not None and not gather_distributed:
            raise ValueError(f"group must be None without gather_distributed=True, got {group!r}; pass both")
        self.gather_distributed = gather_distributed
        # A name can be copied and pickled with a model, and spares the compiler a call to the group.
        self._group = distributed.group_name(group)
        self._group_gathers = distributed.has_several_processes(self._group) if group is not None else None
        self.reduction: Literal["mean", "none"] = reduction
        self.block_size = None if block_size is None else int(block_size)

    @property
    def temperature(self) -> Any:
        """The temperature, a float; if it is learned, a tensor of Shape: (), before the bound `min_temperature`."""
        if not self.learnable:
            return self._temperature
        x = cast(Tensor, self.log_temperature)
        return x.to(torch.promote_types(x.dtype, torch.float32)).exp()[0]

    @temperature.setter
    def temperature(self, value: float) -> None:
        if self.log_temperature is None:
            self._temperature = value
        else:
            nn.init.constant_(self.log_temperature, math.log(_checks.real("temperature", value, above=0)))

    def _check_options(self) -> None:
        """Check options again, which may have been set since."""
        temperature = self.min_temperature if self.learnable else self.temperature
        _checks.check_info_nce_options(temperature, self.reduction, self.block_size)

    @staticmethod
    def _views(v: Any, v_prime: Any) -> tuple[Any, Any]:
        """Both views, from an output if it is the only argument. Anything else is refused by the checks that follow."""
        return (v, v_prime) if v_prime is not None else (getattr(v, "v", v), getattr(v, "v_prime", None))

    def _gathers(self) -> bool:
        """Whether there are other processes to gather from."""
        gathers = distributed.has_several_processes()
        return gathers if self._group_gathers is None else gathers and self._group_gathers

    def extra_repr(self) -> str:
        """Temperature and gathering, for `repr`."""
        temperature = "learnable=True" if self.learnable else f"temperature={self.temperature}"
        return f"{temperature}, gather_distributed={self.gather_distributed}"
