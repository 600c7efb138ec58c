"""The paper's claims on CIFAR-10, each answered by measured numbers over several seeds.

    python examples/claims.py --claim bits --data FOLDER_OR_TAR     # trains what is missing, then answers
    python examples/claims.py --all --data FOLDER_OR_TAR --list     # runs needed, done, and hours to go
    python examples/claims.py --all --quick                         # a few minutes on the sample: shows that it works

Every training is a run of `cifar10_full.py` in a folder of its own below `--out`, named by a hash of its settings and
images. Claims share them, and what is done stays done: a command that was stopped goes on when it is given again.
Several at once share the runs out, each taking the next one that no other holds, which fills a large GPU. A claim
leaves `NAME.json` and `NAME.png` in `--results`, anew after every seed; its verdict waits for all seeds. `measured/`
beside them keeps what its runs measured, without their weights: with `--out` on it, `--no-training` writes all anew.
`--claim settings` is the search for settings, on held-out training images.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cifar10_full
from recipes import command, data, ending, evaluate
from recipes.claims import corruptions, pace, record, uncertainty
from recipes.claims.cache import Cache
from recipes.claims.catalogue import CLAIMS, MEASURES
from recipes.claims.chain import TRAINED, complete
from recipes.claims.evidence import QUICK, Grid, Need, Setting, label, merged
from recipes.data import ImageData, Images
from recipes.screen import console
from recipes.training import world

RESULTS = Path(__file__).parent / "results" / "claims"
MEASURED = Path(__file__).parent / "results" / "cifar10_cpu" / "run"
"""A run that is committed; its speed serves until runs of this cache are done."""
QUICK_IMAGES = (600, 200)
QUICK_BASE = (
    *("--preset", "quick", "--epochs", "2", "--batch-size", "100", "--knn-every", "0", "--track-every", "2"),
    *("--finetune-epochs", "1", "--supervised-epochs", "2"),
)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    asked = parser.add_argument_group("what")
    asked.add_argument(
        "--claim", nargs="+", choices=list(CLAIMS), default=[], metavar="NAME", help=", ".join(CLAIMS)
    )
    asked.add_argument("--all", action="store_true", help="every claim, and our own questions")
    asked.add_argument(
        "--seeds", nargs="+", type=int, metavar="SEED", help="default: 0 1 2; with --quick 0 1"
    )
    asked.add_argument(
        "--list", action="store_true", help="train nothing: runs needed, done, and hours to go"
    )
    asked.add_argument(
        "--parts",
        nargs="+",
        choices=[*TRAINED, *MEASURES, uncertainty.FASHION],
        metavar="PART",
        help="do only these parts of the runs, such as pretrain and finetune, and leave the rest to another time or "
        f"machine ({', '.join([*TRAINED, *MEASURES, uncertainty.FASHION])})",
    )
    asked.add_argument(
        "--no-training", action="store_true", help="train nothing: write what the finished runs give"
    )
    asked.add_argument("--quick", action="store_true", help="tiny runs on the sample that ships here")
    asked.add_argument(
        "--adopt",
        type=Path,
        metavar="FOLDER",
        help="first take in a run of cifar10_full.py with the same settings, one of the seeds and the same images",
    )
    asked.add_argument(
        "--resume", action="store_true", help="for the sake of habit: runs are always gone on with"
    )
    places = parser.add_argument_group("where")
    places.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="as in cifar10_full.py; default: the sample (--quick), or torchvision's download into ./data",
    )
    places.add_argument("--foreign", type=Path, metavar="FOLDER", help="with Fashion-MNIST's idx files; default: "
                        "torchvision's download into ./data (with --quick: none)")  # fmt: skip
    places.add_argument("--out", type=Path, metavar="DIR", help="cache of runs (default: runs/claims)")
    places.add_argument("--results", type=Path, metavar="DIR", help="of JSON and figures (default: "
                        "examples/results/claims; with --quick OUT/results)")  # fmt: skip
    runs = parser.add_argument_group("runs (as in cifar10_full.py)")
    runs.add_argument("--preset", choices=list(cifar10_full.PRESETS), default="cpu", help="default: cpu")
    runs.add_argument("--epochs", type=int, help="of pretraining; default: the preset's")
    runs.add_argument("--search-epochs", type=int, help=f"of the search (default: {Grid().search_epochs})")
    runs.add_argument("--dims", nargs="+", type=int, metavar="N", help="latent sizes to compare (default: "
                      f"{' '.join(map(str, Grid().dims))}); fewer take fewer hours")  # fmt: skip
    runs.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    runs.add_argument(
        "--precision",
        choices=("32", "bf16", "16"),
        help="default: bf16 on every machine, so that one goes on with another's runs, though on a CPU without it 32 "
        "is faster; with --quick as in cifar10_full.py",
    )
    runs.add_argument("--compile", action=argparse.BooleanOptionalAction)
    runs.add_argument("--workers", type=int)
    return finish(parser, parser.parse_args(arguments))


def finish(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    """Refuse what cannot be, and fill in what was not given."""
    if args.all:
        args.claim = list(CLAIMS)
    if not args.claim and args.adopt is None:
        parser.error(f"give --claim with one or several of {', '.join(CLAIMS)}, or --all")
    if args.quick and (args.epochs or args.search_epochs or args.dims or args.preset != "cpu"):
        parser.error("--quick has sizes of its own; leave out --preset, --epochs, --search-epochs and --dims")
    if args.dims is not None and (len(set(args.dims)) < 2 or min(args.dims) < 1):
        parser.error(f"--dims must be two or more sizes of at least 1, got {' '.join(map(str, args.dims))}")
    if args.search_epochs is not None and args.search_epochs < 1:
        parser.error(f"--search-epochs must be at least 1, got {args.search_epochs}")
    args.seeds = sorted(set(args.seeds or ((0, 1) if args.quick else (0, 1, 2))))
    low, high = command.RANGES["seed"]
    if not all(low <= seed <= high for seed in args.seeds):
        parser.error(f"--seeds must lie between {low} and {high}, got {' '.join(map(str, args.seeds))}")
    if world().size > 1:
        parser.error(f"claims.py runs in one process, got {world().size}; start it without torchrun")
    args.precision = args.precision or (None if args.quick else "bf16")
    args.out = args.out or Path("runs") / ("claims-quick" if args.quick else "claims")
    args.results = args.results or (args.out / "results" if args.quick else RESULTS)
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 0 when everything was done, 2 for what the user can mend, 130 or 143 when stopped."""
    return ending.main("examples/claims.py", parse, run, arguments)


