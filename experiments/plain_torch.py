"""The published networks written plainly in PyTorch, for the benchmarks that compare with it."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch_support import import_torchvision  # noqa: E402

FEATURE = 512


class GeM(torch.nn.Module):
    """Generalised-mean pooling, p = 3."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [B, C, H, W] to [B, C, 1, 1]."""
        return F.adaptive_avg_pool2d(x.clamp(min=1e-6).pow(3), 1).pow(1 / 3)


class Student(torch.nn.Module):
    """EfficientNet-B0 with GeM, the wide head, and the projector."""

    def __init__(self, dim: int):
        super().__init__()
        self.backbone = import_torchvision().models.efficientnet_b0(num_classes=FEATURE)
        self.backbone.avgpool = GeM()
        self.projector = torch.nn.Linear(FEATURE, dim)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps pictures [B, 3, H, W] to the feature [B, F] and the descriptor [B, D]."""
        feature = self.backbone(x)
        return F.normalize(feature, dim=1), F.normalize(self.projector(feature), dim=1)


class Teacher(torch.nn.Module):
    """SSCD's ResNet-50."""

    def __init__(self):
        super().__init__()
        self.backbone = import_torchvision().models.resnet50(num_classes=FEATURE)
        self.backbone.avgpool = GeM()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps pictures [B, 3, H, W] to the feature [B, F], twice."""
        feature = F.normalize(self.backbone(x), dim=1)
        return feature, feature
