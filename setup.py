"""Lists the packages and ships the top-level folder of recipes as one more; all else is in pyproject.toml.

pyproject.toml can discover packages or map a folder to one, but not both.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["revsurgeon*"]), "revsurgeon.presets"],
    package_dir={"revsurgeon.presets": "recipes"},
)
