"""The published networks written plainly in PyTorch, for the benchmarks that compare with it."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch_support import published_network  # noqa: E402

FEATURE = 512


class Student(torch.nn.Module):
    """A student with GeM, the wide head, and the projector."""

    def __init__(self, dim: int, network: str = "efficientnet_b0"):
        super().__init__()
        self.backbone = published_network(network, FEATURE)
        self.projector = torch.nn.Linear(FEATURE, dim)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps pictures [B, 3, H, W] to the feature [B, F] and the descriptor [B, D]."""
        feature = self.backbone(x)
        return F.normalize(feature, dim=1), F.normalize(self.projector(feature), dim=1)


class Teacher(torch.nn.Module):
    """SSCD's ResNet-50."""

    def __init__(self):
        super().__init__()
        self.backbone = published_network("resnet50", FEATURE)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps pictures [B, 3, H, W] to the feature [B, F], twice."""
        feature = F.normalize(self.backbone(x), dim=1)
        return feature, feature
