# SPDX-License-Identifier: Apache-2.0
"""PixelMap and the resize rules: exact both ways, and true to where Pillow puts the pixels."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ns_sparseattn.frames import PixelMap, plan_resize, resize_image
from ns_sparseattn.frames.resize import common_size, resize_mask
from ns_sparseattn.geometry import project
from ns_sparseattn.options import ResizeRule

# A shared machine makes times meaningless; the same examples every time keep failures repeatable.
steady = settings(deadline=None, derandomize=True)

sides = st.integers(1, 20_000)
rules: st.SearchStrategy[ResizeRule] = st.sampled_from(get_args(ResizeRule))


@st.composite
def pixel_maps(draw: st.DrawFn) -> PixelMap:
    plan = plan_resize(draw(sides), draw(sides), draw(rules))
    width, height = plan.network_size
    return plan.padded_to((width + draw(st.integers(0, 300)), height + draw(st.integers(0, 300))))


@steady
@given(plan=pixel_maps(), x=st.floats(-100, 20_100), y=st.floats(-100, 20_100))
def test_pixels_survive_the_way_there_and_back(plan: PixelMap, x: float, y: float) -> None:
    pixels = torch.tensor([x, y], dtype=torch.float64)
    torch.testing.assert_close(
        plan.to_original(plan.to_network(pixels)), pixels, rtol=1e-12, atol=1e-8
    )
    torch.testing.assert_close(
        plan.to_network(plan.to_original(pixels)), pixels, rtol=1e-12, atol=1e-8
    )


@steady
@given(plan=pixel_maps())
def test_corners_of_the_photo_land_on_corners_of_the_resized_photo(plan: PixelMap) -> None:
    width, height = plan.original_size
    corners = torch.tensor([[0.0, 0.0], [width, height]], dtype=torch.float64)
    shift = torch.tensor(plan.shift, dtype=torch.float64)
    resized = torch.tensor(plan.resized_size, dtype=torch.float64)
    torch.testing.assert_close(plan.to_network(corners), torch.stack([shift, shift + resized]))


@steady
@given(
    plan=pixel_maps(),
    focal=st.floats(10, 30_000),
    center=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_intrinsics_move_as_pixels_do(
    plan: PixelMap, focal: float, center: tuple[float, float]
) -> None:
    width, height = plan.original_size
    original = torch.tensor(
        [[focal, 0, center[0] * width], [0, 1.1 * focal, center[1] * height], [0, 0, 1]],
        dtype=torch.float64,
    )
    network = plan.intrinsics_to_network(original)
    points = torch.tensor([[0.3, -0.2, 2.0], [-1.0, 0.5, 5.0]], dtype=torch.float64)
    torch.testing.assert_close(
        project(points, network)[0], plan.to_network(project(points, original)[0])
    )
    torch.testing.assert_close(plan.intrinsics_to_original(network), original)


@steady
@given(width=sides, height=sides, rule=rules)
def test_sizes_obey_the_rule(width: int, height: int, rule: ResizeRule) -> None:
    plan = plan_resize(width, height, rule)
    assert plan.original_size == (width, height)
    assert all(side % 14 == 0 and 14 <= side <= 518 for side in plan.network_size)
    x0, y0, x1, y1 = plan.box
    assert 0 <= x0 < x1 <= plan.network_size[0]
    assert 0 <= y0 < y1 <= plan.network_size[1]
    assert int(plan.valid_mask().sum()) == (x1 - x0) * (y1 - y0)
    if rule == "fit":
        assert max(plan.network_size) == 518
        assert plan.box == (0, 0, *plan.network_size)
    if rule == "pad":
        assert plan.network_size == (518, 518)
    if rule != "crop":
        assert plan.visible_share == 1.0
    else:
        assert plan.network_size[0] == 518
        assert plan.visible_share == pytest.approx(min(1.0, 518 / plan.resized_size[1]))


@steady
@given(width=sides, height=sides)
def test_fit_equals_crop_for_landscape_photos(width: int, height: int) -> None:
    long, short = max(width, height), min(width, height)
    assert plan_resize(long, short, "fit") == plan_resize(long, short, "crop")


# What VGGT's own loader gives: rule, photo, network, box.
UPSTREAM_SIZES = [
    ("crop", (640, 480), (518, 392), (0, 0, 518, 392)),
    ("crop", (1920, 1080), (518, 294), (0, 0, 518, 294)),
    ("crop", (480, 640), (518, 518), (0, 0, 518, 518)),
    ("crop", (1000, 333), (518, 168), (0, 0, 518, 168)),
    ("pad", (640, 480), (518, 518), (0, 63, 518, 455)),
    ("pad", (480, 640), (518, 518), (63, 0, 455, 518)),
    ("pad", (300, 900), (518, 518), (175, 0, 343, 518)),
]


@pytest.mark.parametrize(("rule", "photo", "network", "box"), UPSTREAM_SIZES)
def test_sizes_are_those_of_upstream(
    rule: ResizeRule,
    photo: tuple[int, int],
    network: tuple[int, int],
    box: tuple[int, int, int, int],
) -> None:
    plan = plan_resize(*photo, rule)
    assert plan.network_size == network
    assert plan.box == box


def test_portrait_photos_keep_all_rows_by_default() -> None:
    plan = plan_resize(480, 640)
    assert plan.network_size == (392, 518)
    assert plan.visible_share == 1.0
    cropped = plan_resize(480, 640, "crop")
    assert cropped.shift == (0, -(cropped.resized_size[1] - 518) // 2)
    assert cropped.visible_share < 0.76


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (14, 14), (517, 519), (518, 518)])
def test_extreme_photos_get_at_least_one_patch(size: tuple[int, int]) -> None:
    plan = plan_resize(*size)
    assert min(plan.network_size) >= 14
    assert resize_image(Image.new("RGB", size), plan).shape == (3, *plan.network_size[::-1])


def test_other_long_sides_and_patches() -> None:
    plan = plan_resize(1000, 500, "fit", 64, 16)
    assert plan.network_size == (64, 32)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0, 5), "`width` and `height`"),
        ((5, 5, "stretch"), "`rule`"),
        ((5, 5, "fit", 500), "`long_side`"),
        ((5, 5, "fit", 0), "`long_side`"),
    ],
)
def test_impossible_plans_are_refused(arguments: tuple, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        plan_resize(*arguments)


def test_odd_padding_puts_the_smaller_half_first() -> None:
    plan = plan_resize(640, 480).padded_to((521, 397))
    assert plan.shift == (1, 2)
    with pytest.raises(ValueError, match="network_size"):
        plan.padded_to((500, 500))


def test_a_map_must_show_something() -> None:
    with pytest.raises(ValueError, match="shift"):
        PixelMap(original_size=(5, 5), resized_size=(5, 5), shift=(9, 0), network_size=(5, 5))
    with pytest.raises(ValueError, match="original_size"):
        PixelMap(original_size=(0, 5), resized_size=(5, 5), shift=(0, 0), network_size=(5, 5))


def test_integer_pixels_are_not_rounded() -> None:
    plan = plan_resize(1036, 784)
    assert plan.to_network(torch.tensor([3, 5])).tolist() == [1.5, 2.5]
    assert plan.to_original(torch.tensor([3, 5])).tolist() == [6.0, 10.0]


@pytest.mark.parametrize("rule", ["fit", "crop", "pad"])
@pytest.mark.parametrize(
    "size", [(800, 600), (600, 800), (100, 75), (517, 389)], ids=lambda size: f"{size[0]}x{size[1]}"
)
def test_edges_land_where_the_map_says(rule: ResizeRule, size: tuple[int, int]) -> None:
    """Resizing keeps the mean, so the bright part of a row is as long as the edge's position."""
    width, height = size
    plan = plan_resize(width, height, rule)
    edge_x, edge_y = round(width * 0.37), round(height * 0.58)
    levels = np.zeros((height, width, 3), dtype=np.uint8)
    # Mid levels leave room for the overshoot of bicubic interpolation.
    levels[:] = 50
    levels[:, :edge_x, 0] = 200
    levels[:edge_y, :, 1] = 200
    resized = resize_image(Image.fromarray(levels), plan).double()
    x0, y0, x1, y1 = plan.box
    bright = (resized - 50) / 150
    row = bright[0, (y0 + y1) // 2, x0:x1]
    column = bright[1, y0:y1, (x0 + x1) // 2]
    expected = plan.to_network(torch.tensor([edge_x, edge_y], dtype=torch.float64))
    assert x0 + float(row.sum()) == pytest.approx(float(expected[0]), abs=0.03)
    assert y0 + float(column.sum()) == pytest.approx(float(expected[1]), abs=0.03)


def test_checkers_land_where_the_map_says() -> None:
    """Network pixels whose original position is well inside a cell have that cell's level."""
    width, height, cell = 1000, 700, 50
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    checkers = np.where((x // cell + y // cell) % 2, 200, 50).astype(np.uint8)
    plan = plan_resize(width, height).padded_to((530, 400))
    resized = resize_image(Image.fromarray(np.stack([checkers] * 3, -1)), plan)
    rows, columns = torch.where(plan.valid_mask())
    centers = torch.stack([columns, rows], -1).double() + 0.5
    original = plan.to_original(centers)
    inside = ((original % cell - cell / 2).abs() < cell / 2 - 5).all(-1)
    cells = (original[inside] // cell).long().sum(-1) % 2
    expected = torch.where(cells == 1, 200, 50)
    assert torch.equal(resized[0, rows[inside], columns[inside]].long(), expected)


def test_padding_is_white_and_outside_the_mask() -> None:
    plan = plan_resize(640, 480, "pad")
    image = resize_image(Image.new("RGB", (640, 480)), plan)
    assert torch.equal(image[0] == 255, ~plan.valid_mask())
    mask = resize_mask(np.ones((480, 640), dtype=np.bool_), plan)
    assert torch.equal(mask, plan.valid_mask())


def test_a_mask_follows_its_photo() -> None:
    mask = np.zeros((480, 640), dtype=np.bool_)
    mask[:, :320] = True
    plan = plan_resize(640, 480)
    resized = resize_mask(mask, plan)
    assert bool(resized[:, :259].all())
    assert not bool(resized[:, 259:].any())


def test_common_size_takes_each_side_by_itself() -> None:
    plans = [plan_resize(640, 480), plan_resize(480, 640)]
    assert common_size(plans) == (518, 518)


def test_photo_and_plan_must_agree() -> None:
    plan = plan_resize(640, 480)
    with pytest.raises(ValueError, match="size"):
        resize_image(Image.new("RGB", (480, 640)), plan)
    with pytest.raises(ValueError, match="mode RGB"):
        resize_image(Image.new("L", (640, 480)), plan)


def test_preprocessing_equals_upstream_to_the_byte(shared: Path) -> None:
    golden = np.load(shared / "models" / "golden_a" / "units_vggt.npz")
    for mode, width, height, net_w, net_h, *box in golden["pre_sizes"].tolist():
        plan = plan_resize(width, height, "pad" if mode else "crop")
        assert (plan.network_size, list(plan.box)) == ((net_w, net_h), box)
    for example in (0, 1):
        photo = Image.fromarray(golden[f"pre_{example}_input_u8"])
        resized = resize_image(photo, plan_resize(*photo.size, "crop"))
        assert torch.equal(resized, torch.tensor(golden[f"pre_{example}_out_u8"]))
