"""Find near-duplicates by their bits, and look at the pixels before believing it.

    python examples/find_duplicates.py --model RUN/bern --images FOLDER/train --against FOLDER/test
    python examples/find_duplicates.py --model RUN/bern --images FOLDER          # within one folder

Pairs whose codes differ in at most --radius bits are candidates. A candidate is confirmed when the details of the two
pictures, or of one and the other's mirror image, correlate by --least. RUN is the folder of a run of cifar10_full.py or
imagenet_full.py. Codes are kept in --out: the same command goes on after a stop, and another radius encodes nothing.
"""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recipes import encoding, folders, pairs, search
from recipes.ending import MENDABLE
from recipes.files import write_atomically, write_json
from recipes.screen import console, warn
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

SCRIPT = "examples/find_duplicates.py"
RANDOM = 2000  # pairs drawn at random, to see how often the second check alone would be fooled
COLUMNS = (
    "group", "image", "other", "hamming", "cosine", "correlation", "mirrored", "confirmed", "class", "other_class",
)  # fmt: skip
HEADER = ("bits apart, at most", "candidates", "confirmed", "confirmed %")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", type=Path, required=True, metavar="RUN/bern", help="trained model")
    parser.add_argument("--images", type=Path, required=True, metavar="PATH", help="folder or tar")
    parser.add_argument("--against", type=Path, metavar="PATH", help="a second one; default: within --images")
    parser.add_argument("--radius", type=int, default=10, help="most bits that may differ (default: 10)")
    parser.add_argument(
        "--least", type=float, default=pairs.LEAST, help=f"correlation that confirms (default: {pairs.LEAST})"
    )
    parser.add_argument("--show", type=int, default=24, help="pairs in each figure (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="of the random pairs")
    parser.add_argument("--out", type=Path, default=Path("runs/duplicates"), metavar="FOLDER")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="to encode on")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (default: none)")
    args = parser.parse_args(arguments)
    for name, least in (("radius", 0), ("show", 1), ("workers", 0), ("seed", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if not 0 < args.least <= 1:
        parser.error(f"--least must be above 0 and at most 1, got {args.least}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch finds no CUDA device; use --device cpu")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 0 when done, 2 for what the user can mend, 130 when stopped."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    args = parse(given)
    try:
        run(args, shlex.join(["python", SCRIPT, *given]))
    except MENDABLE as error:
        console.print(f"[bold red]stopped:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return 2
    except KeyboardInterrupt:
        console.print("\nstopped; what is encoded is kept, and the same command goes on from there")
        return 130
    return 0


def run(args: argparse.Namespace, told: str) -> None:
    """Encode, find, check, report."""
    trained = encoding.read_model(args.model)
    if args.radius >= trained.identity["dim"]:
        raise search.SearchError(
            f"--radius must be below the code's {trained.identity['dim']} bits, got {args.radius}; a small one finds "
            "near-duplicates, such as 10"
        )
    trained.model.to(args.device)
    sides = []
    for name, path in (("images", args.images), ("against", args.against)):
        if path is not None:
            collection = folders.read_collection(path)
            encoded = encoding.encode(collection, trained, args.out / "codes" / name, args.workers)
            for reason in encoded.skipped:
                warn(f"left out: {reason}")
            sides.append(pairs.Side(collection, encoded))
    first, second = sides[0], sides[-1]
    within = len(sides) == 1
    found = pairs.candidates(first.encoded.codes, None if within else second.encoded.codes, args.radius)
    checked = pairs.check(first, second, found, args.least)
    drawn = pairs.at_random(first, second, RANDOM, args.seed, within=within)
    chance = pairs.check(first, second, drawn, args.least)
    groups = pairs.group(checked, len(first.encoded.numbers), within=within)
    results = {
        "command": told,
        "date": date.today().isoformat(),
        "environment": search.environment(),
        "model": trained.identity,
        "radius": args.radius,
        "least": args.least,
        "images": [
            {
                "source": str(s.collection.source),
                "count": len(s.encoded.numbers),
                "skipped": s.encoded.skipped,
            }
            for s in sides
        ],
        "by_radius": pairs.by_radius(checked, args.radius),
        "groups": int(groups.max(initial=0)),
        "with_a_confirmed_pair": dict(
            zip(("images", "against"), pairs.counted(checked, within), strict=False)
        ),
        "random_pairs": {
            "count": len(chance.first),
            "confirmed": int(chance.confirmed.sum()),
            "seed": args.seed,
        },
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out / "pairs.csv", listed(first, second, checked, groups))
    write_json(args.out / "results.json", results)
    write_atomically(args.out / "table.md", markdown(results).encode())
    left = ["pairs.csv", "results.json", "table.md"]
    for name, kept in (("confirmed", checked.confirmed), ("rejected", ~checked.confirmed)):
        path = args.out / f"{name}.png"
        path.unlink(missing_ok=True)  # an earlier radius's
        if kept.any():
            write_atomically(path, pairs.draw(first, second, checked.where(kept), name, args.show).png())
            left.append(path.name)
    show(results)
    console.print(f"{args.out}: {', '.join(left)}", soft_wrap=True, highlight=False, markup=False)


# ---- what is left ---------------------------------------------------------------------------------------------


def listed(first: pairs.Side, second: pairs.Side, found: pairs.Pairs, groups: NDArray[np.int64]) -> bytes:
    """All candidates as CSV: confirmed ones first, each part by its distance."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for i in np.lexsort((-found.correlation, found.hamming, ~found.confirmed)).tolist():
        names, classes = zip(first.told(found.first[i]), second.told(found.second[i]), strict=True)
        writer.writerow(
            [
                int(groups[i]) or "",
                *names,
                int(found.hamming[i]),
                f"{found.cosine[i]:.4f}",
                f"{found.correlation[i]:.4f}",
                int(found.mirrored[i]),
                int(found.confirmed[i]),
                *classes,
            ]
        )
    return table.getvalue().encode(errors="surrogateescape")


def rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Cells of the table by radius."""
    return [
        (
            str(row["radius"]),
            f"{row['candidates']:,}",
            f"{row['confirmed']:,}",
            f"{100 * row['confirmed'] / row['candidates']:.1f}" if row["candidates"] else "-",
        )
        for row in results["by_radius"]
    ]


def markdown(results: dict[str, Any]) -> str:
    """The table for documents."""
    lines = [HEADER, ("---",) * len(HEADER), *rows(results)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def show(results: dict[str, Any]) -> None:
    """The table, and how many images have a duplicate."""
    made = Table(box=SIMPLE, pad_edge=False)
    for column in HEADER:
        made.add_column(column, justify="right")
    for row in rows(results):
        made.add_row(*row)
    console.print(made)
    have, chance = results["with_a_confirmed_pair"], results["random_pairs"]
    counts = dict(zip(have, results["images"], strict=True))
    for name, count in have.items():
        total = counts[name]["count"]
        share = f"{100 * count / total:.2f} %"
        console.print(f"--{name}: {count:,} of {total:,} have a near-duplicate ({share})", highlight=False)
    console.print(f"{results['groups']:,} groups of images that belong together", highlight=False)
    console.print(
        f"of {chance['count']:,} random pairs, the look at the pixels alone would confirm {chance['confirmed']:,}",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(main())
