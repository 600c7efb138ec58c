"""Codes of the same size: StochCon's bits are ahead of other codes of SimCLR's features.

    python examples/paper/codes.py runs/paper/base-*

Our question. Reads the results.json of runs of SimCLR, StochCon and perhaps the control for the penalty: bits that were
trained with the encoder, latents fitted behind a frozen encoder, codes by faiss, of which PQ's and OPQ's are decoded,
and floats to compare with (logits, a Gaussian's means, h). Result: holds in part (40 epochs of a small encoder).
"""

from claim import LABELS, Panel, Rows, Run, ahead, by, main, mean, shown, values

METRICS = {"probe": "probe", "kNN": "knn", "mAP": "map"}
OTHERS = ("itq", "pca_sign", "pq", "opq", "random_sign")
# With the keys of their scores in results.json.
METHODS = {"bern trained": "bern z", "bern logits": "bern logits", "gauss means": "gauss z", "gauss h": "gauss h"}
for model in ("simclr", "penalized", "bern"):
    METHODS |= {f"{model} h": f"{model} h", f"{model} fitted": f"{model} codes fitted z"}
    METHODS |= {f"{model} {code}": f"{model} codes {code} codes" for code in OTHERS}
FIGURE = [Panel(f"{metric} (%)", "method", (metric,)) for metric in METRICS]


def measure(runs: list[Run]):
    """Scores of each code, and of the floats."""
    rows = []
    for bits, group in by(runs, "dim").items():
        for method, keys in METHODS.items():
            found = {metric: values(group, *keys.split(), key) for metric, key in METRICS.items()}
            rows += [{"method": method, "bits": bits} | found] if found["mAP"] else []
    return rows, {}


def conclude(rows: Rows):
    """Compare the bits with the best code by faiss of each h."""
    criteria, parts, size = {}, [], rows[0]["bits"]
    for metric in METRICS:
        found = {row["method"]: row[metric] for row in rows if row["bits"] == size}
        for model in ("simclr", "penalized"):
            others = [cell for method, cell in found.items() if method.startswith(model) and method.endswith(OTHERS)]
            for ours in ("bern trained", "bern fitted", f"{model} fitted") if others else ():
                said = f"{ours} is ahead of every other code of {LABELS[model]}'s h by {metric}"
                criteria[said] = ahead(found[ours], best := max(others, key=mean))
            if others:
                parts.append(f"{shown(found[f'{model} fitted'])} and {shown(best)} by {metric} ({LABELS[model]})")
    listed = ", ".join(parts)
    return f"{size} bits fitted behind a frozen encoder, and the best other code of its h: {listed}.", criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, {})
