"""The example that wraps an existing model does what it says, for both kinds."""

import re

import pytest
import wrap_simclr


@pytest.mark.parametrize("kind", ["bern", "gauss"])
def test_it_trains_before_and_after_with_the_same_features_between(kind, capsys):
    wrap_simclr.main(kind, dim=24, steps=3, batch_size=8)
    printed = capsys.readouterr().out
    assert re.search(r"before  step   1  loss \d", printed)
    assert "features of 1,000 test images differ by 0\n" in printed
    assert re.search(r"after   step   3  loss \d", printed)
    assert re.search(r"uncertainty: entropy of -?\d", printed)
    assert ("codes: 3 bytes an image, 1024x smaller" in printed) is (kind == "bern")
