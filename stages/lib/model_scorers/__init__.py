"""Models that score answers which `evaluate` wrote, one file a kind: a class of its knobs, `score`.

`score` takes the answers of every policy and returns `Said`.
"""
