"""Search a folder of images by the bits of a trained model, beside the same search on its features.

    python examples/image_search.py build --images FOLDER --model RUN/bern --index INDEX
    python examples/image_search.py query --index INDEX photo.jpg another.jpg
    python examples/image_search.py compare --index INDEX                    # memory, speed, recall and precision
    python examples/image_search.py compare --index INDEX --queries FOLDER   # of images that are not in it

RUN is the folder of a run of cifar10_full.py or imagenet_full.py; no other model is taken. `build` keeps what it has
encoded: the same command goes on after a stop. An image that cannot be read is named, counted and left out; as a query
it is refused.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recipes import encoding, folders, search
from recipes.ending import MENDABLE
from recipes.figures import Picture
from recipes.files import write_atomically, write_json
from recipes.neighbour_grid import Pictures, draw, open_image
from recipes.screen import console, warn
from recipes.search import SearchError
from recipes.search_measures import compare, table
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

SCRIPT = "examples/image_search.py"
SHOWN = 4  # queries in the comparison's figure


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="build|query|compare")
    machine = argparse.ArgumentParser(add_help=False)
    machine.add_argument("--index", type=Path, required=True, metavar="FOLDER", help="of the index")
    machine.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="to encode on")
    machine.add_argument("--workers", type=int, default=0, help="processes that read images (default: none)")
    machine.add_argument(
        "--model", type=Path, metavar="RUN/bern", help="default: the one that made the index"
    )
    machine.add_argument(
        "--images", type=Path, metavar="PATH", help="default: where the index found its images"
    )
    build = commands.add_parser("build", parents=[machine], help="encode images and index their codes")
    build.set_defaults(work=run_build)
    query = commands.add_parser("query", parents=[machine], help="find the images nearest to some files")
    query.add_argument("queries", nargs="+", type=Path, metavar="IMAGE")
    query.add_argument("--k", type=int, default=8, help="neighbours (default: 8)")
    query.add_argument(
        "--kind", choices=("flat", "hnsw"), default="flat", help="exact (default) or approximate"
    )
    query.add_argument("--figure", type=Path, metavar="PNG", help="default: query.png beside the index")
    query.set_defaults(work=run_query)
    measure = commands.add_parser(
        "compare", parents=[machine], help="bits beside features, in a table and JSON"
    )
    measure.add_argument("--queries", type=Path, metavar="PATH", help="folder or tar; default: images of the index, "
                         "each left out of its own neighbours")  # fmt: skip
    measure.add_argument("--count", type=int, default=1000, help="queries, drawn at random (default: 1000)")
    measure.add_argument("--k", type=int, nargs="+", default=[1, 10], help="neighbours (default: 1 10)")
    measure.add_argument("--seed", type=int, default=0, help="of the drawing of queries")
    measure.add_argument("--out", type=Path, metavar="FOLDER", help="default: INDEX/compare")
    measure.set_defaults(work=run_compare)
    for command in (query, measure):
        command.add_argument(
            "--ef-search", type=int, default=64, help="candidates HNSW looks at (default: 64)"
        )
    args = parser.parse_args(arguments)
    if args.work is run_build and not (args.images and args.model):
        build.error(
            "--images and --model must be given: the folder to index, and the model's, such as runs/NAME/bern"
        )
    for name in ("count", "ef_search", "k"):
        value = getattr(args, name, 1)
        if min(value if isinstance(value, list) else [value]) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if args.workers < 0:
        parser.error(f"--workers must not be below 0, got {args.workers}")
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
        args.work(args, shlex.join(["python", SCRIPT, *given]))
    except MENDABLE as error:
        console.print(f"[bold red]stopped:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return 2
    except KeyboardInterrupt:
        console.print("\nstopped; what is encoded is kept, and the same command goes on from there")
        return 130
    return 0


# ---- build ----------------------------------------------------------------------------------------------------


def run_build(args: argparse.Namespace, told: str) -> None:
    """Encode and index."""
    if (args.index / "index.json").exists():
        raise SearchError(
            f"{args.index} holds an index already; delete it, or give another folder with --index"
        )
    trained = read_model(args.model, args.device)
    collection = folders.read_collection(args.images)
    parts = args.index / "parts"
    encoded = encoding.encode(collection, trained, parts, args.workers)
    tell_skipped(encoded.skipped)
    about = search.save(args.index, collection, trained, encoded, told)
    shutil.rmtree(parts)
    of = f" in {len(collection.classes):,} classes" if collection.classes else ""
    say(
        f"{len(encoded.numbers):,} images{of}, {about['bytes_an_image']['bits']} bytes of bits each: {args.index}"
    )


def read_model(folder: Path, device: str) -> encoding.Trained:
    """The model on its device."""
    trained = encoding.read_model(folder)
    trained.model.to(device)
    return trained


def tell_skipped(skipped: Sequence[str]) -> None:
    """Name what was left out."""
    for reason in skipped:
        warn(f"left out: {reason}")
    if skipped:
        warn(f"{len(skipped)} image{'s' * (len(skipped) > 1)} left out")


def say(text: str) -> None:
    """A plain line."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


# ---- query ----------------------------------------------------------------------------------------------------


