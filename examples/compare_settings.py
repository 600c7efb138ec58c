"""How settings of the quick preset were chosen: each alternative trained alike, judged on held-out training images.

    python examples/compare_settings.py --out runs/settings
    python examples/compare_settings.py --out runs/settings --publish    # writes examples/results/quick_settings.csv

A fifth of the sample's training images is left out of training and judges; the test images are not touched. Runs are
kept as those of examples/claims.py are, so that one that was stopped goes on when started again. Settings of the cpu
preset are searched by `examples/claims.py --claim settings`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from functools import cache
from pathlib import Path

import cifar10_full
from recipes import data, evaluate, report
from recipes.claims.cache import Cache
from recipes.claims.chain import complete
from recipes.claims.evidence import Grid, Setting
from recipes.files import write_atomically, write_json
from recipes.models import CONTRASTIVE
from recipes.screen import console
from recipes.settings import hardware

TABLE = Path(__file__).parent / "results" / "quick_settings.csv"

BASE = ("--symmetric",)
SETTINGS: dict[str, tuple[str, ...]] = {
    "preset: one way round (Algorithm 1)": (),
    "both ways round": BASE,
    "both ways, logits and means not normalised": (*BASE, "--location-std", "0"),
    "both ways, location std 4": (*BASE, "--location-std", "4"),
    "both ways, crops from 8 %": (*BASE, "--min-crop", "0.08"),
    "both ways, crops from 40 %": (*BASE, "--min-crop", "0.4"),
    "both ways, loss temperature 0.5": (*BASE, "--loss-temperature", "0.5"),
    "both ways, half the learning rate": (*BASE, "--lr", "0.1"),
}
FOR_BITS: dict[str, tuple[str, ...]] = {
    "both ways, Concrete temperature 0.5": (*BASE, "--temperature", "0.5"),
    "both ways, Concrete temperature 1 to 0.25": (*BASE, "--temperature-end", "0.25"),
    "both ways, straight-through bits": (*BASE, "--hard"),
}
FOR_LATENTS = {"--symmetric", "--location-std"}
COLUMNS = (
    "setting", "model", "seed", "options", "h_probe", "h_knn", "z_probe", "z_knn", "share_of_ones", "bit_correlation"
)  # fmt: skip


@cache
def held_out() -> data.ImageData:
    """Sample whose test images are training images left out, read once for all that is measured."""
    return data.hold_out(data.load(data.SAMPLE))


def runs(folder: Path) -> Cache:
    """The cache of all runs."""
    return Cache(folder, cifar10_full.parse, ("--preset", "quick", "--held-out"), held_out().fingerprint)


def measure(name: str, options: tuple[str, ...], seed: int, folder: Path) -> None:
    """Train and judge one model with one setting, unless that was done."""
    told = f"examples/compare_settings.py --out {folder}"
    complete(runs(folder), Setting(name, options), seed, ("pretrain", "frozen"), Grid(), held_out(), {}, told)


def scores(name: str, options: tuple[str, ...], seed: int, folder: Path) -> dict[str, float | None] | None:
    """What one model reaches with one setting; None where that was not measured."""
    result = runs(folder).read(Setting(name, options), seed, "frozen")
    if result is None:
        return None
    found = {f"{key}_{score}": result.get(key, {}).get(score) for key in "hz" for score in ("probe", "knn")}
    bits = result.get("bits", {})
    return found | {"share_of_ones": bits.get("share_of_ones"), "bit_correlation": bits.get("correlation")}


def models_of(setting: str, options: tuple[str, ...]) -> tuple[str, ...]:
    """Models that a setting makes a difference to."""
    if setting in FOR_BITS:
        return ("bern",)
    named = {option for option in options if option.startswith("--")}
    return ("bern", "gauss") if named and named <= FOR_LATENTS else CONTRASTIVE


def table(seeds: list[int], folder: Path) -> str:
    """Everything that has been measured, as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    pixels = json.loads((folder / "pixels.json").read_text())
    writer.writerow({"setting": "raw pixels", "h_probe": pixels["probe"], "h_knn": pixels["knn"]})
    for setting, options in {**SETTINGS, **FOR_BITS}.items():
        for name in models_of(setting, options):
            for seed in seeds:
                found = scores(name, options, seed, folder)
                if found is not None:
                    rounded = {k: None if v is None else round(v, 4) for k, v in found.items()}
                    row = {"setting": setting, "model": name, "seed": seed, "options": " ".join(options)}
                    writer.writerow(row | rounded)
    return text.getvalue()


def main() -> None:
    """Measure every setting, or publish what has been measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="keeps what is done")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default: 0 1")
    parser.add_argument(
        "--publish",
        action="store_true",
        help=f"train nothing; write what is done to {TABLE.relative_to(TABLE.parents[2])}",
    )
    args = parser.parse_args()
    pixels = args.out / "pixels.json"
    if args.publish and not pixels.exists():
        parser.error(f"--publish: {args.out} holds nothing that was measured; run without --publish first")
    if args.publish:
        write_atomically(TABLE, table(args.seeds, args.out).encode())
        measured_on = {"data": "CIFAR-10 sample (JPEG copy), a fifth of the training images held out"}
        write_json(TABLE.with_suffix(".json"), {**measured_on, "published_from": report.environment()})
    else:
        if not pixels.exists():
            machine = hardware(cifar10_full.parse(["--preset", "quick"]))
            write_json(pixels, evaluate.judge(evaluate.pixels(held_out(), machine), held_out()))
        for seed in args.seeds:
            for setting, options in {**SETTINGS, **FOR_BITS}.items():
                for name in models_of(setting, options):
                    measure(name, options, seed, args.out)
    console.print(table(args.seeds, args.out), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
