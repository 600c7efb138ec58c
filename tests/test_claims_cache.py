"""The cache of runs: its names, runs taken in from elsewhere, damage, and hours to go."""

import argparse
import json
import os
import shutil
import subprocess
import sys

import cifar10_full
import pytest
import torch
from recipes.claims import bits, pace, record
from recipes.claims.cache import Cache, configuration, key
from recipes.claims.evidence import Grid, Setting, label
from recipes.feeds import DataError
from recipes.stages import RunError

CONFIG = {"seed": 0, "lr": 0.4, "device": "cpu", "compile": False, "ema": None}


@pytest.mark.parametrize(("change", "same"), [
    ({"device": "cuda", "compile": True}, True), ({"later": None}, True), ({"seed": 1}, False), ({"lr": 0.2}, False),
    ({"ema": 0.9}, False),
])  # fmt: skip
def test_a_key_tells_settings_not_machines(change, same):
    assert (key(CONFIG, "data") == key({**CONFIG, **change}, "data")) is same
    assert key(CONFIG, "data") != key(CONFIG, "other data")


@pytest.fixture
def cache(tmp_path):
    base = ["--preset", "quick", "--epochs", "2", "--device", "cpu"]
    return Cache(tmp_path / "cache", cifar10_full.parse, base, "fingerprint")


def test_models_of_the_same_settings_share_a_folder(cache):
    base = cache.place(Setting("simclr"), 0)
    assert base == cache.place(Setting("gauss"), 0) == cache.place(Setting("bern", ("--dim", "128")), 0)
    others = [
        cache.place(Setting("bern", options), 0) for options in (("--dim", "8"), ("--hard",), ("--held-out",))
    ]
    assert len({base, cache.place(Setting("simclr"), 1), *others}) == 5
    assert cache.args(Setting("bern"), 0).resume


def test_a_run_is_held_by_one_process(cache):
    setting = Setting("bern")
    held = f"""
import sys, cifar10_full
from recipes.claims.cache import Cache
from recipes.claims.evidence import Setting
cache = Cache(__import__("pathlib").Path(sys.argv[1]), cifar10_full.parse, {cache.base!r}, "fingerprint")
for model, seed in (("bern", 0), ("bern", 1), ("gauss", 0)):
    with cache.held(Setting(model), seed) as mine:
        print(int(mine), end="")
"""

    def seen_by_another():
        paths = os.pathsep.join(path for path in sys.path if path)
        command = [sys.executable, "-c", held, str(cache.folder)]
        env = {**os.environ, "PYTHONPATH": paths}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    with cache.held(setting, 0) as mine:
        assert mine
        assert seen_by_another() == "011"
    assert seen_by_another() == "111"


def write_run(
    folder, args, *, model="bern", fingerprint="fingerprint", parts=("pretrain", "frozen"), weights=True
):
    """A finished run's files; the numbers in them are no model's."""
    (folder / model / "pretrain").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(configuration(args)))
    result = {"training_seconds": 100.0, "epoch_losses": [1.0]}
    for part in parts:
        content = {"sha256": fingerprint, "commit": "c0ffee", "seconds": 7.0, "result": result}
        (folder / model / f"{part}.json").write_text(json.dumps(content))
    (folder / model / "pretrain" / "metrics.csv").write_text(
        "step,epoch,posterior_variance\n1,1,1.0\n2,2,0.5\n"
    )
    if weights:
        (folder / model / "pretrain" / "weights.safetensors").write_bytes(b"weights")
    (folder / model / "config.json").write_text("{}")  # of the model that HubModel loads
    (folder / model / "pretrain" / "last.ckpt").write_bytes(b"checkpoint")


def test_adopting_a_run_copies_what_is_whole(cache, tmp_path):
    source = tmp_path / "run"
    args = cache.args(Setting("simclr"), 1)
    write_run(source, args)
    write_run(source, args, model="simclr", weights=False)
    assert cache.adopt(source, Setting("simclr"), [0, 1]) == ["bern"]
    assert cache.read(Setting("bern"), 1, "frozen")["training_seconds"] == 100.0
    assert cache.read(Setting("bern"), 1, "metrics")["posterior_variance"] == [1.0, 0.5]
    assert cache.read(Setting("simclr"), 1, "pretrain") is None
    assert cache.read(Setting("bern"), 0, "frozen") is None
    assert not list(cache.folder.rglob("*.ckpt"))
    assert cache.adopt(source, Setting("simclr"), [1]) == []


