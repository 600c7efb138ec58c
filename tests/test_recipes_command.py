"""The command lines of the full runs: what they refuse, what they fill in, and how a run ends."""

import os
import re
import signal

import cifar10_full
import imagenet_full
import pytest
import torch
from recipes import command, ending
from recipes.checkpoints import CheckpointError, Stopped
from recipes.feeds import DataError
from recipes.models import WeightsError
from recipes.screen import console
from recipes.stages import RunError
from recipes.training import TrainingError

SCRIPTS = {"cifar10": (cifar10_full, []), "imagenet": (imagenet_full, ["--data", "photographs"])}
QUICK = {"cifar10": "quick", "imagenet": "smoke"}
each_script = pytest.mark.parametrize("name", SCRIPTS)


@pytest.fixture(autouse=True)
def no_gpu_and_one_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)


@pytest.fixture
def torchrun(monkeypatch):
    """Let this process take itself for one that torchrun has started."""

    def started(size, local_size=None, rank=0):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "tests")
        for name, value in {"RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": local_size or size}.items():
            monkeypatch.setenv(name, str(value))

    return started


def parse(name, *arguments):
    script, needed = SCRIPTS[name]
    return script.parse([*needed, *arguments])


def complaint(name, capsys, *arguments):
    """What a refused command line is told."""
    with pytest.raises(SystemExit) as stop:
        parse(name, *arguments)
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split()).split("error: ")[1]


# ---- help and presets -----------------------------------------------------------------------------------------


@each_script
def test_help_explains_every_option(name, capsys):
    script, _ = SCRIPTS[name]
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    options = [option for option in vars(parse(name)) if option != "reason"]
    assert len(options) > 40
    for option in options:
        assert re.search(rf"^  --{option.replace('_', '-')}\b", told, re.MULTILINE), option
    for preset in script.PRESETS:
        assert f"  {preset}: " in told
    assert "file system that all of them share" in told
    assert "torchrun --nproc-per-node" in told
    assert max(len(line) for line in told.splitlines()) < 125


@each_script
def test_presets_set_the_same_options_and_each_is_an_option(name):
    script, _ = SCRIPTS[name]
    names = {frozenset(preset) for preset in script.PRESETS.values()}
    assert len(names) == 1
    assert names.pop() <= set(vars(parse(name)))


@each_script
def test_presets_pass_their_own_checks(name):
    """Given on the command line, each value is accepted: none lies outside its range."""
    script, _ = SCRIPTS[name]
    for preset, values in script.PRESETS.items():
        given = []
        for option, value in values.items():
            dashed = "--" + option.replace("_", "-")
            if isinstance(value, bool):
                given.append(dashed if value else f"--no-{dashed[2:]}")
            elif value is not None:
                given += [dashed, str(value)]
        args = vars(parse(name, "--preset", preset, *given))
        assert {option: args[option] for option in values} == values


@each_script
def test_a_preset_fills_in_what_was_not_given(name):
    script, _ = SCRIPTS[name]
    args = parse(name, "--preset", "paper", "--epochs", "7", "--hard", "--finetune-lr", "0.3")
    expected = {**script.PRESETS["paper"], "epochs": 7, "hard": True, "finetune_lr": 0.3}
    assert {option: getattr(args, option) for option in expected} == expected
    assert str(args.out) == f"runs/{name}-paper-seed0"
    assert parse(name, "--model", "gauss", "supervised", "simclr", "gauss").model == [
        "simclr",
        "gauss",
        "supervised",
    ]
    assert parse(name).model == ["simclr", "bern", "gauss", "supervised"]


