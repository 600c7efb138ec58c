"""Brings our measurements into the page on choosing kind, dim and temperature, as tables of committed files."""

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

from cifar10_results import list_table
from sphinx.errors import ExtensionError
from sphinx.util.typing import ExtensionMetadata

QUICK, CPU, SETTINGS = "cifar10_quick", "cifar10_cpu", "quick_settings.csv"
KL = "kl_weight/kl_weight.csv"
MODELS = ("simclr", "bern", "gauss")
FLOAT32 = 4  # bytes
OF_BITS = {
    "--temperature": "Concrete temperature",
    "--temperature-end": "Concrete temperature, annealed to",
    "--hard": "straight-through bits",
}
HELD_THE_SAME = {
    "dim": "latent dimensions",
    "temperature": "Concrete temperature",
    "temperature_end": "Concrete temperature at the end, if annealed",
    "hard": "straight-through bits",
    "location_std": "location_std",
    "loss_temperature": "temperature of the loss",
    "kl_weight": "weight of the KL",
    "symmetric": "both ways round",
    "encoder": "encoder",
    "epochs": "epochs",
    "seed": "seed",
}


class Run(NamedTuple):
    """What was measured under one preset.

    Args:
        name: of the preset.
        config: every setting.
        models: results of each model as far as there are any: "h", "z", "forest", "bits", "finetuned".
        test: number of test images; None where no file tells yet.
    """

    name: str
    config: dict[str, Any]
    models: dict[str, dict[str, Any]]
    test: int | None


def bring_in(app: Any) -> None:
    """Write the files to include.

    Raises:
        ExtensionError: for a file that is missing or does not have the expected form.
    """
    examples = Path(app.srcdir).parent / "examples"
    if str(examples) not in sys.path:
        sys.path.append(str(examples))
    from recipes.figures import LABELS

    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    for name, text in parts(examples / "results", LABELS).items():
        (folder / f"choosing_{name}.rst").write_text(text)


