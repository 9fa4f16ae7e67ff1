"""The version, alone in its module so that packaging reads it without importing anything."""

__version__ = "0.2.0"
