"""Muon for the hidden matrices, AdamW for the rest.

Muon (Keller Jordan, 2024) replaces each matrix's momentum by its nearest orthogonal matrix, found with five
Newton-Schulz steps. Matrices of one shape are stacked and done together, in float32: this is for a CPU.
"""

import torch
from torch import Tensor, nn

_A, _B, _C = 3.4445, -4.7750, 2.0315  # the quintic of the reference implementation


class MuonAdamW:
    """One optimiser over all parameters of a model; learning rates are multiplied by `scale` in each step."""

    def __init__(self, model: nn.Module, matrix_lr: float, other_lr: float) -> None:
        self.matrix_lr, self.momentum = matrix_lr, 0.95
        by_shape: dict[torch.Size, list[Tensor]] = {}
        others: list[Tensor] = []
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                by_shape.setdefault(parameter.shape, []).append(parameter)
            else:
                others.append(parameter)
        self._stacks = [(group, torch.zeros(len(group), *shape)) for shape, group in by_shape.items()]
        self._adam = torch.optim.AdamW(others, lr=other_lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)
        self._other_lr = other_lr

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One step from the gradients, which are cleared."""
        for parameters, buffer in self._stacks:
            gradient = torch.stack([parameter.grad for parameter in parameters if parameter.grad is not None])
            buffer.lerp_(gradient, 1 - self.momentum)
            update = _orthogonal(gradient.lerp(buffer, self.momentum))
            rate = self.matrix_lr * scale * max(1.0, update.shape[-2] / update.shape[-1]) ** 0.5
            for parameter, change in zip(parameters, update, strict=True):
                parameter.mul_(1 - self.matrix_lr * scale * 0.02)
                parameter.add_(change, alpha=-rate)
                parameter.grad = None
        for group in self._adam.param_groups:
            group["lr"] = self._other_lr * scale
        self._adam.step()
        self._adam.zero_grad()


def _orthogonal(matrices: Tensor) -> Tensor:
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    for _ in range(5):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if is_tall else x
