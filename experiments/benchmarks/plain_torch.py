"""The published networks written plainly in PyTorch, for the benchmarks that compare with it."""

import pathlib

import torch
import torch.nn.functional as F

from tests.torch_support import published_network

ROOT = pathlib.Path(__file__).resolve().parents[2]

FEATURE = 512


class Student(torch.nn.Module):
    """A student with GeM, the wide head, and the projector."""

    def __init__(self, dim: int, network: str = "efficientnet_b0"):
        super().__init__()
        self.backbone = published_network(network, FEATURE)
        self.projector = torch.nn.Linear(FEATURE, dim)
        if network == "fastvit_t12":
            self.projector = torch.nn.Sequential(self.projector)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps images [B, 3, H, W] to the feature [B, F] and the descriptor [B, D]."""
        feature = self.backbone(x)
        return F.normalize(feature, dim=1), F.normalize(self.projector(feature), dim=1)


class Teacher(torch.nn.Module):
    """SSCD's ResNet-50."""

    def __init__(self):
        super().__init__()
        self.backbone = published_network("resnet50", FEATURE)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps images [B, 3, H, W] to the feature [B, F], twice."""
        feature = F.normalize(self.backbone(x), dim=1)
        return feature, feature
