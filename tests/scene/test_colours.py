# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from ns_sparseattn.scene.colours import sample_bilinear, sample_colours
from ns_sparseattn.testing.stubs import read_blank, stub_frame

IMAGE = torch.tensor([[[0, 10, 20], [100, 110, 120]], [[200, 210, 220], [40, 50, 60]]]).byte()


def pixels(*xy: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(xy, dtype=torch.float64)


def test_centres_give_the_pixels() -> None:
    sampled = sample_bilinear(IMAGE, pixels((0.5, 0.5), (1.5, 0.5), (0.5, 1.5), (1.5, 1.5)))
    assert torch.equal(sampled, IMAGE.reshape(4, 3))


def test_between_centres_interpolates_and_rounds() -> None:
    assert sample_bilinear(IMAGE, pixels((1.0, 0.5), (1.0, 1.0)))[:, 0].tolist() == [50, 85]


def test_border_repeats() -> None:
    assert sample_bilinear(IMAGE, pixels((0.0, 0.0), (2.0, 2.0)))[:, 0].tolist() == [0, 40]


def test_every_point_gets_its_own_photo() -> None:
    frames = tuple(stub_frame(f"{i}.jpg", (2, 2), long_side=14) for i in range(3))
    read = []

    def read_rgb(frame):
        read.append(frame.name)
        return torch.full((2, 2, 3), int(frame.name[0]) * 10, dtype=torch.uint8)

    source = torch.tensor([2, 0, 2])
    rgb = sample_colours(frames, source, pixels((0.5, 0.5), (1.0, 1.0), (1.5, 1.5)), read_rgb)
    assert rgb[:, 0].tolist() == [20, 0, 20]
    assert read == ["0.jpg", "2.jpg"]


def test_a_photo_that_changed_is_named() -> None:
    frame = stub_frame("a.jpg", (64, 48))
    with pytest.raises(ValueError, match=r"a\.jpg has changed: it must be 64 x 48"):
        sample_colours(
            (frame,),
            torch.tensor([0]),
            pixels((1.0, 1.0)),
            lambda _: read_blank(stub_frame("b.jpg", (48, 64))),
        )
