"""How the quick preset's settings were chosen: each alternative trained alike, judged on held-out training images.

    python examples/compare_settings.py --out runs/settings
    python examples/compare_settings.py --out runs/settings --publish    # writes examples/results/quick_settings.csv

A fifth of the sample's training images is left out of training and judges; the test images are not touched. What
is done is kept, so a run that was stopped goes on when started again.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from pathlib import Path

import cifar10_full
from recipes import data, evaluate, report
from recipes.files import write_atomically, write_json
from recipes.screen import console

TABLE = Path(__file__).parent / "results" / "quick_settings.csv"

SETTINGS: dict[str, tuple[str, ...]] = {
    "preset": (),
    "logits and means as the projector gives them": ("--location-std", "0"),
    "location std 4": ("--location-std", "4"),
    "one way round (Algorithm 1 to the letter)": ("--no-symmetric",),
    "crops from 8 %": ("--min-crop", "0.08"),
    "crops from 40 %": ("--min-crop", "0.4"),
    "loss temperature 0.5": ("--loss-temperature", "0.5"),
    "half the learning rate": ("--lr", "0.1"),
}
FOR_BITS: dict[str, tuple[str, ...]] = {
    "Concrete temperature 0.5": ("--temperature", "0.5"),
    "Concrete temperature 1 to 0.25": ("--temperature-end", "0.25"),
    "straight-through bits": ("--hard",),
}
COLUMNS = (
    "setting", "model", "seed", "options", "h_probe", "h_knn", "z_probe", "z_knn", "share_of_ones", "bit_correlation"
)  # fmt: skip


def measure(name: str, options: tuple[str, ...], seed: int, folder: Path) -> dict[str, float | None]:
    """Scores of one model with one setting."""
    slug = "_".join(part.lstrip("-") for part in options) or "preset"
    args = cifar10_full.parse(
        ["--preset", "quick", "--held-out", "--seed", str(seed), "--out", str(folder / slug), *options]
    )
    path = args.out / f"{name}-{seed}.json"
    if not path.exists():
        args.out = args.out / f"seed{seed}"
        console.rule(f"{slug}, {report.LABELS[name]}, seed {seed}", align="left")
        result = cifar10_full.train(name, args, data.hold_out(data.load(data.SAMPLE)))
        scores = {
            f"{key}_{score}": result.get(key, {}).get(score) for key in "hz" for score in ("probe", "knn")
        }
        bits = result.get("bits", {})
        scores |= {"share_of_ones": bits.get("share_of_ones"), "bit_correlation": bits.get("correlation")}
        write_json(path, scores)
    return json.loads(path.read_text())


def main() -> None:
    """Measure every setting, then print or publish the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="keeps what is done")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--publish", action="store_true", help=f"write {TABLE.relative_to(TABLE.parents[2])}")
    args = parser.parse_args()
    held_out = data.hold_out(data.load(data.SAMPLE))
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    pixels = args.out / "pixels.json"
    if not pixels.exists():
        write_json(pixels, evaluate.judge(evaluate.pixels(held_out), held_out))
    scores = json.loads(pixels.read_text())
    table.writerow({"setting": "raw pixels", "h_probe": scores["probe"], "h_knn": scores["knn"]})
    for seed in args.seeds:
        for setting, options in {**SETTINGS, **FOR_BITS}.items():
            latent_only = "--location-std" in options or "--no-symmetric" in options
            models = (
                ("bern",)
                if setting in FOR_BITS
                else ("bern", "gauss")
                if latent_only
                else cifar10_full.MODELS
            )
            for name in models:
                scores = measure(name, options, seed, args.out)
                rounded = {k: None if v is None else round(v, 4) for k, v in scores.items()}
                words = " ".join(options)
                table.writerow({"setting": setting, "model": name, "seed": seed, "options": words, **rounded})
    if args.publish:
        write_atomically(TABLE, text.getvalue().encode())
    console.print(text.getvalue(), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