def test_the_paper_presets_are_the_published_recipes():
    """Figures of SimCLR's README and paper, of Goyal et al. and of lightly, as the comments beside them say."""
    cifar, imagenet = cifar10_full.PRESETS["paper"], imagenet_full.PRESETS["paper"]
    assert cifar["lr"] == 1.0 * cifar["batch_size"] / 256
    assert imagenet["lr"] == pytest.approx(0.3 * imagenet["batch_size"] / 256)
    assert imagenet["lr"] == pytest.approx(0.075 * imagenet["batch_size"] ** 0.5)
    assert (cifar["weight_decay"], imagenet["weight_decay"]) == (1e-4, 1e-6)
    assert (cifar["loss_temperature"], imagenet["loss_temperature"]) == (0.5, 0.1)
    assert (cifar["blur"], imagenet["blur"], cifar["jitter"], imagenet["jitter"]) == (0.0, 0.5, 0.5, 1.0)
    assert imagenet["probe_lr"] == 0.1 * imagenet["probe_batch_size"] / 256
    assert imagenet["finetune_lr"] == 0.05 * imagenet["finetune_batch_size"] / 256
    assert imagenet["supervised_lr"] == 0.1 * imagenet["supervised_batch_size"] / 256
    assert (imagenet["dim"], imagenet["size"], imagenet["batch_size"]) == (2048, 224, 4096)


