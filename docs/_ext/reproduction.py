"""Brings in what the page on the paper's table is made from: figures, commands, hours to expect, and our CPU run."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from cifar10_results import list_table, markdown_rows, measured_under
from sphinx.errors import ExtensionError
from sphinx.util.typing import ExtensionMetadata

HOURS = 3600  # seconds each


class Machine(NamedTuple):
    """GPUs whose speed in training ResNet-50 on ImageNet is published."""

    name: str
    gpus: int
    images_a_second: int


# NVIDIA DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5/README.md, "Training performance results",
# mixed precision: DGX A100 (A100 80GB) and DGX-1 (V100 16GB). ResNet-50 v1.5 is the variant that timm's resnet50 is.
MACHINES = (
    Machine("1 A100", 1, 2470),
    Machine("8 A100", 8, 16621),
    Machine("8 V100", 8, 8322),
)
# CIFAR-10: Krizhevsky 2009. ImageNet: ILSVRC 2012's training images (arXiv 1409.0575, table 2).
IMAGES = {"cifar10": 50_000, "imagenet": 1_281_167}
DATA_SETS = {"cifar10": "CIFAR-10", "imagenet": "ImageNet"}
COMMANDS = {
    "cifar10": ("examples/cifar10_full.py", "--preset paper --model {model}"),
    "imagenet": ("examples/imagenet_full.py", "--preset paper --data FOLDER --model {model}"),
}
ENCODERS = ("resnet50", "resnet200")
REFERENCE = ("imagenet_resnet50", "supervised", "train")  # what the published rates are of
PARTS = {
    "pretrain": "contrastive pretraining",
    "probe": "linear probe",
    "finetune": "fine-tuning",
    "train": "supervised training",
}


def bring_in(app: Any) -> None:
    """Write the files to include.

    Raises:
        ExtensionError: for a file that is missing or does not have the expected form.
    """
    examples = Path(app.srcdir).parent / "examples"
    if str(examples) not in sys.path:
        sys.path.append(str(examples))
    from recipes import figures, paper, plan_table
    from recipes.figures import LABELS

    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    for key, name in DATA_SETS.items():
        text = published(paper.TOP_1[name], LABELS, COMMANDS[key])
        (folder / f"reproduce_{key}.rst").write_text(text)
    (folder / "reproduce_hours.rst").write_text(
        hours(examples / "results" / "plans", plan_table.amount, plan_table.size)
    )
    source = Path(app.srcdir) / app.config.cifar10_cpu_results
    (folder / "reproduce_cpu.rst").write_text(cpu_run(source, folder, paper, figures))


def published(top_1: dict[str, Any], labels: dict[str, str], command: tuple[str, str]) -> str:
    """The paper's rows for one data set, and the command for both cells of each."""
    rows = [["model", "paper's fine-tuned top-1 %", "paper's frozen top-1 %"]]
    lines = []
    for model, cells in top_1.items():
        rows.append([labels[model], *("-" if cell is None else f"{cell:.2f}" for cell in cells)])
        script, options = command
        lines += [
            f"   # {labels[model]}",
            f"   torchrun --nproc-per-node 8 {script} \\",
            f"       {options.format(model=model)}",
        ]
    return "\n".join([list_table(rows), ".. code-block:: bash", "", *lines, ""])


# ---- hours ----------------------------------------------------------------------------------------------------


def hours(folder: Path, amount: Any, size: Any) -> str:
    """Tables of FLOPs and hours, from the plans that --dry-run wrote."""
    plans = {}
    for stem in (f"{key}_{encoder}" for key in DATA_SETS for encoder in ENCODERS):
        path = folder / f"{stem}.json"
        try:
            plans[stem] = json.loads(path.read_text())["plan"]
        except (OSError, KeyError, ValueError) as error:
            raise ExtensionError(
                f"{path} cannot be read ({error!r}); it is the plan.json that --preset paper --encoder "
                f"{stem.partition('_')[2]} --dry-run writes"
            ) from error
    name, model, part = REFERENCE
    try:
        flops = plans[name]["models"][model][part]["flops_an_image"]
        parts = [rates(flops, amount)]
        for stem, plan in plans.items():
            parts.append(of_plan(stem, plan, flops, amount, size))
    except KeyError as error:
        raise ExtensionError(f"a plan in {folder} has no {error}; write it with --dry-run again") from error
    return "\n".join(parts)


