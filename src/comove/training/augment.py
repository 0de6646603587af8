"""Flip and crop on the device, all images of a batch at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = ["draw_flip_crop", "flip_crop"]


def draw_flip_crop(size: int, padding: int, generator: torch.Generator) -> torch.Tensor:
    """Draw (size, 3) int64: whether to flip (0 or 1), and the row and column offsets in 0 ... 2 * padding."""
    flips = torch.randint(0, 2, (size, 1), generator=generator)
    offsets = torch.randint(0, 2 * padding + 1, (size, 2), generator=generator)
    return torch.cat([flips, offsets], dim=1)


def flip_crop(images: torch.Tensor, draws: torch.Tensor, padding: int) -> torch.Tensor:
    """Flip and shift each image by its own draw; what comes in from outside is 0, the mean of normalised images.

    Args:
        images: (B, C, H, W).
        draws: (B, 3) from :func:`draw_flip_crop`, on the images' device.
        padding: pixels on each side.

    Returns:
        (B, C, H, W), a new tensor.
    """
    batch, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    rows = draws[:, 1:2] + torch.arange(height, device=images.device)
    across = torch.arange(width, device=images.device).expand(batch, width)
    columns = draws[:, 2:3] + torch.where(draws[:, :1] == 1, across.flip(1), across)
    which = torch.arange(batch, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
