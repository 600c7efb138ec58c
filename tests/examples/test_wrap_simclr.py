"""The example that wraps an existing model does what it says, for both kinds."""

import re
import sys

import pytest
import wrap_simclr


def run(monkeypatch, capsys, *options):
    monkeypatch.setattr(sys, "argv", ["wrap_simclr.py", "--steps", "3", "--batch-size", "8", *options])
    wrap_simclr.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", ["bern", "gauss"])
def test_it_trains_before_and_after_with_the_same_features_between(kind, monkeypatch, capsys):
    printed = run(monkeypatch, capsys, "--kind", kind, "--dim", "24")
    assert re.search(r"before  step   1  loss \d", printed)
    assert "features of 1,000 test images differ by 0\n" in printed
    assert re.search(r"after   step   3  loss \d", printed)
    assert re.search(r"uncertainty: entropy of -?\d", printed)
    assert ("codes: 3 bytes an image, 1024x smaller" in printed) is (kind == "bern")


@pytest.mark.parametrize("option", ["--dim", "--steps", "--batch-size"])
def test_counts_below_their_least_are_refused(option, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, option, "0")
    assert f"{option} must be at least" in capsys.readouterr().err
