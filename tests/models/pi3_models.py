# SPDX-License-Identifier: Apache-2.0
"""Pi3 and Pi3X small enough to run in every test."""

from __future__ import annotations

from ns_sparseattn.models.pi3_config import Pi3Config, Pi3XConfig

TINY_PI3 = Pi3Config(
    image_size=70,
    embed_dim=32,
    encoder_depth=2,
    encoder_heads=2,
    depth=4,
    num_heads=2,
    head_dim=32,
    head_heads=2,
    head_depth=2,
    camera_dim=24,
)
TINY_PI3X = Pi3XConfig(
    image_size=70,
    embed_dim=32,
    encoder_depth=2,
    encoder_heads=2,
    depth=4,
    num_heads=2,
    head_dim=32,
    head_heads=2,
    head_depth=2,
    camera_dim=24,
    upsample_widths=(32, 16, 16),
    last_width=8,
    metric_dim=32,
    metric_heads=2,
    metric_depth=2,
    inject_layers=(1, 3),
)
