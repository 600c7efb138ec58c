"""The full runs' scripts, called within a test, and what they leave."""

import json


def calling(main, tiny, source, out, capsys):
    """A function that runs a script in this process: exit code, and all that was printed, spaces run together."""

    def call(*arguments, out=out, source=source):
        try:
            code = main([*tiny, "--data", str(source), "--out", str(out), *arguments])
        except SystemExit as stop:  # argparse's way out
            code = stop.code
        printed = capsys.readouterr()
        return code, " ".join((printed.out + printed.err).split())

    return call


def results_of(out):
    return json.loads((out / "results.json").read_text())


def lasting(results):
    """Results without what differs from one run to the next of the same thing."""
    if isinstance(results, dict):
        passing = ("seconds", "training_seconds", "command", "date", "images_per_second")
        return {k: lasting(v) for k, v in results.items() if k not in passing}
    return results
