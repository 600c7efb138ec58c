"""Commit a run's results: copy them to `examples/results/NAME` and bring the README's tables up to date.

    python examples/publish.py runs/cifar10-quick-seed0 cifar10_quick
    python examples/publish.py examples/results/cifar10_quick cifar10_quick   # after a change of tables or figures

Table, figures and page are drawn anew from the run's `results.json`, so that what is published follows from it alone.
The grid of views comes along for CIFAR-10, whose images may be passed on; ImageNet's may not.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

from recipes import paper, report
from recipes.files import write_atomically

ROOT = Path(__file__).parents[1]
TABLE = re.compile(r"(<!-- table: (?P<source>\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def publish(run: Path, target: Path) -> None:
    """Copy `results.json`, and draw from it."""
    results = json.loads((run / "results.json").read_text())
    kept = ["results.json"]
    if (run / "views.png").exists() and paper.is_cifar10(results["data"]["name"]):
        kept.append("views.png")
    target.mkdir(parents=True, exist_ok=True)
    for name in kept:
        if run.resolve() != target.resolve():
            shutil.copyfile(run / name, target / name)
    report.write(results, target)


def with_tables(text: str, root: Path = ROOT) -> str:
    """Text with each marked table replaced by what its source file holds now."""
    return TABLE.sub(lambda m: f"{m[1]}\n{(root / m['source']).read_text()}\n{m[3]}", text)


def main() -> None:
    """Publish a run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder that examples/cifar10_full.py left")
    parser.add_argument("name", help="folder below examples/results")
    args = parser.parse_args()
    if not (args.run / "results.json").exists():
        parser.error(f"{args.run} holds no results.json; give the --out folder of a finished run")
    publish(args.run, ROOT / "examples" / "results" / args.name)
    readme = ROOT / "README.md"
    write_atomically(readme, with_tables(readme.read_text()).encode())


if __name__ == "__main__":
    main()
