"""Print the requirements of pyproject.toml: ``requirements.py PYPROJECT [EXTRA ...]``.

pip can install a project with its dependencies, but not the dependencies alone; the image wants them in a
layer of their own, which a change of code does not touch.
"""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """The project's dependencies and those of the named extras, without repetitions."""
    project = tomllib.loads(pyproject.read_text())["project"]
    listed = list(project["dependencies"])
    for extra in extras:
        listed += project["optional-dependencies"][extra]
    return list(dict.fromkeys(listed))


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]), sys.argv[2:])))
