"""The paper's claims, each asked of cached runs: what it needs, what the numbers say, and its figure.

A claim is a module with `TITLE`, `CLAIM`, `PAPER`, `needs(grid)`, `answer(evidence)`, `draw(content)` and
`rows(content)`; `catalogue` lists them.
"""
