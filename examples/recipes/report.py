"""What a run leaves for its reader: a table, figures, one page of everything, and what they were measured under."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from recipes import figures, page
from recipes.figures import LABELS
from recipes.files import write_atomically

COLUMNS = (
    "features",
    "width",
    "probe %",
    "probe top-5 %",
    "kNN %",
    "fine-tuned %",
    "fine-tuned top-5 %",
    "forest F1 %",
    "ones %",
    "compression",
)
"""Columns beside the model; a table leaves out those that none of its rows fills."""
FEW_CLASSES = 10  # five of which are half: a top-5 among them says next to nothing


def environment() -> dict[str, Any]:
    """Hardware and versions that the numbers depend on."""
    packages = (
        "stochastic-bottleneck",
        "torch",
        "torchvision",
        "timm",
        "lightning",
        "scikit-learn",
        "numpy",
    )
    return {
        "python": platform.python_version(),
        "machine": f"{_processor()}, {torch.get_num_threads()} threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: metadata.version(name) for name in packages},
        "commit": _commit(),
    }


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, None) or platform.processor() or platform.machine()


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        told = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git here, or no repository
        return None
    return told.stdout.strip()


# ---- the table ------------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's cells: its header, then a row for each representation of each model."""
    cells = [
        _row(name, key, result)
        for name, result in {**results["baselines"], **results["models"]}.items()
        for key in ("h", "z")
        if key in result or (key == "h" and "trained" in result)
    ]
    header = ("model", *COLUMNS)
    few = results["data"]["classes"] <= FEW_CLASSES
    filled = [
        i
        for i, column in enumerate(header)
        if any(row[i] != "-" for row in cells) and not (few and "top-5" in column)
    ]
    return [tuple(row[i] for i in filled) for row in (header, *cells)]


def _row(name: str, key: str, result: dict[str, Any]) -> tuple[str, ...]:
    scores, latent = result.get(key, {}), key == "z"
    bits = result.get("bits") if latent else None
    forest = result.get("forest") if latent else None
    labelled = {} if latent else result.get("finetuned") or result.get("trained") or {}
    features = {"h": "pixels" if name == "pixels" else "h", "z": "z, bits" if name == "bern" else "z, mean"}
    return (
        LABELS[name],
        features[key],
        f"{scores['dim']}" if "dim" in scores else "-",
        _percent(scores.get("probe")),
        _percent(scores.get("probe_top5")),
        _percent(scores.get("knn")),
        _percent(labelled.get("accuracy")),
        _percent(labelled.get("top5")),
        _percent(forest["f1"][-1] if forest else None),
        _percent(bits["share_of_ones"] if bits else None),
        compression(bits) if bits else "-",
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def compression(bits: dict[str, Any]) -> str:
    """How many times smaller codes are than images, from the bytes of both where they were recorded.

    A whole number is said as one only where it is one.
    """
    if "image_bytes" in bits and "code_bytes" in bits:
        ratio = bits["image_bytes"] / bits["code_bytes"]
    else:
        ratio = bits["compression_ratio"]
    said = f"{ratio:g}"
    return f"{said if float(said) == ratio else f'{ratio:.2f}'}x"


def title(results: dict[str, Any]) -> str:
    """What was trained and evaluated on what."""
    config, data = results["config"], results["data"]
    return (
        f"{data['name']}: {config['encoder']} encoder, {config['epochs']} epochs on {data['train']:,} images, "
        f"seed {config['seed']}, evaluated on {data['test']:,}"
    )


def terminal_table(results: dict[str, Any]) -> Table:
    """The table for a terminal; 80 columns are enough for it."""
    header, *cells = table(results)
    shown = [i for i, column in enumerate(header) if column != "width"]
    gap = 1 if len(shown) < 10 else 0  # beside the one that the box leaves
    made = Table(title=escape(title(results)), box=SIMPLE, padding=(0, gap, 0, 0), pad_edge=False)
    for i in shown:
        heading = (
            header[i].replace("fine-", "fine-\n").replace(" ", "\n").replace("compression", "com-\npression")
        )
        made.add_column(heading, justify="left" if i < 2 else "right", no_wrap=True)
    for row in cells:
        made.add_row(*(row[i] for i in shown))
    return made


def markdown_table(results: dict[str, Any]) -> str:
    """The table for the README and the documentation."""
    header, *cells = table(results)
    lines = [header, tuple("---" for _ in header), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def against_baselines(results: dict[str, Any]) -> list[str]:
    """A sentence for each model that is judged frozen: how far its features are from the baselines."""
    baselines = {name: result["h"]["probe"] for name, result in results["baselines"].items()}
    sentences = []
    for name, model in results["models"].items():
        if "probe" in model.get("h", {}) and baselines:
            gaps = [_gap(100 * (model["h"]["probe"] - score), LABELS[b]) for b, score in baselines.items()]
            sentences.append(f"{LABELS[name]}, linear probe on h: {' and '.join(gaps)}")
    return sentences


def _gap(points: float, baseline: str) -> str:
    if abs(points) < 0.05:
        return f"level with {baseline}"
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'} {baseline}"


# ---- what is left ---------------------------------------------------------------------------------------------


def write(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write the table, the figures and the page, with the folder's `views.png` where it has one.

    Returns:
        Their paths.
    """
    tabular, paged, views = folder / "table.md", folder / "report.html", folder / "views.png"
    write_atomically(tabular, f"{title(results)}.\n\n{markdown_table(results)}\n".encode())
    pictures = figures.draw(results)
    drawn = figures.save(pictures, folder)
    page.write_page(
        results,
        pictures,
        paged,
        title=title(results),
        table=table(results),
        sentences=against_baselines(results),
        views=views.read_bytes() if views.exists() else None,
    )
    return [tabular, *drawn, paged]
