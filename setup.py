"""Build entry point: everything is declared in pyproject.toml; compiled kernels will hook in here."""

from setuptools import setup

setup()