def run(args: argparse.Namespace, told: str) -> None:
    """Adopt, list, train and answer, as asked."""
    grid = sizes(args)
    images = load(args)
    cache = Cache(args.out, cifar10_full.parse, base_options(args), images.fingerprint)
    cache.args(Setting("simclr"), args.seeds[0])  # refuses wrong options before anything is spent
    if args.adopt is not None:
        copied = cache.adopt(args.adopt, Setting("simclr"), args.seeds)
        said = f"adopted {', '.join(copied)}" if copied else "nothing new to adopt"
        console.print(f"{said} from {args.adopt}", highlight=False, soft_wrap=True, markup=False)
    if args.list:
        show(args, grid, images, cache)
        return
    if not args.no_training:
        train(args, grid, images, cache, told)
    answer(args, grid, images, cache, told)


def base_options(args: argparse.Namespace) -> list[str]:
    """Options of `cifar10_full.py` that all runs share."""
    chosen = list(QUICK_BASE) if args.quick else ["--preset", args.preset]
    for name in ("epochs", "device", "precision", "workers"):
        value = getattr(args, name)
        if value is not None:
            chosen += [f"--{name}", str(value)]
    if args.compile is not None:
        chosen.append("--compile" if args.compile else "--no-compile")
    return chosen


def sizes(args: argparse.Namespace) -> Grid:
    """Sizes that the claims are asked at."""
    if args.quick:
        return QUICK._replace(fashion=args.foreign is not None)
    chosen = {"search_epochs": args.search_epochs, "dims": args.dims and tuple(sorted(set(args.dims)))}
    return Grid()._replace(**{name: value for name, value in chosen.items() if value})


def load(args: argparse.Namespace) -> ImageData:
    """The images; for --quick a few of them."""
    images = data.load(data.SAMPLE if args.data is None and args.quick else args.data)
    return smaller(images, *QUICK_IMAGES) if args.quick else images


def smaller(images: ImageData, train: int, test: int) -> ImageData:
    """At most so many training and test images, evenly from all classes, with a fingerprint of their own."""
    kept = [
        evaluate.evenly(labels, n) for labels, n in ((images.train_labels, train), (images.test_labels, test))
    ]
    parts = [
        Images(whole.images[i], whole.labels[i])
        for whole, i in zip((images.train, images.test), kept, strict=True)
    ]
    fingerprint = hashlib.sha256(f"{images.fingerprint}, {kept}".encode()).hexdigest()
    name = f"{images.name}, {len(kept[0])} training and {len(kept[1])} test images of it"
    return images._replace(train=parts[0], test=parts[1], name=name, fingerprint=fingerprint)


