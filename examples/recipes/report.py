"""What a run leaves for its reader: one table, three figures, and the conditions it was measured under."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from recipes.files import write_atomically

matplotlib.use("Agg")

LABELS = {
    "pixels": "raw pixels",
    "untrained": "untrained encoder",
    "simclr": "SimCLR",
    "bern": "StochCon Bern",
    "gauss": "StochCon Gauss",
}
# Okabe and Ito's palette, told apart by colour-blind readers, with a line style each for print.
STYLES = {"simclr": ("#000000", "--"), "bern": ("#0072B2", "-"), "gauss": ("#D55E00", "-.")}
COLUMNS = (
    "features",
    "width",
    "probe %",
    "kNN %",
    "forest F1 %",
    "ones %",
    "compression",
)


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


def rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's cells, one row for each representation: its model, then `COLUMNS`."""
    table = []
    for name, result in {**results["baselines"], **results["models"]}.items():
        for key, representation in (("h", "h"), ("z", "z, bits" if name == "bern" else "z, mean")):
            if key not in result:
                continue
            scores = result[key]
            latent = key == "z"
            bits = result.get("bits") if latent else None
            table.append(
                (
                    LABELS[name],
                    representation if name != "pixels" else "pixels",
                    f"{scores['dim']}",
                    f"{100 * scores['probe']:.1f}",
                    f"{100 * scores['knn']:.1f}" if "knn" in scores else "-",
                    f"{100 * result['forest']['f1'][-1]:.1f}" if latent else "-",
                    f"{100 * bits['share_of_ones']:.1f}" if bits else "-",
                    f"{bits['compression_ratio']:g}x" if bits else "-",
                )
            )
    return table


def title(results: dict[str, Any]) -> str:
    """What was trained and evaluated on what."""
    config, data = results["config"], results["data"]
    return (
        f"{data['name']}: {config['encoder']} encoder, {config['epochs']} epochs on {data['train']:,} images, "
        f"seed {config['seed']}, evaluated on {data['test']:,}"
    )


def terminal_table(results: dict[str, Any]) -> Table:
    """The table for a terminal."""
    table = Table(title=escape(title(results)), box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", no_wrap=True)
    for column in COLUMNS:
        heading = column.replace(" ", "\n", 1)  # two lines, so that 80 columns are enough
        table.add_column(heading, justify="left" if column == COLUMNS[0] else "right", no_wrap=True)
    for row in rows(results):
        table.add_row(*row)
    return table


def markdown_table(results: dict[str, Any]) -> str:
    """The table for the README and the documentation."""
    header = ("model", *COLUMNS)
    lines = [header, tuple("---" for _ in header), *rows(results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def against_baselines(results: dict[str, Any]) -> list[str]:
    """A sentence for each model: how far its features are from both baselines, above or below."""
    baselines = {name: result["h"]["probe"] for name, result in results["baselines"].items()}
    sentences = []
    for name, model in results["models"].items():
        gaps = [_gap(100 * (model["h"]["probe"] - score), LABELS[b]) for b, score in baselines.items()]
        sentences.append(f"{LABELS[name]}, linear probe on h: {' and '.join(gaps)}")
    return sentences


def _gap(points: float, baseline: str) -> str:
    if abs(points) < 0.05:
        return f"level with {baseline}"
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'} {baseline}"


def write(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write table and figures; returns their paths."""
    table = folder / "table.md"
    write_atomically(table, f"{title(results)}.\n\n{markdown_table(results)}\n".encode())
    return [table, *figures(results, folder)]


def figures(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw the loss curve, F1 against bits and bit usage; those that the models of this run allow."""
    drawn = {"loss.png": loss_figure(results)}
    if any("forest" in model for model in results["models"].values()):
        drawn["f1_against_bits.png"] = forest_figure(results)
    if "bits" in results["models"].get("bern", {}):
        drawn["bit_usage.png"] = usage_figure(results["models"]["bern"]["bits"])
    for name, figure in drawn.items():
        content = BytesIO()
        figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
        write_atomically(folder / name, content.getvalue())
        plt.close(figure)
    return [folder / name for name in drawn]


def loss_figure(results: dict[str, Any]) -> Figure:
    """InfoNCE by epoch."""
    figure, axes = _axes("epoch", "InfoNCE (nats), mean over an epoch")
    for name, model in results["models"].items():
        colour, style = STYLES[name]
        losses = model["epoch_losses"]
        axes.plot(range(1, len(losses) + 1), losses, style, color=colour, label=LABELS[name])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def forest_figure(results: dict[str, Any]) -> Figure:
    """A random forest's F1 against the number of latent dimensions it sees, the most important first."""
    figure, axes = _axes("latent dimensions kept, the most important first", "random forest, mean F1 (%)")
    chance = 100 / results["data"]["classes"]
    for name, model in results["models"].items():
        if "forest" in model:
            colour, style = STYLES[name]
            f1 = [100 * value for value in model["forest"]["f1"]]
            label = f"{LABELS[name]} ({'bits' if name == 'bern' else 'real numbers'})"
            axes.plot(model["forest"]["counts"], f1, style, color=colour, marker="o", label=label)
            ticks = model["forest"]["counts"]
    axes.axhline(chance, color="grey", linestyle=":", linewidth=1)
    axes.annotate("chance", (ticks[-1], chance), ha="right", va="bottom", color="grey")
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def usage_figure(bits: dict[str, Any]) -> Figure:
    """Share of ones of each bit, sorted: flat at a half when every bit is used."""
    figure, axes = _axes("bits, sorted by their share of ones", "share of ones over the test images (%)")
    correlation = "-" if bits["correlation"] is None else f"{bits['correlation']:.2f}"
    shares = sorted(100 * share for share in bits["share_of_ones_by_bit"])
    axes.bar(range(1, len(shares) + 1), shares, width=1.0, color=STYLES["bern"][0])
    axes.axhline(50, color="black", linestyle=":", linewidth=1)
    axes.set_ylim(0, 100)
    axes.set_title(
        f"mean {100 * bits['share_of_ones']:.1f} % ones, {bits['entropy']:.3f} bits of entropy a bit, "
        f"mean |correlation| {correlation}",
        fontsize=9,
    )
    return figure


def _axes(x: str, y: str) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