@each_script
def test_learning_rates_follow_the_batch_unless_they_are_given(name):
    script, _ = SCRIPTS[name]
    preset = script.PRESETS["paper"]
    assert parse(name, "--preset", "paper").lr == preset["lr"]
    quarter = str(preset["batch_size"] // 4)
    rates = {
        rule: parse(name, "--preset", "paper", "--batch-size", quarter, "--lr-scaling", rule).lr
        for rule in ("linear", "sqrt")
    }
    assert rates == {"linear": preset["lr"] / 4, "sqrt": preset["lr"] / 2}
    assert parse(name, "--preset", "paper", "--batch-size", quarter).lr == rates[preset["lr_scaling"]]
    assert parse(name, "--preset", "paper", "--batch-size", quarter, "--lr", "0.7").lr == 0.7
    for prefix in ("finetune", "supervised"):
        halved = parse(
            name, "--preset", "paper", f"--{prefix}-batch-size", str(preset[f"{prefix}_batch_size"] // 2)
        )
        assert getattr(halved, f"{prefix}_lr") == preset[f"{prefix}_lr"] / 2
        assert halved.lr == preset["lr"]


# ---- defaults of the machine ----------------------------------------------------------------------------------

NO_GPU, GPU = "there is no CUDA device", "a CUDA device is here"
DEFAULTS = [
    # cuda, arguments, preset or None for the quick one, device, compile, in the reason
    (False, [], None, "cpu", False, NO_GPU),
    (True, [], "paper", "cuda", True, GPU),
    (True, ["--device", "cpu"], None, "cpu", False, "made for a CPU"),
    (False, ["--preset", "paper", "--compile"], "paper", "cpu", True, "as asked"),
    (True, ["--preset", "paper", "--no-compile"], "paper", "cuda", False, "as asked"),
]


@each_script
@pytest.mark.parametrize(("cuda", "arguments", "preset", "device", "compiled", "reason"), DEFAULTS)
def test_the_machine_decides_what_is_not_given(
    monkeypatch, name, cuda, arguments, preset, device, compiled, reason
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    args = parse(name, *arguments)
    assert (args.preset, args.device, args.compile) == (preset or QUICK[name], device, compiled)
    assert reason in args.reason
    assert args.precision == ("bf16" if device == "cuda" else "32")
    assert args.encoder == SCRIPTS[name][0].PRESETS[args.preset]["encoder"]


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16"),
        ({"avx2": True}, "32"),
    ],
)
def test_a_cpu_trains_in_bfloat16_only_where_it_can_multiply_it(monkeypatch, name, capabilities, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert parse(name, "--device", "cpu").precision == precision
    assert parse(name, "--device", "cpu", "--precision", "bf16").precision == "bf16"


def test_processes_on_a_machine_share_its_cores(monkeypatch, torchrun):
    monkeypatch.setattr(command, "_cores", lambda: 12)
    assert parse("cifar10").workers == 12
    torchrun(size=8, local_size=4)
    assert parse("cifar10").workers == 3
    assert parse("cifar10", "--workers", "0").workers == 0
    torchrun(size=32)
    assert parse("cifar10").workers == 1
    monkeypatch.setattr(command, "_cores", lambda: 4096)
    assert parse("cifar10").workers == 16


# ---- what is refused ------------------------------------------------------------------------------------------

BAD = [
    ("--preset", "huge"),
    ("--model", "vae"),
    ("--device", "tpu"),
    ("--device", "cuda"),
    ("--precision", "8"),
    ("--precision", "16"),
    ("--encoder", "vgg"),
    ("--norm", "layer"),
    ("--optimizer", "magic"),
    ("--finetune-optimizer", "magic"),
    ("--seed", "one"),
    ("--seed", "-1"),
    ("--seed", str(2**31)),
    ("--epochs", "0"),
    ("--epochs", "1.5"),
    ("--finetune-epochs", "-1"),
    ("--supervised-epochs", "0"),
    ("--batch-size", "0"),
    ("--batch-size", "1"),
    ("--supervised-batch-size", "1"),
    ("--micro-batch", "1"),
    ("--dim", "-4"),
    ("--projection-dim", "0"),
    ("--lr", "0"),
    ("--lr", "nan"),
    ("--lr", "inf"),
    ("--lr", "fast"),
    ("--finetune-lr", "0"),
    ("--lr-scaling", "cubic"),
    ("--weight-decay", "-0.1"),
    ("--weight-decay", "nan"),
    ("--supervised-weight-decay", "2"),
    ("--warmup-epochs", "-1"),
    ("--loss-temperature", "0"),
    ("--jitter", "-0.5"),
    ("--jitter", "3"),
    ("--blur", "1.5"),
    ("--min-crop", "0"),
    ("--min-crop", "1.5"),
    ("--labelled-min-crop", "0"),
    ("--ema", "1"),
    ("--temperature", "0"),
    ("--temperature-end", "-1"),
    ("--location-std", "-1"),
    ("--workers", "-1"),
    ("--checkpoint-steps", "0"),
    ("--checkpoint-minutes", "0"),
    ("--track-every", "0"),
    ("--knn-every", "-1"),
]


@each_script
@pytest.mark.parametrize(("option", "value"), BAD)
def test_a_bad_value_is_refused_by_name(name, capsys, option, value):
    said = complaint(name, capsys, option, value)
    assert option in said
    assert value in said


@pytest.mark.parametrize(
    ("option", "value"), [("--size", "4"), ("--probe-epochs", "0"), ("--probe-batch-size", "1"), ("--probe-lr", "0")]
)  # fmt: skip
def test_a_bad_value_of_imagenet_alone_is_refused_by_name(capsys, option, value):
    said = complaint("imagenet", capsys, option, value)
    assert option in said
    assert value in said


@each_script
@pytest.mark.parametrize("option", ["--learning-rate", "--ep", "--finetune"])
def test_an_unknown_or_shortened_option_is_refused(name, capsys, option):
    assert option in complaint(name, capsys, option, "1")


@each_script
@pytest.mark.parametrize(
    "option", ["--accumulate", "--accumulate-grad-batches", "--gradient-accumulation-steps"]
)
def test_gradient_accumulation_is_refused_with_what_to_do_instead(name, capsys, option):
    for given in ([option], [option, "4"]):
        said = complaint(name, capsys, *given)
        assert "loses its negatives" in said
        assert "--micro-batch" in said


def test_two_origins_of_weights_are_refused(capsys):
    said = complaint("cifar10", capsys, "--pretrained", "--encoder-weights", "x.pt")
    assert "--pretrained and --encoder-weights x.pt" in said


def test_imagenet_needs_data(capsys):
    with pytest.raises(SystemExit):
        imagenet_full.parse([])
    assert "--data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "processes", "fine"),
    [
        ("--batch-size", "96", 3, True),
        ("--batch-size", "100", 3, False),
        ("--batch-size", "4", 4, False),  # one image each
        ("--finetune-batch-size", "50", 4, False),
        ("--supervised-batch-size", "50", 4, False),
    ],
)
def test_batches_must_divide_among_the_processes(torchrun, capsys, option, value, processes, fine):
    torchrun(processes)
    others = ["--batch-size", "96", "--finetune-batch-size", "96", "--supervised-batch-size", "96"]
    if fine:
        assert parse("cifar10", *others, option, value).batch_size == int(value)
    else:
        said = complaint("cifar10", capsys, *others, option, value)
        assert f"{option} must divide by the {processes} processes" in said
        assert f"got {value}" in said


# ---- how a run ends -------------------------------------------------------------------------------------------


def end(work, *arguments, capsys=None):
    """Exit code and what was printed."""
    code = ending.main("examples/cifar10_full.py", cifar10_full.parse, work, list(arguments))
    return code, capsys.readouterr().out


def test_a_finished_run_ends_with_0_and_its_command(capsys):
    given = []
    code, _ = end(lambda *args: given.append(args), "--out", "a folder", capsys=capsys)
    assert code == 0
    args, told = given[0]
    assert str(args.out) == "a folder"
    assert told == "python examples/cifar10_full.py --out 'a folder'"


@pytest.mark.parametrize(
    "error", [RunError, DataError, TrainingError, CheckpointError, WeightsError, OSError, FileNotFoundError]
)
def test_what_the_user_can_mend_ends_with_2_and_no_traceback(capsys, error):
    def work(args, told):
        raise error("the disk [red] is full")

    code, printed = end(work, capsys=capsys)
    assert code == 2
    assert "stopped: the disk [red] is full" in printed
    assert "Traceback" not in printed


def test_a_defect_keeps_its_traceback():
    def work(args, told):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ending.main("x.py", cifar10_full.parse, work, [])


def interrupt(args, told):
    raise KeyboardInterrupt


def stopped_in_training(args, told):
    raise Stopped(signal.SIGTERM, None)


def terminated_outside_training(args, told):
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("the signal was not heeded")


@pytest.mark.parametrize(
    ("work", "expected"), [(interrupt, 130), (stopped_in_training, 143), (terminated_outside_training, 143)]
)
def test_a_signal_ends_with_its_code_and_the_command_that_goes_on(capsys, work, expected):
    earlier = signal.getsignal(signal.SIGTERM)
    code, printed = end(work, "--model", "bern", capsys=capsys)
    assert code == expected
    assert printed.startswith("\nstopped; " if code == 130 else "\nstopped by SIGTERM; ")
    assert printed.endswith("Go on with:\n  python examples/cifar10_full.py --model bern --resume\n")
    assert signal.getsignal(signal.SIGTERM) is earlier
    _, printed = end(work, "--resume", capsys=capsys)
    assert printed.endswith("cifar10_full.py --resume\n")


@pytest.mark.parametrize(
    ("size", "local_size", "launcher"),
    [(2, 2, "torchrun --nproc-per-node 2"), (8, 4, "torchrun --nnodes 2 ...")],
)
def test_the_command_tells_how_several_processes_were_started(torchrun, capsys, size, local_size, launcher):
    torchrun(size, local_size)
    _, printed = end(interrupt, capsys=capsys)
    assert printed.endswith(f"  {launcher} examples/cifar10_full.py --resume\n")


def test_only_the_first_process_prints(torchrun, monkeypatch, capsys):
    torchrun(2, rank=1)
    monkeypatch.setattr(console, "quiet", False)
    assert end(interrupt, capsys=capsys) == (130, "")


def test_processes_that_do_not_know_of_one_another_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    code, printed = end(interrupt, capsys=capsys)
    assert code == 2
    assert "torchrun" in printed