def rates(flops: float, amount: Any) -> str:
    """The published rates as FLOPs a second."""
    rows = [["machine", "published images/s", "FLOP/s, sustained, each GPU"]]
    for machine in MACHINES:
        sustained = machine.images_a_second * flops / machine.gpus
        rows.append([machine.name, f"{machine.images_a_second:,}", amount(sustained)])
    return list_table(rows)


def of_plan(stem: str, plan: dict[str, Any], reference: float, amount: Any, size: Any) -> str:
    """A data set's and encoder's table: what each part takes on each machine."""
    key, _, encoder = stem.partition("_")
    rows = [
        ["part", "epochs", "FLOP an image", "FLOP in all", *(m.name for m in MACHINES), "memory of each of 8"]
    ]
    for chain in chains(plan["models"]):
        total = 0.0
        for part, stage in chain.items():
            flops = stage["flops_an_image"] * IMAGES[key] * stage["epochs"]
            total += flops
            rows.append(
                [
                    PARTS[part],
                    f"{stage['epochs']:,}",
                    amount(stage["flops_an_image"]),
                    amount(flops),
                    *(taken(flops, machine, reference) for machine in MACHINES),
                    size(memory(stage, 8)),
                ]
            )
        if len(chain) > 1:
            sums = (taken(total, machine, reference) for machine in MACHINES)
            rows.append(["these together", "", "", amount(total), *sums, ""])
    title = f"{DATA_SETS[key]}, ResNet-{encoder.removeprefix('resnet')}"
    return f"{title}\n{'~' * len(title)}\n\n{list_table(rows)}"


def chains(models: dict[str, Any]) -> list[dict[str, Any]]:
    """The contrastive models' chain, of which the dearest stands for all, as a latent costs little; and the others'."""
    contrastive = [chain for chain in models.values() if "pretrain" in chain]
    dearest = max(contrastive, key=lambda chain: chain["pretrain"]["flops_an_image"])
    return [dearest, *(chain for chain in models.values() if "pretrain" not in chain)]


def taken(flops: float, machine: Machine, reference: float) -> str:
    """Time at the rate at which the machine does the published work."""
    spent = flops / (machine.images_a_second * reference) / HOURS
    if spent < 1:
        return f"{60 * spent:.0f} min"
    return f"{spent:,.0f} h" if spent >= 10 else f"{spent:.1f} h"


def memory(stage: dict[str, Any], gpus: int) -> int:
    """Bytes on each GPU for its share of the preset's batch; activations grow with the images."""
    at = stage["memory"]
    fixed = at["total"] - at["activations"]
    return int(fixed + at["activations"] / stage["batch_size"] * (stage["batch_size"] / gpus))


# ---- our run --------------------------------------------------------------------------------------------------


def cpu_run(source: Path, folder: Path, paper: Any, figures: Any) -> str:
    """The run of the preset for CPUs, or a note that there is none yet."""
    if not (source / "results.json").is_file():
        return ".. note::\n\n   Not measured yet: no results of ``--preset cpu`` are committed.\n"
    try:
        results = json.loads((source / "results.json").read_text())
        table = list_table(markdown_rows((source / "table.md").read_text()))
        beside = paper.beside(results)
        pictures = figures.draw(results)
        conditions = "".join(f":{name}: {value}\n" for name, value in measured_under(results))
    except (OSError, ValueError, KeyError) as error:
        raise ExtensionError(f"{source} cannot be read ({error!r}); publish the run again") from error
    parts = [table]
    if beside:
        parts += [
            "Beside the paper, top-1 in percent. The paper's columns were not measured here; its encoder is a "
            "ResNet-50 and its schedule another:\n",
            list_table([list(paper.COLUMNS), *(list(row) for row in beside)]),
        ]
    for picture in pictures:
        (folder / f"cpu_{picture.name}.svg").write_text(picture.svg())
        parts.append(
            f".. figure:: /_generated/cpu_{picture.name}.svg\n   :alt: {picture.alt}\n\n   {picture.caption}\n"
        )
    return "\n".join([*parts, "Measured under:\n", conditions])


def setup(app: Any) -> ExtensionMetadata:
    """Bring everything in before any page is read."""
    app.add_config_value("cifar10_cpu_results", "../examples/results/cifar10_cpu", "env", str)
    app.connect("builder-inited", bring_in)
    return {"parallel_read_safe": True}