def parts(results: Path, labels: dict[str, str]) -> dict[str, str]:
    """Each file's text by its name.

    Raises:
        ExtensionError: as `bring_in`.
    """
    try:
        runs = [whole_run(results / QUICK), run_in_parts(results / CPU / "run")]
        with (results / SETTINGS).open(newline="") as file:
            settings = list(csv.DictReader(file))
        with (results / KL).open(newline="") as file:
            weighted = list(csv.DictReader(file))
        return {
            "kind": kinds(runs, labels) + "\n" + conditions(runs, labels),
            "forest": forests(runs, labels),
            "bits": use_of_bits(runs),
            "settings": held_the_same(runs),
            "location": location(settings, labels, runs[0].config["location_std"]),
            "temperature": temperatures(settings),
            "kl": kl_weights(weighted, labels),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExtensionError(
            f"the page on choosing needs {QUICK}/results.json, {CPU}/run, {SETTINGS} and {KL} in {results}, as "
            f"cifar10_full.py, compare_settings.py and kl_weight.py write them; they cannot be read ({error!r})"
        ) from error


# ---- what was measured ----------------------------------------------------------------------------------------


def whole_run(folder: Path) -> Run:
    """A run that is finished and published."""
    results = json.loads((folder / "results.json").read_text())
    models = {}
    for name, found in results["models"].items():
        models[name] = {key: found[key] for key in ("h", "z", "forest", "bits") if key in found}
        if "finetuned" in found:
            models[name]["finetuned"] = found["finetuned"]["accuracy"]
    return Run(results["config"]["preset"], results["config"], models, results["data"]["test"])


def run_in_parts(folder: Path) -> Run:
    """A run of which each model has a folder, as soon as it is there."""
    models: dict[str, dict[str, Any]] = {}
    for name in MODELS:
        frozen, finetuned = (folder / name / f"{part}.json" for part in ("frozen", "finetune"))
        if frozen.exists():
            models[name] = dict(json.loads(frozen.read_text())["result"])
            if finetuned.exists():
                models[name]["finetuned"] = json.loads(finetuned.read_text())["result"]["accuracy"]
    config = json.loads((folder / "config.json").read_text())
    return Run(config["preset"], config, models, models.get("bern", {}).get("bits", {}).get("images"))


# ---- kind -----------------------------------------------------------------------------------------------------


def kinds(runs: list[Run], labels: dict[str, str]) -> str:
    """Scores of each kind in each run."""
    rows = [["run", "model", "h, probe %", "h, kNN %", "z, probe %", "z, kNN %", "fine-tuned %", "z, bytes"]]
    for run in runs:
        for name in MODELS:
            found = run.models.get(name, {})
            scores = [found.get(key, {}).get(score) for key in "hz" for score in ("probe", "knn")]
            cells = [percent(score) for score in (*scores, found.get("finetuned"))]
            rows.append([run.name, labels[name], *cells, size(found)])
    return list_table(rows)


def size(found: dict[str, Any]) -> str:
    """Bytes of a latent: packed bits, or means in float32."""
    if "bits" in found:
        return f"{found['bits']['code_bytes']}"
    return f"{FLOAT32 * found['z']['dim']}" if "z" in found else "-"


def conditions(runs: list[Run], labels: dict[str, str]) -> str:
    """How far each run's numbers can be trusted, and what it lacks."""
    lines = []
    for run in runs:
        line = f"- *{run.name}*: {run.config['epochs']} epochs, seed {run.config['seed']}"
        if run.test:
            error = 100 * math.sqrt(0.25 / run.test)
            line += (
                f"; {run.test:,} test images, so that an accuracy has a standard error of up to {error:.1f} points "
                "from the choice of these images alone"
            )
        missing = [labels[name] for name in MODELS if name not in run.models]
        lines.append(line + (f". Not measured yet: {', '.join(missing)}." if missing else "."))
    return "\n".join(lines) + "\n"


# ---- dim ------------------------------------------------------------------------------------------------------


def forests(runs: list[Run], labels: dict[str, str]) -> str:
    """F1 of a forest against the latent dimensions kept, for each latent in each run."""
    curves = [
        (run.name, labels[name], dict(zip(forest["counts"], forest["f1"], strict=True)))
        for run in runs
        for name in MODELS
        if (forest := run.models.get(name, {}).get("forest"))
    ]
    counts = sorted({count for _, _, curve in curves for count in curve})
    rows = [["run", "model", *(str(count) for count in counts)]]
    rows += [[run, model, *(percent(curve.get(count)) for count in counts)] for run, model, curve in curves]
    return list_table(rows)


def use_of_bits(runs: list[Run]) -> str:
    """How each run's code uses its bits."""
    rows = [["run", "bits", "different codes", "entropy of a bit", "correlation of two", "class in a bit"]]
    for run in runs:
        if bits := run.models.get("bern", {}).get("bits"):
            rows.append(
                [
                    run.name,
                    str(run.models["bern"]["z"]["dim"]),
                    f"{bits['distinct_codes']:,} of {bits['images']:,}",
                    *(f"{bits[name]:.3f}" for name in ("entropy", "correlation", "class_information")),
                ]
            )
    return list_table(rows)


# ---- temperature ----------------------------------------------------------------------------------------------


def held_the_same(runs: list[Run]) -> str:
    """Settings of the runs, side by side."""
    rows = [["setting", *(run.name for run in runs)]]
    rows += [
        [words, *(told(run.config[name]) for run in runs)]
        for name, words in HELD_THE_SAME.items()
        if all(name in run.config for run in runs)
    ]
    return list_table(rows)


def location(settings: list[dict[str, str]], labels: dict[str, str], preset: float) -> str:
    """Scores for each location_std, all else equal: a number for each seed."""
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in settings:
        options = row["options"].split()
        if row["model"] in ("bern", "gauss") and options[:1] == ["--symmetric"]:
            rest = options[1:]
            if not rest or (rest[0] == "--location-std" and len(rest) == 2):
                value = float(rest[1]) if rest else preset
                found.setdefault((f"{value:g}" if value else "none", row["model"]), []).append(row)
    rows = [["location_std", "model", "h, probe %", "z, probe %"]]
    for (value, model), seeds in sorted(
        found.items(), key=lambda item: (item[0][1], item[0][0] != "none", item[0])
    ):
        cells = [", ".join(percent(float(row[score])) for row in seeds) for score in ("h_probe", "z_probe")]
        rows.append([value, labels[model], *cells])
    return list_table(rows)


def temperatures(settings: list[dict[str, str]]) -> str:
    """Scores under other temperatures, or a word that there are none."""
    rows = [["bits", "seed", "h, probe %", "z, probe %"]]
    for row in settings:
        options = row["options"].split()
        for option in OF_BITS.keys() & set(options):
            place = options.index(option) + 1
            value = options[place] if option != "--hard" else ""
            scores = [percent(float(row[score])) for score in ("h_probe", "z_probe")]
            rows.append([f"{OF_BITS[option]} {value}".strip(), row["seed"], *scores])
    if len(rows) == 1:
        return (
            ".. note::\n\n   Not measured yet: no run with another Concrete temperature, with annealing or with "
            "straight-through bits is committed.\n"
        )
    return list_table(rows)


# ---- a weight on the KL ----------------------------------------------------------------------------------------


def kl_weights(measured: list[dict[str, str]], labels: dict[str, str]) -> str:
    """The latent under each scale and weight, means over the seeds."""
    columns = {"kl": "KL, nats", "kurtosis_in_a_dimension": "kurtosis", "std": "standard deviation"}
    shares = {"decided": "decided bits %", "knn_z": "z, kNN %", "knn_h": "h, kNN %"}
    rows = [["model", "scale", "weight", *columns.values(), *shares.values(), "seeds"]]
    settings = dict.fromkeys((row["kind"], row["scale"], float(row["kl_weight"])) for row in measured)
    for kind, scale, weight in sorted(settings, key=lambda setting: setting[0]):
        seeds = [
            r for r in measured if (r["kind"], r["scale"], float(r["kl_weight"])) == (kind, scale, weight)
        ]
        means = {
            name: sum(float(r[name] or "nan") for r in seeds) / len(seeds) for name in (*columns, *shares)
        }
        numbers = [f"{means[name]:.1f}" for name in columns]
        percents = [percent(None if math.isnan(means[name]) else means[name]) for name in shares]
        rows.append([labels[kind], scale, f"{weight:g}", *numbers, *percents, str(len(seeds))])
    return list_table(rows)


# ---- words ----------------------------------------------------------------------------------------------------


def percent(share: float | None) -> str:
    """A share as percent."""
    return "-" if share is None else f"{100 * share:.1f}"


def told(value: Any) -> str:
    """A setting in words."""
    if value is None:
        return "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def setup(app: Any) -> ExtensionMetadata:
    """Bring everything in before any page is read."""
    app.connect("builder-inited", bring_in)
    return {"parallel_read_safe": True}
