"""What a finished training leaves in its folder, read again instead of trained anew: its weights and its losses."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file, save
from torch import nn

from recipes.files import write_atomically
from recipes.stepped import SteppedModule, TrainingError
from recipes.training import wait_for_all, world


class Account(NamedTuple):
    """How a training went.

    Args:
        losses: of every step, as a mean over processes.
        seconds: from the first step to the last, over all resumptions.
    """

    losses: list[float]
    seconds: float


def keep(folder: Path, model: nn.Module, module: SteppedModule) -> Account:
    """Write `weights.safetensors` and `loss.csv`; every process calls this, the first one writes.

    Args:
        folder: of the training.
        model: whose weights are kept.
        module: that was trained.
    """
    account = Account(module.losses, module.seconds)
    if world().rank == 0:
        write_atomically(folder / "loss.csv", _table(account))
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        write_atomically(folder / "weights.safetensors", save(state))
    wait_for_all()
    return account


def kept(folder: Path, model: nn.Module) -> Account | None:
    """Load what `keep` wrote.

    Args:
        folder: of the training.
        model: gets the weights.

    Returns:
        The account; None where the training has not been finished.

    Raises:
        TrainingError: for weights that are damaged or of another model.
    """
    weights, log = folder / "weights.safetensors", folder / "loss.csv"
    if not (weights.exists() and log.exists()):
        return None
    try:
        model.load_state_dict(load_file(weights))
    except Exception as error:  # safetensors raises its own kind, and torch another for a wrong model
        raise TrainingError(
            f"{weights} is damaged or of another model ({error}); delete it to train this model anew"
        ) from error
    rows = list(csv.DictReader(log.read_text().splitlines()))
    return Account([float(row["loss"]) for row in rows], float(rows[-1]["seconds"]) if rows else 0.0)


def _table(account: Account) -> bytes:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["step", "loss", "seconds"])
    share = account.seconds / max(1, len(account.losses))
    writer.writerows([i, repr(loss), f"{share * i:.2f}"] for i, loss in enumerate(account.losses, 1))
    return table.getvalue().encode()
