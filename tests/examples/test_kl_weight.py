"""The measurement of a KL weight under each scale: that it runs and resumes, and what the documentation says of it."""

import csv
import json
import sys
from pathlib import Path

import kl_weight
import torch

TABLE = Path(kl_weight.HERE) / "results" / "kl_weight" / "kl_weight.csv"


def run(monkeypatch, folder, *options):
    monkeypatch.setattr(sys, "argv", ["kl_weight.py", "--out", str(folder), "--epochs", "1", *options])
    threads = torch.get_num_threads()
    kl_weight.main()
    torch.set_num_threads(threads)
    return list(csv.DictReader((folder / "kl_weight.csv").read_text().splitlines()))


def test_every_setting_is_measured_once(monkeypatch, tmp_path):
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8), torch.arange(64) % 2
    monkeypatch.setattr(kl_weight, "load", lambda split: images)
    monkeypatch.setattr(kl_weight, "VIEWS", 2)
    rows = run(monkeypatch, tmp_path, "--seeds", "0")
    assert len({(row["kind"], row["scale"], row["kl_weight"]) for row in rows}) == len(rows) == 24
    for row in rows:
        assert all(float(row[name]) >= 0 for name in ("kl", "kurtosis", "std", "knn_z", "knn_h"))
        assert (row["decided"] == "") == (row["kind"] == "gauss")
    about = json.loads((tmp_path / "kl_weight.json").read_text())
    ((command, commit),) = about["commands"][0].items()
    assert command.endswith("--seeds 0")
    assert commit
    assert about["versions"]["torch"]
    trained, real = [], kl_weight.train
    monkeypatch.setattr(kl_weight, "train", lambda *args: trained.append(args[3]) or real(*args))
    assert run(monkeypatch, tmp_path, "--seeds", "0", "1", "--kinds", "gauss")[:24] == rows
    assert trained == [1] * 12
    assert len(json.loads((tmp_path / "kl_weight.json").read_text())["commands"]) == 2
