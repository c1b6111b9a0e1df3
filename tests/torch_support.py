"""Torchvision and timm for what compares with them, also where torchvision's compiled operators do not load."""

import functools
import importlib.util
import pathlib
import types
import typing
import warnings

import pytest

if typing.TYPE_CHECKING:
    import torch


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


def import_timm() -> types.ModuleType:
    """timm; the test is skipped where it is not installed."""
    import_torchvision()
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm
    return timm


def published_network(name: str, features: int) -> "torch.nn.Module":
    """A network of this package's registry in PyTorch, with random weights.

    Args:
        name: torchvision's name where it has the network, else timm's.
        features: width of its linear head.

    Returns:
        A module from images [B, 3, H, W] to features [B, features], with GeM (p = 3) for the average pool.
    """
    torchvision = import_torchvision()
    import torch

    class GeM(torch.nn.Module):
        def forward(self, x):
            x = x.clamp(min=1e-6).pow(3)
            return torch.nn.functional.adaptive_avg_pool2d(x, 1).pow(1 / 3)

    if hasattr(torchvision.models, name):
        network = getattr(torchvision.models, name)(num_classes=features)
        network.avgpool = GeM()
    else:
        network = import_timm().create_model(name, num_classes=features)
        network.head.global_pool = torch.nn.Sequential(GeM(), torch.nn.Flatten())
    return network


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