# ---- work -----------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace, grid: Grid, images: ImageData, cache: Cache, told: str) -> None:
    """Do every part that is missing, one seed after the other, and answer after each."""
    needs = [
        need._replace(parts=tuple(part for part in need.parts if args.parts is None or part in args.parts))
        for need in merged(all_needs(args, grid)).values()
    ]
    measures = dict(MEASURES)
    lacking = record.missing(cache, needs, args.seeds)
    if any(uncertainty.FASHION in parts for parts in lacking.values()):  # before anything is spent
        foreign = corruptions.fashion(args.foreign, images.size, grid.images)
        measures[uncertainty.FASHION] = partial(uncertainty.measure_fashion, foreign=foreign)
    held_out = data.hold_out(images)
    for seed in args.seeds:
        news = False
        for setting, parts, _ in (need for need in needs if seed in need.of(args.seeds)):
            of_run = held_out if cache.args(setting, seed).held_out else images
            with cache.held(setting, seed) as mine:
                if mine and can_begin(cache, setting, seed, parts):
                    news |= complete(cache, setting, seed, parts, grid, of_run, measures, told)
                else:
                    why = "not pretrained yet" if mine else "another process is at it"
                    console.print(f"{label(setting)}, seed {seed}: {why}", highlight=False, markup=False)
        if news and seed != args.seeds[-1]:
            answer(args, grid, images, cache, told)


def can_begin(cache: Cache, setting: Setting, seed: int, parts: Sequence[str]) -> bool:
    """Whether the parts that are asked for build on nothing that is missing."""
    trains = {"pretrain", "train"} & set(parts)
    return bool(trains) or not parts or cache.read(setting, seed, "pretrain") is not None


def answer(args: argparse.Namespace, grid: Grid, images: ImageData, cache: Cache, told: str) -> None:
    """Write what is known of each claim, and say its verdict."""
    for name in args.claim:
        claim = CLAIMS[name]
        needs = claim.needs(grid)
        needed = sum(len(need.parts) * len(need.of(args.seeds)) for need in merged(needs).values())
        lacking = record.missing(cache, needs, args.seeds)
        open_parts = sum(len(parts) for parts in lacking.values())
        if open_parts == needed:
            console.print(f"{name}: not measured yet, nothing written", highlight=False)
            continue
        content = record.make(name, claim, cache, args.seeds, grid, images, told)
        record.write(content, claim, args.results)
        record.keep_runs(cache, needs, args.seeds, args.results / "measured")
        verdict = content["verdict"] or f"open, {open_parts} of {needed} parts missing"
        if content["verdict"] is None and not open_parts:
            verdict = "open: one seed has no spread"
        console.print(f"[bold]{name}[/]: {verdict}", highlight=False)
        for criterion in content["criteria"]:
            met = {True: "yes", False: "no", None: "open"}[criterion["met"]]
            console.print(f"  {met:>4}  {criterion['text']}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"written to {args.results}", highlight=False, soft_wrap=True, markup=False)


def all_needs(args: argparse.Namespace, grid: Grid) -> list[Need]:
    """Runs of every claim that is asked for."""
    return [need for name in args.claim for need in CLAIMS[name].needs(grid)]


def show(args: argparse.Namespace, grid: Grid, images: ImageData, cache: Cache) -> None:
    """Print the runs of each claim, those that are done, and the hours that the rest would take."""
    folders = [*sorted(path.parent for path in args.out.glob("*/config.json")), MEASURED]
    encoder = cache.args(Setting("simclr"), args.seeds[0]).encoder
    rates = pace.measured(folders, images.fingerprint, len(images.train_labels), encoder)

    def line(name: str, needs: Sequence[Need]) -> None:
        lacking = record.missing(cache, needs, args.seeds)
        runs = sum(len(need.of(args.seeds)) for need in merged(needs).values())
        left = pace.left(lacking, cache, rates, images)
        unknown = f", and {', '.join(left.unknown)}, not timed yet" if left.unknown else ""
        told = f"{runs - len(lacking)} of {runs} runs done, {left.hours:.1f} hours to go{unknown}"
        console.print(f"{name}: {told}", highlight=False, soft_wrap=True, markup=False)

    for name in args.claim:
        line(name, CLAIMS[name].needs(grid))
        for setting, need in merged(CLAIMS[name].needs(grid)).items():
            for seed in need.of(args.seeds):
                states = [
                    f"{part} {'done' if cache.read(setting, seed, part) is not None else '-'}"
                    for part in need.parts
                ]
                told = f"  {label(setting)}, seed {seed} ({cache.place(setting, seed).name}): "
                console.print(told + ", ".join(states), highlight=False, soft_wrap=True, markup=False)
    line("together, shared runs once", all_needs(args, grid))
    said = (
        f"speeds from {rates.runs} runs of these images"
        if rates.runs
        else "no run of these images is timed yet"
    )
    console.print(said, highlight=False)


if __name__ == "__main__":
    raise SystemExit(main())
