"""Brings in what was measured of the paper's claims: tables, figures and verdicts, or a note where there are none."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from cifar10_results import list_table
from sphinx.errors import ExtensionError
from sphinx.util.typing import ExtensionMetadata

COMMAND = "python examples/claims.py --claim {name} --data FOLDER_OR_TAR"
OPEN = "not measured yet"
SENTENCES = "results sentences"
LONG = "_40_epochs"
"""Ending of the folder with what one seed of a longer schedule says: tables, and no verdict."""


def bring_in(app: Any) -> None:
    """Write the summary and the claims to include.

    Raises:
        ExtensionError: for a results file that does not have the expected form.
    """
    examples = Path(app.srcdir).parent / "examples"
    if str(examples) not in sys.path:
        sys.path.append(str(examples))
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells how it was loaded
    from recipes.claims.catalogue import CLAIMS, OURS

    source, folder = Path(app.srcdir) / app.config.claims_results, Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    found = {name: read(source / f"{name}.json") for name in CLAIMS}
    parts = []
    for name, claim in CLAIMS.items():
        try:
            parts.append(part(name, claim, found[name], folder, name in OURS))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ExtensionError(
                f"{source / name}.json cannot be read ({error!r}); write it again with "
                f"{COMMAND.format(name=name)} --no-training"
            ) from error
    (folder / "claims_summary.rst").write_text(
        summary({name: claim for name, claim in CLAIMS.items() if name not in OURS}, found)
    )
    (folder / "claims.rst").write_text("\n".join(parts))
    (folder / "claims_long.rst").write_text(long_runs(CLAIMS, source.with_name(source.name + LONG)))


def read(path: Path) -> dict[str, Any] | None:
    """Results of a claim; None where it was not measured.

    Raises:
        ExtensionError: for a file that is no JSON.
    """
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ExtensionError(
            f"{path} is damaged ({error}); write it again with examples/claims.py"
        ) from error
    return content


def summary(claims: dict[str, Any], found: dict[str, dict[str, Any] | None]) -> str:
    """Every claim and what our runs say of it."""
    rows = [["claim", "the paper says", "in our runs"]]
    for name, claim in claims.items():
        rows.append([claim.TITLE, claim.CLAIM, said(found[name])])
    return list_table(rows, SENTENCES)


def said(content: dict[str, Any] | None) -> str:
    """The verdict in a few words."""
    if content is None:
        return OPEN
    if content["verdict"]:
        return f"**{content['verdict']}**"
    if content["missing"]:
        return f"no verdict yet: {len(content['missing'])} runs are not finished"
    return "no verdict: one seed has no spread"


def part(name: str, claim: Any, content: dict[str, Any] | None, folder: Path, ours: bool) -> str:
    """A section of a claim, or of a question that is ours."""
    heading = f"{claim.TITLE}\n{'-' * len(claim.TITLE)}\n"
    asked = f"{'Our assumption' if ours else 'The paper'}: {claim.CLAIM}\n"
    if content is None:
        note = f".. note::\n\n   Not measured yet: no results of ``{COMMAND.format(name=name)}`` are committed.\n"
        return "\n".join([heading, asked, note])
    picture = claim.draw(content)
    (folder / f"claim_{name}.svg").write_text(picture.svg())
    met = {True: "yes", False: "no", None: "open"}
    criteria = [
        ["what has to be so", "in our runs"],
        *([c["text"], met[c["met"]]] for c in content["criteria"]),
    ]
    return "\n".join(
        [
            heading,
            asked,
            f"In our runs: {said(content)}.\n",
            list_table([[escaped(cell) for cell in row] for row in claim.rows(content)]),
            f".. figure:: /_generated/claim_{name}.svg\n   :alt: {escaped(picture.alt)}\n",
            f"   {escaped(picture.caption)}\n",
            list_table([[escaped(cell) for cell in row] for row in criteria], SENTENCES),
            *(f"{escaped(note)}\n" for note in content["notes"]),
            conditions(content),
        ]
    )


def long_runs(claims: dict[str, Any], source: Path) -> str:
    """Tables of a longer schedule, those rows that were measured, and what they depend on.

    Raises:
        ExtensionError: for a results file that does not have the expected form.
    """
    found = {name: content for name in claims if (content := read(source / f"{name}.json")) is not None}
    parts = []
    for name, content in found.items():
        try:
            header, *cells = claims[name].rows(content)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ExtensionError(f"{source / name}.json cannot be read ({error!r})") from error
        ours = [i for i, head in enumerate(header) if i and "paper" not in head]
        measured = [row for row in cells if any(row[i] != "-" for i in ours)]
        parts += [
            f"{claims[name].TITLE}:\n",
            list_table([[escaped(c) for c in row] for row in (header, *measured)]),
        ]
    return "\n".join([*parts, *[conditions(content) for content in list(found.values())[:1]]])


def conditions(content: dict[str, Any]) -> str:
    """What the numbers depend on."""
    data, environment, config = content["data"], content["environment"], content["config"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    seeds = ", ".join(str(seed) for seed in content["seeds"])
    unfinished = ", of which not all are finished" if content["missing"] else ""
    schedule = f"{config['epochs']} epochs of batch {config['batch_size']}"
    trained = f"; trained on {'; '.join(content['trained_on'])}" if "trained_on" in content else ""
    fields = {
        "Command": f"``{content['command']}``",
        "Data": f"{data['name']}; {data['train']:,} training images, {data['test']:,} test images",
        "Runs": f"{config['encoder']} encoder, {schedule}, seeds {seeds}{unfinished}{trained}",
        "Written on": f"{environment['gpu'] or 'no GPU'}; {environment['machine']}",
        "Versions": f"Python {environment['python']}, {packages}",
        "Commits": f"{', '.join(f'``{commit}``' for commit in content['commits'])}; {content['date']}",
    }
    return "".join(f":{name}: {value}\n" for name, value in fields.items())


def escaped(text: str) -> str:
    """Text in which nothing is markup."""
    return text.replace("\\", r"\\").replace("*", r"\*").replace("|", r"\|").replace("`", r"\`")


def setup(app: Any) -> ExtensionMetadata:
    """Bring everything in before any page is read."""
    app.add_config_value("claims_results", "../examples/results/claims", "env", str)
    app.connect("builder-inited", bring_in)
    return {"parallel_read_safe": True}
