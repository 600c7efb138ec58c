"""A plan in words: the tables and sentences that `plan.show` prints and a report's page shows."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from recipes.figures import LABELS, PARTS

COLUMNS = ("model", "part", "parameters", "FLOP an image", "FLOP a step", "steps", "images/s", "time")
MEMORY = ("weights", "gradients", "optimizer", "average", "activations")
MEMORY_COLUMNS = ("model", "part", "batch a device", *MEMORY, "sum")

HYPHENATED = {
    "parameters": "para- meters",
    "gradients": "gra- dients",
    "optimizer": "opti- mizer",
    "activations": "acti- vations",
}


def rows(plan: dict[str, Any]) -> list[tuple[str, ...]]:
    """The cells of `COLUMNS`, a row for each stage."""
    return [
        (
            LABELS.get(name, name),
            PARTS.get(part, part),
            amount(stage["parameters"]["total"]),
            amount(stage["flops_an_image"]),
            amount(stage["flops_a_step"]),
            f"{stage['steps']:,}",
            speed(stage["images_a_second"]),
            duration(stage["hours"]),
        )
        for name, part, stage in _stages(plan)
    ]


def memory_rows(plan: dict[str, Any]) -> list[tuple[str, ...]]:
    """The cells of `MEMORY_COLUMNS`, a row for each stage."""
    return [
        (
            LABELS.get(name, name),
            PARTS.get(part, part),
            f"{stage['batch_size'] // plan['hardware']['processes']:,}",
            *(size(stage["memory"][key]) for key in MEMORY),
            size(stage["memory"]["total"]),
        )
        for name, part, stage in _stages(plan)
    ]


def sentences(plan: dict[str, Any]) -> list[str]:
    """What was counted, estimated and measured, and what the sum is."""
    hardware = plan["hardware"]
    precision = {"32": "float32", "bf16": "bfloat16", "16": "float16"}[hardware["precision"]]
    said = [
        f"In all {duration(plan['hours'])} on {hardware['processes']} x {hardware['device']} in {precision}. "
        "Not in it: starting, nearest neighbours, forests and probes that are solved rather than trained.",
        "Counted: parameters; FLOPs of convolutions and matrix products, forward and backward. Products inside fused "
        "operators, such as the loss's, are not seen.",
        "Estimated: memory, from the sizes of tensors; the workspace of kernels and what the allocator holds beyond "
        "that come on top.",
        f"Measured on this device: images a second, {_measured(plan)}",
    ]
    compiled = " A compiled model is faster than that." if hardware["compile"] else ""
    if hardware["processes"] > 1:
        compiled += " Several processes: as if none ever waited for another."
    said[-1] += compiled
    said += [
        f"{LABELS.get(name, name)}, {PARTS.get(part, part)}: a step of {stage['measured']['batch_size']:,} images "
        f"reached {size(stage['measured']['peak_bytes'])} on the device (measured)."
        for name, part, stage in _stages(plan)
        if stage["measured"]["peak_bytes"] is not None
    ]
    for name, chain in plan["models"].items():
        parts = dict(next(iter(chain.values()))["parameters"])
        total = parts.pop("total")
        named = [f"{part} {amount(number)}" for part, number in parts.items()]
        said.append(f"Parameters of {LABELS.get(name, name)}: {', '.join(named) or amount(total)}.")
    return said


def _measured(plan: dict[str, Any]) -> str:
    processes = plan["hardware"]["processes"]
    taken = [stage["measured"]["steps"] for _, _, stage in _stages(plan)]
    steps = f"{min(taken)}" if min(taken) == max(taken) else f"{min(taken)} to {max(taken)}"
    said = f"the median of {steps} step{'s' if max(taken) > 1 else ''} after a warm-up"
    reduced, whole = set(), set()
    for _, _, stage in _stages(plan):
        of_a_device = stage["batch_size"] // processes
        if stage["measured"]["batch_size"] < of_a_device:
            reduced.add(stage["measured"]["batch_size"])
            whole.add(of_a_device)
    if reduced:
        said += (
            f". Batches of {_any(reduced)} images were measured instead of {_any(whole)}, for want of time or memory; "
            "whole ones are rather faster, by the image"
        )
    return said + "."


def _any(numbers: set[int]) -> str:
    *most, last = (f"{number:,}" for number in sorted(numbers))
    return f"{', '.join(most)} or {last}" if most else last


def _stages(plan: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(name, part, stage) for name, chain in plan["models"].items() for part, stage in chain.items()]


def terminal_tables(plan: dict[str, Any]) -> list[Table]:
    """Both tables for a terminal of 80 columns."""
    return [
        _table("plan", COLUMNS, rows(plan)),
        _table("memory of a device", MEMORY_COLUMNS, memory_rows(plan)),
    ]


def _table(title: str, columns: tuple[str, ...], cells: list[tuple[str, ...]]) -> Table:
    """A table whose first column holds each model's name and, below it, its parts."""
    table = Table(title=title, box=SIMPLE, padding=0, pad_edge=False)
    table.add_column("")
    for column in columns[2:]:
        heading = HYPHENATED.get(column, column).replace(" ", "\n")
        table.add_column(heading, justify="right", no_wrap=True)
    before = None
    for name, part, *others in cells:
        if name != before:
            table.add_row(name)
        table.add_row(f"  {part}", *others)
        before = name
    return table


def amount(number: float) -> str:
    """A count in thousands of the right power, such as 25.6 M."""
    for power, letter in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 0.9995 * 10**power:  # what rounds to 1000 of the letter below
            return f"{number / 10**power:.3g} {letter}"
    return f"{number:.3g}"


def size(number: int) -> str:
    """Bytes in the unit that suits them."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 2**power:
            return (
                f"{number / 2**power:.3g} {unit}"
                if number < 1000 * 2**power
                else f"{number / 2**power:,.0f} {unit}"
            )
    return f"{number} B"


def speed(number: float) -> str:
    """Images a second; digits where there are few."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def duration(hours: float) -> str:
    """Time in the unit that suits it."""
    if hours >= 48:
        return f"{hours / 24:,.1f} days" if hours < 2400 else f"{hours / 24:,.0f} days"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.0f} min" if hours >= 1 / 60 else f"{hours * 3600:.0f} s"