def test_adopting_another_run_is_refused(cache, tmp_path):
    def refuse(error, *said, seeds=(0, 1)):
        with pytest.raises(error) as caught:
            cache.adopt(tmp_path / "run", Setting("simclr"), seeds)
        assert all(text in str(caught.value) for text in said), caught.value
        assert not cache.folder.exists()

    refuse(RunError, "is no run of examples/cifar10_full.py", "config.json")
    args = cache.args(Setting("simclr"), 1)
    args.lr, args.device = 0.01, "cuda"
    write_run(tmp_path / "run", args)
    refuse(RunError, "--adopt", "is of other settings (lr: 0.01 there, 0.2 here)")
    refuse(RunError, "is of seed 1, and the seeds are 0, 2", "--seeds", seeds=(0, 2))
    shutil.rmtree(tmp_path / "run")
    write_run(tmp_path / "run", cache.args(Setting("simclr"), 1), fingerprint="another")
    refuse(DataError, "was made from other images than --data gives")
    (tmp_path / "run" / "bern" / "frozen.json").write_text("{")
    refuse(RunError, "frozen.json is damaged")
    (tmp_path / "run" / "config.json").write_text("[]")
    refuse(RunError, "config.json is damaged")


def test_damage_in_the_cache_is_said(cache):
    setting = Setting("bern")
    place = cache.place(setting, 0)
    write_run(place, cache.args(setting, 0))
    assert cache.read(setting, 0, "frozen")
    metrics = place / "bern" / "pretrain" / "metrics.csv"
    metrics.unlink()
    with pytest.raises(RunError, match=r"metrics\.csv is missing or damaged.*to train this model anew"):
        cache.read(setting, 0, "metrics")
    for content in ("{", "{}", "[]"):
        (place / "bern" / "frozen.json").write_text(content)
        with pytest.raises(RunError, match=r"frozen\.json is damaged.*delete it to do this part again"):
            cache.read(setting, 0, "frozen")
    write_run(place.with_name("other"), cache.args(Setting("bern", ("--hard",)), 0))
    shutil.rmtree(place)
    place.with_name("other").rename(place)
    with pytest.raises(RunError, match=r"is of other settings \(hard: True there, False here\)"):
        cache.read(setting, 0, "frozen")


def test_hours_follow_from_measured_speed(cache, tmp_path):
    setting = Setting("bern")
    write_run(
        cache.place(setting, 0), cache.args(setting, 0)
    )  # 2 epochs of 1,000 images in 100 s, frozen in 7 s
    rates = pace.measured([cache.place(setting, 0), tmp_path / "nothing"], "fingerprint", 1000, "small")
    assert rates.runs == 1
    args = vars(cache.args(Setting("bern", ("--epochs", "10", "--held-out")), 0))
    assert rates.seconds(setting, "pretrain", args, 1000) == pytest.approx(100 / 2 * 10 * 0.8)
    assert rates.seconds(Setting("simclr"), "pretrain", args, 1000) == pytest.approx(400)  # as the others
    assert rates.seconds(setting, "frozen", args, 1000) == 7.0
    assert rates.seconds(setting, "finetune", args, 1000) is None
    images = argparse.Namespace(train_labels=torch.zeros(1000))
    left = pace.left({(setting, 1): ["pretrain", "frozen", "finetune"]}, cache, rates, images)
    assert left.hours == pytest.approx(107 / 3600)
    assert left.unknown == ("finetune",)
    assert pace.measured([cache.place(setting, 0)], "other data", 1000, "small").runs == 0
    assert pace.measured([cache.place(setting, 0)], "fingerprint", 1000, "resnet50").runs == 0


def test_what_is_missing_of_a_claim_is_told(cache):
    setting = Setting("bern")
    write_run(cache.place(setting, 0), cache.args(setting, 0))
    needs = bits.needs(Grid(forest_dims=(128,)))
    assert record.missing(cache, needs, [0, 1]) == {
        (setting, 0): ["forest"],
        (setting, 1): ["pretrain", "frozen", "forest"],
    }
    assert record.commits(cache, needs, [0, 1]) == ["c0ffee"]
    assert label(Setting("gauss", ("--dim", "8"))) == "StochCon Gauss --dim 8"
