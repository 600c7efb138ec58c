"""The library beside its peers: time, memory and agreement, each contender in a process of its own.

    python -m benchmarks info_nce           # measure one, print its tables, keep benchmarks/results/info_nce.json
    python -m benchmarks --all --check      # measure all; fail where a target is missed
    python -m benchmarks --all --quick      # tiny sizes, to see that everything runs
    python -m benchmarks info_nce --show    # the tables of what was measured before
    python -m benchmarks --publish          # figures, tables and the README's section, from the results

One module per operation, named like it; each says in `BENCHMARK` who is compared on what, and which ratios are to be
held. `contract` holds the words they share, `harness` measures, `tables` and `figures` show.
"""

NAMES = ("info_nce", "gather", "bernoulli", "gaussian", "step", "augment")
"""The benchmarks, in the order in which they run and are shown."""
