"""Torchvision for the tests that compare with it, also where its compiled operators do not load."""

import functools
import importlib.util
import pathlib
import types
import warnings

import pytest


def import_torchvision() -> types.ModuleType:
    """Torchvision, with `transforms.v2`; the test is skipped where it is not installed."""
    pytest.importorskip("torch")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    _declare_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchvision.transforms.v2
    return torchvision


@functools.cache
def _declare_operators():
    """Declares the two operators whose absence breaks the import; nothing here ever calls them.

    Returns:
        The library that holds them, which must stay alive, or None where the real ones load.
    """
    import torch

    folder = pathlib.Path(importlib.util.find_spec("torchvision").origin).parent
    for compiled in folder.glob("_C.*"):
        try:
            torch.ops.load_library(compiled)
            return None
        except OSError:
            continue
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
