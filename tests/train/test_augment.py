"""Random crops and flips against the plain way to make them."""

import pytest
import torch
from torch.nn import functional

from trimtab.core.errors import InputError
from trimtab.train.augment import crop_and_flip


def every_crop(image, pad):
    """All crops of the padded image and of each its mirror image."""
    h, w = image.shape[1:]
    padded = functional.pad(image, (pad,) * 4)
    crops = [padded[:, i : i + h, j : j + w] for i in range(2 * pad + 1) for j in range(2 * pad + 1)]
    return crops + [crop.flip(2) for crop in crops]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_each_image_is_one_of_its_own_crops_or_a_mirrored_one(dtype):
    torch.manual_seed(0)
    images = torch.randint(1, 256, (64, 3, 5, 7)).to(dtype)
    out = crop_and_flip(images, pad=2)
    assert out.dtype == dtype
    chosen = [[torch.equal(o, crop) for crop in every_crop(i, 2)].index(True) for o, i in zip(out, images, strict=True)]
    assert len(set(chosen)) > 25
    assert 20 < sum(c >= 25 for c in chosen) < 44


def test_the_global_generator_decides():
    images = torch.rand(8, 3, 6, 6)
    torch.manual_seed(1)
    first = crop_and_flip(images)
    assert not torch.equal(crop_and_flip(images), first)
    torch.manual_seed(1)
    assert torch.equal(crop_and_flip(images), first)


def test_other_shapes_are_refused():
    with pytest.raises(InputError, match=r"\[3, 6, 6\], pad=4, expected \[N, C, H, W\]"):
        crop_and_flip(torch.rand(3, 6, 6))
