# SPDX-License-Identifier: Apache-2.0
"""Tell how the tokens lie from what a carrier is called with and what it says about itself.

Axes: ``B`` scenes, ``F`` frames, ``H`` x ``W`` pixels, ``C`` channels, ``gh`` x ``gw`` patches,
``T`` extra tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..layout import TokenLayout


def layout_of_call(carrier: nn.Module, values: Iterable[Any]) -> TokenLayout | str:
    """Return the layout of a call of a carrier, or a clause that says why it cannot be told.

    Args:
        carrier: The module that holds the global blocks.
        values: All arguments of the call. Either one of them is the images ``[B, F, 3, H, W]``, or
            one has ``features``, a list with the patches ``[B, C, gh, gw]`` of each frame.
    """
    values = list(values)
    bundles = [value for value in values if hasattr(value, "features")]
    if bundles:
        return _from_features(bundles)
    images = [
        value
        for value in values
        if isinstance(value, Tensor) and value.ndim == 5 and value.shape[2] == 3
    ]
    if len(images) != 1:
        return (
            f"its model was called with {len(images)} tensors of shape [B, F, 3, H, W], not with "
            "one, so frames and patch grid are unknown"
        )
    return _from_images(carrier, images[0])


def _from_images(
    carrier: nn.Module,
    images: Tensor,  # [B, F, 3, H, W]
) -> TokenLayout | str:
    patch_size, num_special = getattr(carrier, "patch_size", None), _num_special(carrier)
    if not isinstance(patch_size, int):
        return "its model does not state a `patch_size`"
    if num_special is None:
        return "its model states neither `patch_start_idx` nor camera and register tokens"
    num_frames, (height, width) = images.shape[1], images.shape[-2:]
    if height % patch_size or width % patch_size:
        return f"images of {height} x {width} pixels do not divide into patches of {patch_size}"
    return TokenLayout(
        num_frames=num_frames,
        num_special=num_special,
        grid_height=height // patch_size,
        grid_width=width // patch_size,
    )


def _num_special(carrier: nn.Module) -> int | None:
    """Return how many special tokens precede the patches of a frame, if the carrier says so."""
    start = getattr(carrier, "patch_start_idx", None)
    if isinstance(start, int):
        return start
    tokens = [getattr(carrier, name, None) for name in ("camera_token", "register_token")]
    counts = [token.shape[-2] for token in tokens if isinstance(token, Tensor) and token.ndim >= 2]
    return sum(counts) if counts else None


def _from_features(bundles: list[Any]) -> TokenLayout | str:
    if len(bundles) != 1:
        return f"its model was called with {len(bundles)} sets of features, not with one"
    views = bundles[0].features
    if not isinstance(views, (list, tuple)) or not all(isinstance(v, Tensor) for v in views):
        return "its model was called with `features` that are no list of tensors"
    shapes = {tuple(view.shape) for view in views}
    if len(shapes) != 1 or views[0].ndim != 4:
        return (
            "its model was not called with features of one shape [B, C, gh, gw], "
            f"but with {sorted(shapes)}"
        )
    of_views = getattr(bundles[0], "additional_input_tokens_per_view", None)
    of_scene = getattr(bundles[0], "additional_input_tokens", None)
    counts = {_num_extra(tokens) for tokens in ([None] if of_views is None else of_views)}
    if len(counts) != 1:
        return "its views have different numbers of extra tokens"
    num_special, num_trailing = counts.pop(), _num_extra(of_scene)
    if num_special is None or num_trailing is None:
        return "the extra tokens of its features are no tensors [B, C, T]"
    return TokenLayout(
        num_frames=len(views),
        num_special=num_special,
        grid_height=views[0].shape[2],
        grid_width=views[0].shape[3],
        is_special_last=True,
        num_trailing=num_trailing,
    )


def _num_extra(
    tokens: Any,  # [B, C, T]
) -> int | None:
    if tokens is None:
        return 0
    return tokens.shape[2] if isinstance(tokens, Tensor) and tokens.ndim == 3 else None
