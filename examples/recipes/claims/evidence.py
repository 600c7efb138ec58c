"""What claims ask for, and how they get at it: settings, parts of runs, and numbers over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from recipes.claims.series import Criterion, Series
from recipes.figures import LABELS


class Setting(NamedTuple):
    """A model and how it is trained.

    Args:
        model: one of `recipes.models.MODELS`.
        options: of `cifar10_full.py`, beside the preset and what all runs share.
    """

    model: str
    options: tuple[str, ...] = ()


class Need(NamedTuple):
    """Parts of a run that a claim reads.

    Args:
        setting: of the run.
        parts: such as "pretrain" and "frozen", in the order in which they are done.
        once: of the first seed alone.
    """

    setting: Setting
    parts: tuple[str, ...]
    once: bool = False

    def of(self, seeds: Sequence[int]) -> Sequence[int]:
        """Seeds that it is asked of."""
        return seeds[:1] if self.once else seeds


class Grid(NamedTuple):
    """Sizes that the claims are asked at.

    Args:
        dims: latent dimensions that claims on the size compare.
        base_dim: those of all other runs, the preset's.
        forest_dims: numbers of bits that forests and the joint entropy are measured at.
        search_epochs: of each run of the search for settings.
        images: test images that are corrupted, and foreign images of each kind.
        severities: of the corruptions, 1 to 5.
        fashion: whether Fashion-MNIST is at hand.
        alternatives: that the search for settings tries, by their labels; None for all.
    """

    dims: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)
    base_dim: int = 128
    forest_dims: tuple[int, ...] = (128, 512)
    search_epochs: int = 5
    images: int = 2000
    severities: tuple[int, ...] = (1, 3, 5)
    fashion: bool = True
    alternatives: tuple[str, ...] | None = None

    def of_dim(self, model: str, dim: int) -> Setting:
        """A model with so many latent dimensions; the preset's number shares the run of all other claims."""
        return Setting(model, () if dim == self.base_dim else ("--dim", str(dim)))


QUICK = Grid(
    dims=(8, 128),
    forest_dims=(128,),
    search_epochs=2,
    images=60,
    severities=(5,),
    fashion=False,
    alternatives=("start", "location std 4", "both ways round, location std 4"),
)
"""Sizes of a run that only shows that everything works."""

Read = Callable[[Setting, int, str], dict[str, Any] | None]


class Evidence(NamedTuple):
    """What the runs of a claim gave.

    Args:
        read: result of a part of a run, by setting, seed and part; None where it is missing.
        seeds: that were asked for.
        grid: sizes that were asked at.
    """

    read: Read
    seeds: tuple[int, ...]
    grid: Grid

    def results(self, setting: Setting, part: str) -> dict[int, dict[str, Any]]:
        """Results of a part by seed, of those that are done."""
        found = {seed: self.read(setting, seed, part) for seed in self.seeds}
        return {seed: result for seed, result in found.items() if result is not None}

    def series(self, setting: Setting, part: str, *path: Any) -> Series:
        """One number of a part, over the seeds, found by a path of keys."""
        return self.series_of(setting, part, lambda result: _at(result, path))

    def series_of(
        self, setting: Setting, part: str, take: Callable[[dict[str, Any]], float | None]
    ) -> Series:
        """A number made from a part's result, over the seeds; None leaves a seed out."""
        found = {seed: take(result) for seed, result in self.results(setting, part).items()}
        return Series({seed: value for seed, value in found.items() if value is not None}, self.seeds)


class Answer(NamedTuple):
    """What a claim's runs say.

    Args:
        values: plain numbers, lists and dictionaries, for the figure and the reader.
        criteria: that the verdict follows from.
        notes: what the reader must know to read the numbers rightly.
    """

    values: dict[str, Any]
    criteria: list[Criterion]
    notes: tuple[str, ...] = ()


def label(setting: Setting) -> str:
    """A setting in words."""
    return " ".join([LABELS[setting.model], *setting.options])


def merged(needs: Iterable[Need]) -> dict[Setting, Need]:
    """Needs by setting, what several claims ask for once."""
    found: dict[Setting, Need] = {}
    for need in needs:
        earlier = found.get(need.setting, need)
        parts = tuple(dict.fromkeys((*earlier.parts, *need.parts)))
        found[need.setting] = Need(need.setting, parts, earlier.once and need.once)
    return found


def _at(result: dict[str, Any], path: tuple[Any, ...]) -> Any:
    found: Any = result
    for key in path:
        if found is None:
            return None
        found = found.get(key) if isinstance(found, dict) else found[key]
    return found
