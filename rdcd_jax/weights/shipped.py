"""The students inside the package, by name; nothing here loads one."""

import importlib.resources

SHIPPED = importlib.resources.files("rdcd_jax") / "students"
# The files of a model's folder.
CARD, WEIGHTS, INT8_FILE = "model.json", "weights.safetensors", "int8.onnx"
# Between a shipped student's name and the version of this package that shipped it, where a later one ships another.
VERSION = "@"


def list_models() -> list[str]:
    """Names of the shipped students, without those of earlier versions; `load_model` takes each.

    Examples:
        >>> import rdcd_jax as rdcd
        >>> "rdcd-effb0-128" in rdcd.list_models()
        True
    """
    return [name for name in every_shipped() if VERSION not in name]


def every_shipped() -> list[str]:
    """Names of the shipped students, those of earlier versions included, as `NAME@VERSION`."""
    if not SHIPPED.is_dir():
        return []
    return sorted(folder.name for folder in SHIPPED.iterdir() if (folder / CARD).is_file())
