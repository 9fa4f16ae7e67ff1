"""Register, promote, pull and serve trained models (docs/registry.md).

A registered model is only data: weights, JSON and an image. Nothing in it is executed; its
pyfunc flavour names a module of the installed package, ``acontrol.registry.serving``.
"""
