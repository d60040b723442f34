"""The version of the package, where a build reads it without importing torch."""

__version__ = "0.1.0"
