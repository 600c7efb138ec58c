"""The command line; `python -m benchmarks --help` says what it takes."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path

import benchmarks
from benchmarks import harness, provenance, tables
from benchmarks.files import write_json
from benchmarks.targets import Results

QUICK_ROUNDS = 2


def main(arguments: list[str] | None = None) -> int:
    """Measure, show, check or publish; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(arguments)
    names = list(benchmarks.NAMES) if args.all else args.names
    if unknown := [name for name in names if name not in benchmarks.NAMES]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(benchmarks.NAMES)}")
    if args.publish:
        from benchmarks.publish import publish

        publish()
        return 0
    if not names:
        parser.error(f"name benchmarks ({', '.join(benchmarks.NAMES)}), or give --all or --publish")
    options = harness.Options(
        quick=args.quick,
        device=args.device,
        rounds=QUICK_ROUNDS if args.quick and args.rounds is None else args.rounds,
        threads=1 if args.quick and args.threads is None else args.threads,
        cases=tuple(args.case),
        contenders=tuple(args.contender),
    )
    folder = args.output or provenance.RESULTS
    if not (options.whole or args.show):
        if args.output is None:
            folder = Path(tempfile.mkdtemp(prefix="benchmarks-"))
        elif args.output.resolve() == provenance.RESULTS:
            parser.error("results for the record are replaced by whole runs only; give another --output")
    command = f"python -m benchmarks {shlex.join(sys.argv[1:] if arguments is None else arguments)}"
    missed, broken = [], []
    for name in names:
        path = folder / f"{name}.json"
        if args.show or (args.resume and _is_current(path, options)):
            if not path.exists():
                print(f"{name}: nothing in {folder}; python -m benchmarks {name} measures it\n")
                continue
            results = json.loads(path.read_text())
        else:
            results = harness.measure(tables.benchmark_of(name), options, command, _say)
            write_json(path, results)
            _say(f"{name}: {results['seconds']:g} s, written to {path}")
        _print(name, results)
        missed += [o for o in tables.outcomes(tables.benchmark_of(name), results) if o.state == "missed"]
        broken += [f"{name}, {', '.join(row)}" for row in tables.failures(results).rows]
    if missed and args.check:
        print("missed:", *(f"{o.text}: {o.limit}, measured {o.measured}" for o in missed), sep="\n  ")
        return 1
    if broken and args.quick:  # at these sizes nothing may fail
        print("failed:", *broken, sep="\n  ")
        return 1
    return 0


def _print(name: str, results: Results) -> None:
    benchmark = tables.benchmark_of(name)
    print(f"{benchmark.title}\n{'=' * len(benchmark.title)}\n{benchmark.note}\n")
    for label, value in tables.conditions(results):
        print(f"{label}: {value}")
    print()
    for table in tables.tables(benchmark, results):
        print(table.text())


def _is_current(path: Path, options: harness.Options) -> bool:
    """Whether a file holds a whole run of this commit with these options."""
    if not path.exists():
        return False
    results = json.loads(path.read_text())
    now, then = provenance.environment(), results["environment"]
    same = ("commit", "dirty", "cpu", "cores", "packages", "python")
    asked = {"quick": options.quick, "device": options.device}
    return all(now[key] == then[key] for key in same) and asked.items() <= results["options"].items()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(benchmarks.NAMES))
    parser.add_argument("--all", action="store_true", help="every benchmark")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny sizes, two rounds, nothing compiled; fails where a contender does",
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument("--show", action="store_true", help="print what was measured before")
    parser.add_argument("--resume", action="store_true", help="keep what this commit has measured before")
    parser.add_argument("--publish", action="store_true", help="figures, tables and README from the results")
    parser.add_argument("--output", type=Path, help="folder for results (benchmarks/results for whole runs)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--case", action="append", default=[], help="only this case; may be repeated")
    parser.add_argument("--contender", action="append", default=[], help="only this contender; likewise")
    parser.add_argument("--rounds", type=int, help="samples of each contender")
    parser.add_argument(
        "--threads", type=int, help="of each contender; else torch's choice, or 1 for --quick"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
