"""The life of a model after training: register, promote, pull, serve (docs/registry.md).

A registered model is data: weights, JSON and a picture. Nothing of it is executed; MLflow's
pyfunc flavour names a module of the installed package, ``acontrol.registry.serving``.
"""
