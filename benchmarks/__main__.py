"""The command line: `python -m benchmarks --help`."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

import benchmarks
from benchmarks import environment, publish, runner, tables
from benchmarks.targets import Results


@dataclass
class Arguments:
    """What to do."""

    names: tyro.conf.Positional[tuple[Literal[benchmarks.NAMES], ...]] = ()  # type: ignore[valid-type]
    all: bool = False  # run every benchmark
    check: bool = False  # exit with 1 where a target is missed
    show: bool = False  # print the last results instead of measuring
    publish: bool = False  # write figures, tables and the README's section from the results
    output: Path | None = None  # folder of results; default: benchmarks/results, or a temporary one
    options: Annotated[runner.Options, tyro.conf.arg(name="")] = field(default_factory=runner.Options)


def main(arguments: list[str] | None = None) -> int:
    """Measure, show, check or publish; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    settings = (tyro.conf.FlagCreatePairsOff, tyro.conf.UseAppendAction)
    described = {"prog": "python -m benchmarks", "description": benchmarks.__doc__}
    args = tyro.cli(Arguments, args=arguments, config=settings, **described)
    names = benchmarks.NAMES if args.all else args.names
    if args.publish:
        publish.publish()
        return 0
    if not names:
        return _fail(f"name benchmarks ({', '.join(benchmarks.NAMES)}), or give --all or --publish")
    folder = args.output or environment.RESULTS
    if not (args.options.full or args.show):
        folder = args.output or Path(tempfile.mkdtemp(prefix="benchmarks-"))
        if folder.resolve() == environment.RESULTS:
            return _fail(f"only runs with default options may write to {environment.RESULTS}; give another --output")
    missed, failed = [], []
    for name in names:
        benchmark, path = tables.benchmark_of(name), folder / f"{name}.json"
        if not args.show:
            command = f"python -m benchmarks {shlex.join(arguments)}"
            results = runner.measure(benchmark, args.options, command, _log)
            environment.write_json(path, results)
            _log(f"{name}: {results['seconds']:g} s, written to {path}")
        elif path.exists():
            results = json.loads(path.read_text())
        else:
            print(f"{name}: no results in {folder}; measure them with: python -m benchmarks {name}\n")
            continue
        _print(name, results)
        outcomes = [target.outcome(results) for target in benchmark.targets]
        missed += [o for o in outcomes if o.state == "missed"]
        failed += [f"{name}, {', '.join(row)}" for row in tables.failures(results).rows]
    if missed and args.check:
        print("missed:", *(f"{o.text}: {o.limit}, measured {o.measured}" for o in missed), sep="\n  ")
        return 1
    if failed and args.options.quick:  # no contender may fail at these sizes
        print("failed:", *failed, sep="\n  ")
        return 1
    return 0


def _print(name: str, results: Results) -> None:
    benchmark = tables.benchmark_of(name)
    print(f"# {benchmark.title}\n\n{benchmark.note}\n")
    print(*(f"{label}: {value}" for label, value in tables.conditions(results)), sep="\n")
    for table in tables.tables(benchmark, results):
        print(f"\n## {table.title}\n\n{table.markdown()}")


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _fail(message: str) -> int:
    _log(f"python -m benchmarks: {message}")
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
