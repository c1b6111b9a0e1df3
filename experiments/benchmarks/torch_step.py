"""RDCD's step written plainly in PyTorch, for the benchmarks that compare with it."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F

from experiments.benchmarks.plain_torch import Student, Teacher
from experiments.benchmarks.step import DIM, FEATURE, QUEUE


class TorchStep:
    """The networks, queue and bank of a step, and its parts.

    Args:
        batch: images.
        size: their side.
        device: "cuda" or "cpu".
        bfloat16: computes the trunks in it, by autocast.
    """

    def __init__(self, batch: int, size: int, device: str = "cpu", *, bfloat16: bool = False):
        torch.manual_seed(0)
        self.teacher, self.student = Teacher().eval(), Student(DIM).train()
        self.key_encoder = copy.deepcopy(self.student)
        for network in (self.teacher, self.student, self.key_encoder):
            network.to(device=device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-6
        )
        self.queue = F.normalize(torch.randn(QUEUE, DIM, device=device), dim=1)
        self.bank = F.normalize(torch.randn(QUEUE, FEATURE, device=device), dim=1)
        self.query, self.key = (
            torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
            for _ in range(2)
        )
        self.labels = torch.zeros(batch, dtype=torch.long, device=device)
        self._autocast = lambda: torch.autocast(device, torch.bfloat16, enabled=bfloat16)

    @torch.no_grad()
    def embed_teacher(self) -> torch.Tensor:
        """The teacher's features of the query views."""
        with self._autocast():
            return self.teacher(self.query)[0].float()

    @torch.no_grad()
    def student_forward(self) -> torch.Tensor:
        """The key encoder's descriptors of the key views."""
        with self._autocast():
            return self.key_encoder(self.key)[1].float()

    def forward_backward(self) -> None:
        """The student's gradients, of the sum of what it gives."""
        self.student.zero_grad(set_to_none=True)
        feature, descriptor = self._embedded()
        (feature.sum() + descriptor.sum()).backward()

    def _embedded(self) -> tuple[torch.Tensor, torch.Tensor]:
        with self._autocast():
            feature, descriptor = self.student(self.query)
        return feature.float(), descriptor.float()

    def step(self) -> None:
        """One whole step."""
        with torch.no_grad():
            pairs = zip(self.key_encoder.parameters(), self.student.parameters(), strict=True)
            for slow, fast in pairs:
                slow.mul_(0.99).add_(fast, alpha=0.01)
        keys, targets = self.student_forward(), self.embed_teacher()
        feature, descriptor = self._embedded()
        negative = descriptor @ self.queue.T
        positive = (descriptor * keys).sum(1, keepdim=True)
        contrast = F.cross_entropy(torch.cat([positive, negative], 1) / 0.07, self.labels)
        hard = -torch.log((1 - negative.max(1).values).clamp(min=1e-3)).mean()
        relation = F.kl_div(
            F.log_softmax(feature @ self.bank.T / 0.04, 1),
            F.softmax(targets @ self.bank.T / 0.04, 1),
            reduction="batchmean",
        )
        self.optimizer.zero_grad(set_to_none=True)
        (contrast + 5 * hard + relation).backward()
        self.optimizer.step()
        with torch.no_grad():
            self.queue[: len(keys)], self.bank[: len(keys)] = keys, targets


def make_torch_step(
    batch: int, size: int, device: str, *, bfloat16: bool, compiled: bool
) -> Callable[[], None]:
    """The step as a function, its networks compiled where asked for."""
    made = TorchStep(batch, size, device, bfloat16=bfloat16)
    if compiled:
        for network in (made.teacher, made.student, made.key_encoder):
            network.compile()
    return made.step
