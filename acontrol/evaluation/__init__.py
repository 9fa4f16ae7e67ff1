"""How good generated defects are, and whether they make a detector better.

Metrics are plain functions; features of images come in as callables. The commands of
`launch.evaluate` are the `run_*` functions.
"""
