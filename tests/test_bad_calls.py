"""A bad call raises an error that names the argument, the rule and the value received; bad_calls.py has the table."""

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
KNOWN = {  # rows that do not, yet
    # Labels are returned as they are.
    *("evaluation.encode(images=strings as labels)", "evaluation.encode(images=nan as labels)"),
    "evaluation.forest_curve(counts=())",  # the curve of all features alone
    "wrapper.StochConWrapper.forward(x=fewer dimensions)",
    "wrapper.StochConWrapper.forward(x_prime=fewer dimensions)",
    "wrapper.StochConWrapper.encode(x=meta)",
}
RULE = re.compile(
    r"\b(must|needs?|takes|gives|has no|lacks|is (empty|missing|damaged)|does not|there is no|not found)\b"
)
RECEIVED = re.compile(r"\b(got|gives|is empty)\b")


def problem(row):
    """What is wrong with how a bad call ends; empty for a clear error."""
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
    # For a missing file the message has its path instead of the argument's name.
    names = "|".join((row.parameter, *row.bad.names))
    if not isinstance(error, FileNotFoundError) and not re.search(rf"\b({names})\b", message):
        return f"does not name {names}: {message}"
    if not RULE.search(message):
        return f"no rule: {message}"
    if not any(shows(message, word) or f"{row.parameter}={word}" in message for word in row.bad.shows):
        return f"does not show {' or '.join(dict.fromkeys(row.bad.shows))}: {message}"
    return ""


def shows(message, word):
    """Whether a message has a word; words that may be part of the rule count only after "got"."""
    if re.fullmatch(r"-?[\d.]+|\(\)|\[\]|None|True|int|str|empty", word):
        received = RECEIVED.search(message)
        message = message[received.start() :] if received else ""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message.replace('"', "'")) is not None


def test_every_public_parameter_has_a_row():
    found = {(row.name, row.parameter) for row in bad_calls.table()}
    wanted = {(name, key) for name, parameters in bad_calls.surface().items() for key in parameters}
    assert not wanted - found


def test_the_tables_have_no_stale_entry():
    parameters = {f"{name}.{key}" for name, keys in bad_calls.surface().items() for key in keys}
    names = {name.rpartition(".")[2] for name in parameters}
    for table in (bad_calls.GOOD, bad_calls.KINDS):
        assert not {entry for entry in table if entry not in (parameters if "." in entry else names)}
    assert bad_calls.CALLS.keys() <= bad_calls.surface().keys()
    for name in bad_calls.OBJECTS:
        assert inspect.isclass(bad_calls.public(name)) or name in bad_calls.surface()


@pytest.mark.parametrize("name", bad_calls.surface())
def test_the_call_with_good_values_is_valid(name):
    function, arguments = bad_calls.valid_call(name)
    function(**arguments)


def test_bad_calls_end_in_a_clear_error():
    table = bad_calls.table()
    failing = {str(row): " ".join(found.split())[:160] for row in table if (found := problem(row))}
    assert not {row: found for row, found in failing.items() if row not in KNOWN}
    assert failing.keys() >= KNOWN
