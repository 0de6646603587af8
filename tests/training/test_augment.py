"""Flip and crop equals a literal loop over images."""

from __future__ import annotations

import pytest
import torch

from comove.training.augment import draw_flip_crop, flip_crop


def _one_by_one(images: torch.Tensor, draws: torch.Tensor, padding: int) -> torch.Tensor:
    out = []
    for image, (flip, row, column) in zip(images, draws.tolist(), strict=True):
        channels, height, width = image.shape
        padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding)
        padded[:, padding : padding + height, padding : padding + width] = image
        crop = padded[:, row : row + height, column : column + width]
        out.append(torch.stack([line.flip(-1) for line in crop]) if flip else crop)
    return torch.stack(out)


@pytest.mark.parametrize(("shape", "padding"), [((3, 8, 8), 2), ((1, 5, 9), 4), ((3, 6, 4), 0), ((2, 1, 1), 1)])
def test_flip_crop_equals_padding_cropping_and_flipping_image_by_image(
    shape: tuple[int, int, int], padding: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(50, *shape, generator=generator)
    draws = draw_flip_crop(50, padding, generator)
    before = images.clone(), draws.clone()
    made = flip_crop(images, draws, padding)
    assert torch.equal(made, _one_by_one(images, draws, padding))
    assert torch.equal(images, before[0])
    assert torch.equal(draws, before[1])
    assert made.data_ptr() != images.data_ptr()


def test_draws_cover_both_flips_and_every_offset_about_equally_often() -> None:
    draws = draw_flip_crop(9000, 4, torch.Generator().manual_seed(0))
    assert torch.bincount(draws[:, 0]).tolist() == pytest.approx([4500, 4500], rel=0.05)
    for column in (1, 2):
        assert torch.bincount(draws[:, column], minlength=9).tolist() == pytest.approx([1000] * 9, rel=0.15)


def test_draws_depend_on_the_generator_alone() -> None:
    a, b = (draw_flip_crop(20, 3, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, draw_flip_crop(20, 3, torch.Generator().manual_seed(6)))


def test_the_middle_offset_without_a_flip_is_the_image_itself() -> None:
    images = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flip_crop(images, torch.tensor([[0, 2, 2]] * 3), 2), images)
