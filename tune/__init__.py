"""Sweeps: Ray Tune over the method's settings, every trial a training run of its own."""
