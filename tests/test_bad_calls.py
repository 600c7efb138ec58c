"""A bad call ends in an error that names the argument, the rule and the value received (the table: bad_calls.py)."""

import inspect
import linecache
import re
import sys
import traceback
import warnings
from pathlib import Path

import bad_calls
import pytest

import stochastic_bottleneck

PACKAGE = Path(stochastic_bottleneck.__file__).parent
LEAST = 0.98
"""Share of the rows that have to end in a clear error."""
KNOWN = {
    *(
        "evaluation.encode(images=float64)",
        "evaluation.encode(images=float64 images)",
    ),  # the model's words, of its "x"
    *("evaluation.fine_tune(train=float64 images)", "evaluation.fine_tune(test=float64 images)"),
    *(
        "evaluation.encode(images=strings as labels)",
        "evaluation.encode(images=nan as labels)",
    ),  # given back as they are
    "evaluation.forest_curve(counts=())",  # of all features alone
    *(
        "wrapper.StochConWrapper.forward(x=fewer dimensions)",
        "wrapper.StochConWrapper.forward(x_prime=fewer dimensions)",
    ),
    "wrapper.StochConWrapper.encode(x=meta)",
}
"""Rows that do not end in a clear error."""
RULE = re.compile(
    r"\b(must|needs?|takes|gives|has no|lacks|is (empty|missing|damaged)|does not|there is no|not found)\b"
)
RECEIVED = re.compile(r"\b(got|gives|is empty)\b")


def outcome(row):
    """What is wrong about how a bad call ends; empty for a clear error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            row.call()
    except Exception as error:
        return unclear(error, row)
    finally:
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")
    return "accepted"


def unclear(error, row):
    """What an error lacks."""
    message, kind = str(error), type(error).__name__
    frame = traceback.extract_tb(error.__traceback__)[-1]
    raised = re.search(r"\braise\b", linecache.getline(frame.filename, frame.lineno))
    if PACKAGE not in Path(frame.filename).parents or not raised:
        return f"raw {kind}: {message}"
    if not isinstance(error, (TypeError, ValueError, FileNotFoundError, RuntimeError)):
        return f"{kind}: {message}"
    # A file that is not there names itself.
    names = "|".join((row.parameter, *row.bad.names))
    if not isinstance(error, FileNotFoundError) and not re.search(rf"\b({names})\b", message):
        return f"does not name {names}: {message}"
    if not RULE.search(message):
        return f"no rule: {message}"
    if not any(shows(message, word) or f"{row.parameter}={word}" in message for word in row.bad.shows):
        return f"does not show {' or '.join(dict.fromkeys(row.bad.shows))}: {message}"
    return ""


def shows(message, word):
    """Whether a message shows it; what may stand in the rule too, after "got" only."""
    if re.fullmatch(r"-?[\d.]+|\(\)|\[\]|None|True|int|str|empty", word):
        received = RECEIVED.search(message)
        message = message[received.start() :] if received else ""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message.replace('"', "'")) is not None


def test_every_public_parameter_has_a_row():
    found = {}
    for row in bad_calls.table():
        found.setdefault(row.name, set()).add(row.parameter)
    for name, function in bad_calls.surface().items():
        wanted = bad_calls.parameters(name, function).keys()
        assert found.get(name, set()) == wanted, (
            f"{name} has no bad calls of {wanted - found.get(name, set())}"
        )


def test_the_table_names_what_exists():
    surface = bad_calls.surface()
    assert bad_calls.CALLS.keys() <= surface.keys()
    for name, call in bad_calls.CALLS.items():
        taken = bad_calls.parameters(name, surface[name])
        assert call.kinds.keys() | call.arguments().keys() <= taken.keys(), name
    inside = {
        f"{name}.{key}" for name, value in surface.items() for key in inspect.signature(value).parameters
    }
    assert bad_calls.EXEMPT.keys() <= surface.keys() | inside


@pytest.mark.parametrize("name", bad_calls.CALLS)
def test_the_call_without_the_bad_value_is_valid(name):
    called, arguments = bad_calls.valid(name)
    called(**arguments)


def test_bad_calls_end_in_a_clear_error():
    table = bad_calls.table()
    failing = {str(row): " ".join(said.split())[:160] for row in table if (said := outcome(row))}
    assert not {row: said for row, said in failing.items() if row not in KNOWN}
    assert 1 - len(failing) / len(table) >= LEAST