def run_query(args: argparse.Namespace, told: str) -> None:
    """Print and draw the neighbours of some files."""
    index = opened(args, [args.kind])
    trained = model_of(index, args)
    bits, _ = encoding.encode_files(trained, args.queries)
    distances, found = search.neighbours(index.by_kind[args.kind], bits, args.k)
    pictures = Pictures(index, args.images)
    rows = []
    for path, far, near in zip(args.queries, distances.tolist(), found.tolist(), strict=True):
        say(f"\n{path}")
        for distance, number in zip(far, near, strict=True):
            if number >= 0:  # HNSW may find fewer than were asked for
                say(f"  {distance:>4} of {trained.identity['dim']} bits  {index.names[number]}")
        cells = [(n, f"{d} bits", None) for d, n in zip(far, near, strict=True) if n >= 0]
        rows.append((path.name, folders.decode(path.read_bytes(), str(path)), cells))
    drawn = draw("query", rows, pictures, "Queries at the left; then the nearest images by Hamming distance.")
    figure = args.figure or args.index / "query.png"
    write_atomically(figure, drawn.png())
    say(f"\n{figure}")


def opened(args: argparse.Namespace, kinds: Sequence[str]) -> search.Index:
    """The index, set up to search."""
    index = search.load(args.index, kinds)
    if "hnsw" in kinds:
        index.by_kind["hnsw"].hnsw.efSearch = args.ef_search
    return index


def model_of(index: search.Index, args: argparse.Namespace) -> encoding.Trained:
    """The model that made the index; another is refused."""
    trained = read_model(args.model or Path(index.about["model"]["folder"]), args.device)
    search.check_model(index, trained)
    return trained


# ---- compare --------------------------------------------------------------------------------------------------


def run_compare(args: argparse.Namespace, told: str) -> None:
    """Measure bits beside features."""
    index = opened(args, list(search.LABELS))
    out = args.out or args.index / "compare"
    classes, draws = index.about["images"]["classes"], np.random.default_rng(args.seed)
    if args.queries is None:
        own = np.sort(draws.permutation(len(index.names))[: args.count])
        codes, h = (index.by_kind[kind].reconstruct_n(0, len(index.names))[own] for kind in ("flat", "float"))
        labels, asked, places = index.labels[own], None, own
    else:
        asked = folders.read_collection(args.queries)
        encoded = encoding.encode(asked, model_of(index, args), out / "parts", args.workers)
        tell_skipped(encoded.skipped)
        drawn = np.sort(draws.permutation(len(encoded.numbers))[: args.count])
        own, codes, h, places = None, encoded.codes[drawn], encoded.h[drawn], encoded.numbers[drawn]
        number = {name: label for label, name in enumerate(classes)}
        names = [number.get(name, folders.NO_CLASS) for name in asked.classes]
        labels = np.array([names[i] if i >= 0 else i for i in asked.images.labels.numpy()[places]], np.int64)
    queries = {"float": h, "flat": codes, "hnsw": codes}
    rows = compare(index, queries, labels, own, args.k)
    results = {
        "command": told,
        "date": date.today().isoformat(),
        "environment": search.environment(),
        "index": {name: index.about[name] for name in ("command", "model", "images", "hnsw")},
        "queries": {
            "source": str(args.queries or index.about["images"]["source"]),
            "left_out_of_their_own_neighbours": own is not None,
            "count": len(labels),
            "seed": args.seed,
            "ef_search": args.ef_search,
        },
        "rows": rows,
    }
    write_json(out / "results.json", results)
    write_atomically(out / "table.md", markdown(rows).encode())
    write_atomically(out / "neighbours.png", sides(index, queries, labels, own, places, asked, args).png())
    show(rows, results)
    say(f"{out}: results.json, table.md, neighbours.png")


def show(rows: list[dict[str, Any]], results: dict[str, Any]) -> None:
    """The table, and what many images would take."""
    header, *cells = table(rows)
    images, queries = results["index"]["images"]["count"], results["queries"]["count"]
    title = f"{queries:,} queries among {images:,} images"
    made = Table(title=title, box=SIMPLE, padding=(0, 0), pad_edge=False)
    for i, column in enumerate(header):
        heading = column.replace("recall@", "recall @").replace("precision@", "preci- sion @")
        made.add_column(heading.replace(" ", "\n"), justify="right" if i else "left", no_wrap=True)
    for row in cells:
        made.add_row(*row)
    console.print(made)
    h, bits = rows[0], rows[1]
    say(
        f"100 million images would take {bits['bytes_of_100_million']:,} bytes of bits ({bits['bytes_an_image']} "
        f"each), and {h['bytes_of_100_million']:,} bytes of features ({h['bytes_an_image']} each)."
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table for documents."""
    header, *cells = table(rows)
    lines = [header, ("---",) * len(header), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def sides(
    index: search.Index,
    queries: dict[str, NDArray[Any]],
    labels: NDArray[np.int64],
    own: NDArray[np.int64] | None,
    places: NDArray[np.int64],
    asked: folders.Collection | None,
    args: argparse.Namespace,
) -> Picture:
    """Some queries with their neighbours by bits and by features."""
    pictures, rows = Pictures(index, args.images), []
    most = max(args.k)
    for i in range(0, len(labels), -(-len(labels) // SHOWN)):
        image = pictures[places[i]] if asked is None else open_image(asked, int(places[i]))
        others = (index.labels == labels[i]).sum() - (own is not None)
        known = labels[i] >= 0 and others > 0  # whether any neighbour can be right
        for kind, unit in (("flat", "{} bits"), ("float", "{:.2f}")):
            mine = None if own is None else own[i : i + 1]
            far, near = search.neighbours(index.by_kind[kind], queries[kind][i : i + 1], most, mine)
            cells = [
                (n, unit.format(d), bool(index.labels[n] == labels[i]) if known else None)
                for d, n in zip(far[0].tolist(), near[0].tolist(), strict=True)
            ]
            rows.append((search.LABELS[kind].split(",")[0], image, cells))
    said = "Each query twice: its neighbours by bits (Hamming distance), and by the features h (cosine)."
    return draw("neighbours", rows, pictures, said)


if __name__ == "__main__":
    sys.exit(main())
