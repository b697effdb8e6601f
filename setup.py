"""What cannot be said in pyproject.toml: the modules that are compiled where it is asked for."""

from build_backend import extensions
from setuptools import setup

setup(ext_modules=extensions())
