"""Start processes of a gloo group and collect their results."""

import time
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = 150  # seconds after which processes count as hanging


def launch(work, folder, world_size=2):
    """Results of `work(rank)`, a dict, with the warnings of each process under "warnings"."""
    processes = mp.spawn(_process, (work, str(folder), world_size), world_size, join=False)
    end = time.monotonic() + TIMEOUT
    try:
        while not processes.join(timeout=1):  # raises if a process has
            assert time.monotonic() < end, f"{work.__name__} still runs after {TIMEOUT} s"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _process(rank, work, folder, world_size):
    torch.set_num_threads(1)
    options = {"init_method": f"file://{folder}/rendezvous", "rank": rank, "world_size": world_size}
    dist.init_process_group("gloo", **options, timeout=timedelta(seconds=60))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = work(rank)
        torch.save({**result, "warnings": [str(w.message) for w in caught]}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
