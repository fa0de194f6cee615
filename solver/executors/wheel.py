"""A wheel of this library for the workers of a cluster: checked to be what runs here, and unpacked."""

import importlib.util
import os
import zipfile
from pathlib import Path

_PACKAGE = __name__.partition(".")[0]


def check_wheel(path: str | os.PathLike[str]) -> Path:
    """The path of a wheel whose modules are those of this process, file by file.

    A version number does not tell a wheel from the sources that were edited after it was built, and then workers
    would run other code than the process that calls.

    Parameters
    ----------
    path : path
        Of a wheel, as ``pip wheel . --no-deps`` builds it.

    Raises
    ------
    ValueError
        If it is not a wheel of this library, or one of other sources; the message names a file that differs.
    FileNotFoundError
        If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no wheel {path}: build it with `pip wheel . --no-deps`")
    if path.suffix != ".whl" or not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a wheel: build it with `pip wheel . --no-deps`")
    with zipfile.ZipFile(path) as wheel:
        there = {name: wheel.read(name) for name in wheel.namelist() if name.endswith(".py")}
    here = {}
    for folder in {name.rpartition("/")[0] for name in there}:
        for file in _folder(folder).glob("*.py"):
            here[f"{folder}/{file.name}"] = file.read_bytes()
    if different := sorted(name for name in there | here if there.get(name) != here.get(name)):
        raise ValueError(
            f"{path} is not of the sources that run here: {len(different)} modules differ, {different[0]} first;"
            " build it again with `pip wheel . --no-deps`"
        )
    return path


def unpack_wheel(path: Path, folder: str | os.PathLike[str]) -> str:
    """Unpack the package of a wheel into a folder; the package's own folder, for `py_modules` of Ray.

    Ray takes wheels too, but has pip install them with all they depend on, torch among it, once a machine.
    """
    with zipfile.ZipFile(path) as wheel:
        wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith(f"{_PACKAGE}/")])
    return os.path.join(folder, _PACKAGE)


def _folder(package: str) -> Path:
    """Where the modules of a package are that run here, wherever an editable install has its folders."""
    try:
        spec = importlib.util.find_spec(package.replace("/", "."))
    except ImportError:
        spec = None
    if package.partition("/")[0] != _PACKAGE or spec is None or spec.origin is None:
        raise ValueError(
            f"the wheel holds {package}, which is no package of this {_PACKAGE}: is it another version?"
        )
    return Path(spec.origin).parent
