"""Compares the library with its peers: time, memory and accuracy, each contender in a process of its own.

    python -m benchmarks info_nce           # measure one, print its tables, write benchmarks/results/info_nce.json
    python -m benchmarks --all --check      # measure all; exit with 1 where a target is missed
    python -m benchmarks --all --quick      # tiny sizes, to check that everything runs
    python -m benchmarks info_nce --show    # print the tables of the last results
    python -m benchmarks --publish          # write figures, tables and the README's section from the results

There is one module per operation; its `BENCHMARK` lists contenders, cases, tables and targets. `runner` and `worker`
measure, `tables` and `figures` show the results.
"""

NAMES = ("info_nce", "gather", "bernoulli", "gaussian", "step")
"""All benchmarks, in the order in which they run and are shown."""
