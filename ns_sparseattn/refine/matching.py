# SPDX-License-Identifier: Apache-2.0
"""Matching of chosen pairs in COLMAP's database, and a search for partners by looks alone.

Axes: ``F`` frames, ``K`` pairs, ``N`` features.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..export.colmap import import_pycolmap
from .database import open_database, working_name
from .features import device_of, matcher_type, num_threads, uses_gpu
from .options import MatchOptions

Pair = tuple[int, int]
"""Indices of two images, the smaller one first."""

_RATIO = 0.85
"""Largest ratio of the angles to the best and to the second best feature for a match that counts in
the search for partners; looser than the 0.8 of SIFT matching, because few features are compared."""

_MIN_SAMPLES = 30
"""Of a pair's two-view geometry; COLMAP has 100. The confidence asked for is the same."""


def match_pairs(database_path: Path, pairs: Iterable[Pair], options: MatchOptions) -> None:
    """Match pairs and verify them by two-view geometry; pairs already matched are left alone.

    The result is written to the database. Seeds are fixed, so that the same photos give the same
    matches.
    """
    pairs = sorted(pairs)
    if not pairs:
        return
    pycolmap = import_pycolmap()
    settings = pycolmap.FeatureMatchingOptions()
    settings.type = matcher_type(options.features)
    settings.num_threads = num_threads(options)
    settings.use_gpu = uses_gpu(options)
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = 0
    # Most matches of photos that overlap are right, so that few samples reach the confidence.
    verification.ransac.min_num_trials = _MIN_SAMPLES
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "pairs.txt"
        lines = (f"{working_name(first)} {working_name(second)}\n" for first, second in pairs)
        listing.write_text("".join(lines), encoding="ascii")
        pairing = pycolmap.ImportedPairingOptions()
        pairing.match_list_path = str(listing)
        pycolmap.match_image_pairs(
            str(database_path),
            matching_options=settings,
            pairing_options=pairing,
            verification_options=verification,
            device=device_of(options),
        )


def find_partners(
    database_path: Path,
    seekers: Collection[int],
    num_images: int,
    options: MatchOptions,
) -> set[Pair]:
    """Find photos that look alike, without any pose.

    The largest features of each photo are compared, as in preemptive matching (Wu, *Towards
    Linear-time Incremental Structure from Motion*, 3DV 2013): what two photos share shows in them
    first, and comparing them costs little.

    Args:
        database_path: Holds the features.
        seekers: The images that need partners.
        num_images: Number of images in the database.
        options: Numbers of features and partners.

    Returns:
        At most `options.partners_per_image` pairs per seeker, best first choice.
    """
    descriptors = [_largest(database_path, index, options) for index in range(num_images)]
    pairs: set[Pair] = set()
    for seeker in sorted(seekers):
        counts = torch.tensor(
            [
                0 if other == seeker else _count_matches(descriptors[seeker], descriptors[other])
                for other in range(num_images)
            ]
        )
        order = counts.sort(descending=True, stable=True).indices[: options.partners_per_image]
        for other in order.tolist():
            if other != seeker:
                pairs.add((min(seeker, other), max(seeker, other)))
    return pairs


def _largest(database_path: Path, index: int, options: MatchOptions) -> Tensor:
    """Return unit descriptors ``[N, D]`` of an image's largest features."""
    with open_database(database_path) as database:
        keypoints = database.read_keypoints(index + 1)
        data = np.asarray(database.read_descriptors(index + 1).data)
    # Columns are x, y and the affine shape, whose determinant is the area of the feature.
    area = np.abs(keypoints[:, 2] * keypoints[:, 5] - keypoints[:, 3] * keypoints[:, 4])
    order = np.argsort(-area, kind="stable")[: options.partner_features]
    return torch.nn.functional.normalize(torch.from_numpy(data[order]).float(), dim=-1)


def _count_matches(first: Tensor, second: Tensor) -> int:
    """Count mutual best matches that pass the ratio test."""
    if min(len(first), len(second)) < 2:
        return 0
    similarity = first @ second.T
    best, index = similarity.topk(2, dim=1)
    is_mutual = similarity.argmax(0)[index[:, 0]] == torch.arange(len(first))
    angles = torch.acos(best.clamp(-1.0, 1.0))
    return int((is_mutual & (angles[:, 0] < _RATIO * angles[:, 1])).sum())
