"""Prints the requirements of pyproject.toml: `dependencies` and the named dependency groups."""

import sys

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
groups = {"dependencies": project["project"]["dependencies"], **project["dependency-groups"]}
for name in sys.argv[1:]:
    print("\n".join(requirement.replace(" ", "") for requirement in groups[name]))
