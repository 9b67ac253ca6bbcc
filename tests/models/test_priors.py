# SPDX-License-Identifier: Apache-2.0
"""What may be told of a frame: rays of intrinsics, and a clear sentence for what cannot be."""

from __future__ import annotations

import pytest
import torch

from ns_sparseattn.geometry import pixel_centers, project
from ns_sparseattn.models.priors import FramePrior, check_priors

K = torch.tensor([[50.0, 0, 31], [0, 60, 19], [0, 0, 1]])
POSE = torch.eye(4)[:3]


def test_rays_pass_through_pixel_centres() -> None:
    rays = FramePrior(intrinsics=K).unit_rays(40, 60)
    assert rays is not None
    torch.testing.assert_close(rays.norm(dim=-1), torch.ones(40, 60))
    pixels, _ = project(rays.double(), K.double())
    torch.testing.assert_close(pixels, pixel_centers(40, 60), rtol=0, atol=1e-4)


def test_given_rays_are_brought_to_unit_length() -> None:
    rays = FramePrior(intrinsics=K).unit_rays(40, 60)
    assert rays is not None
    given = FramePrior(rays=rays * torch.linspace(0.1, 9, 60)[:, None]).unit_rays(40, 60)
    torch.testing.assert_close(given, rays)
    assert FramePrior().unit_rays(40, 60) is None


def test_frames_of_which_nothing_is_known_become_empty() -> None:
    checked = check_priors([None, FramePrior(intrinsics=K)], 2, 40, 60)
    assert checked[0] == FramePrior()
    assert checked[1].intrinsics is K


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (FramePrior(intrinsics=K, rays=torch.ones(40, 60, 3)), "intrinsics or rays, got both"),
        (FramePrior(intrinsics=torch.zeros(3, 3)), "intrinsics` must be .* positive focal"),
        (FramePrior(intrinsics=K * 2), r"intrinsics` must be \[\[fx, 0, cx\]"),
        (FramePrior(intrinsics=K[:2]), r"intrinsics` must have shape \[3, 3\], got \[2, 3\]"),
        (FramePrior(intrinsics=K * torch.nan), "intrinsics` must be finite"),
        (FramePrior(rays=-torch.ones(40, 60, 3)), "rays` must point forward"),
        (FramePrior(depth=torch.ones(20, 60)), r"depth` must have shape \[40, 60\], got \[20, 60"),
        (FramePrior(depth=-torch.ones(40, 60)), "depth` must be positive, or 0 .*, got -1"),
        (FramePrior(depth=torch.zeros(40, 60)), "depth` must be known somewhere"),
        (FramePrior(cam_from_world=2 * POSE), "cam_from_world` must hold a rotation"),
        (FramePrior(cam_from_world=-POSE), "cam_from_world` must hold a rotation"),
    ],
)
def test_what_cannot_be_is_named_with_its_frame(prior: FramePrior, message: str) -> None:
    with pytest.raises(
        ValueError, match=rf"`priors\[1\]\.?.*{message}|`priors\[1\]` must {message}"
    ):
        check_priors([None, prior], 2, 40, 60)


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match=r"priors\[0\]\.depth` must .*floating"):
        check_priors([FramePrior(depth=torch.ones(40, 60, dtype=torch.int32))], 1, 40, 60)
