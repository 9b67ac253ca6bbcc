# SPDX-License-Identifier: Apache-2.0
"""Judge a scene by matches: pair by pair, image by image, and as a whole. Needs no ground truth.

Axes: ``F`` frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..frames.masks import name_some
from ..geometry import camera_centers
from ..scene.types import Scene
from .cameras import align
from .database import PairMatches
from .options import AuditOptions
from .two_view import PairCheck, SceneRays, check_pair

Verdict = Literal["good", "weak", "contradicted", "unmatched"]
"""good: its matches fit its pose. weak: near enough to be corrected, or hardly matched.
contradicted: its matches say that it stands elsewhere. unmatched: nothing is known about it."""


_MIN_SHARED = 2
"""Images that two models must share to be compared."""


@dataclass(frozen=True, kw_only=True)
class ImageVerdict:
    """What matches say about one image."""

    name: str
    verdict: Verdict
    num_pairs: int
    """Verified pairs that it is part of."""
    num_matches: int
    agreeing_share: float | None
    """Share of its matches in pairs that agree with the poses to a few degrees; ``None`` without
    matches. Pairs with contradicted images do not count."""
    rotation_error_deg: float | None
    """Median over its pairs."""
    epipolar_error_px: float | None
    """Median over its pairs."""
    component: int | None
    """Number of the component that it belongs to, the largest is 0; ``None`` outside all."""
    part: int | None
    """Number of the part that it belongs to, the largest is 0; ``None`` outside all. Parts are what
    firm pairs connect: a component may fall into several, each right in itself, that do not fit
    each other."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What matches say about a scene."""

    images: tuple[ImageVerdict, ...]
    pairs: tuple[PairCheck, ...]
    num_components: int
    """Groups of images that agreeing pairs connect; more than one is a scene that may be split."""
    is_rotation_only: bool
    """Whether hardly any pair shows parallax: the camera only turned."""
    is_trusted: bool
    reasons: tuple[str, ...]
    """Sentences: why the scene is not trusted, and what to look at."""

    def names(self, *verdicts: Verdict) -> tuple[str, ...]:
        """Return the names of the images with one of these verdicts."""
        return tuple(image.name for image in self.images if image.verdict in verdicts)

    def indices(self, *verdicts: Verdict) -> tuple[int, ...]:
        """Return the numbers of the images with one of these verdicts."""
        return tuple(i for i, image in enumerate(self.images) if image.verdict in verdicts)

    @property
    def num_confirmed(self) -> int:
        """Good images in the largest part of their component, over all components."""
        counts = Counter(
            (image.component, image.part)
            for image in self.images
            if image.verdict == "good" and image.part is not None
        )
        largest: dict[int | None, int] = {}
        for (component, _), count in counts.items():
            largest[component] = max(largest.get(component, 0), count)
        return sum(largest.values())

    @property
    def epipolar_error_px(self) -> float:
        """Median over the pairs that agree, weighted equally; infinity without any."""
        errors = [pair.epipolar_error_px for pair in self.pairs]
        return float(np.median(errors)) if errors else float("inf")


def audit_scene(scene: Scene, matches: Sequence[PairMatches], options: AuditOptions) -> Audit:
    """Judge the poses of a scene by verified matches.

    Args:
        scene: Cameras and poses; its points are not looked at.
        matches: Verified pairs of its images, of `read_matches`.
        options: Thresholds.

    Returns:
        Verdicts on pairs, images and scene.
    """
    rays = SceneRays.of(scene)
    checks = tuple(
        check_pair(pair, rays, options) for pair in matches if len(pair) >= options.min_pair_matches
    )
    num_images = len(scene.images)
    is_rotation_only = _is_rotation_only(checks, options)
    agrees = np.array(
        [check.rotation_error_deg <= options.rotation_tolerance_deg for check in checks], dtype=bool
    )
    if is_rotation_only:
        # Without parallax there is no epipolar geometry to contradict.
        agrees[:] = True
    shares, contradicted = _agreeing_shares(checks, agrees, num_images, options)
    components = _components(checks, agrees, contradicted, num_images)
    is_firm = np.array(
        [
            check.rotation_error_deg <= options.firm_rotation_deg
            and check.epipolar_error_px <= options.epipolar_tolerance_px
            for check in checks
        ],
        dtype=bool,
    )
    parts = _components(checks, is_firm | is_rotation_only, contradicted, num_images)
    images = tuple(
        _judge(
            index,
            image.name,
            [check for check in checks if index in (check.first, check.second)],
            shares[index],
            index in contradicted,
            components[index],
            parts[index],
            contradicted,
            options,
        )
        for index, image in enumerate(scene.images)
    )
    num_components = len({c for c in components if c is not None and components.count(c) > 1})
    reasons = _reasons(images, num_components, is_rotation_only, options)
    return Audit(
        images=images,
        pairs=checks,
        num_components=num_components,
        is_rotation_only=is_rotation_only,
        is_trusted=not reasons,
        reasons=reasons,
    )


def compare_with_reference(scene: Scene, reference: Scene) -> tuple[float, float]:
    """Measure how far a model's cameras are from a prediction's.

    Args:
        scene: The model.
        reference: The prediction, in any world. Only images that both hold are compared, by name.

    Returns:
        The median angle between the relative rotations of all pairs, degrees, and the median
        distance of the centres after the similarity of `align`, as a share of the prediction's
        extent.

    Raises:
        ValueError: If they share fewer than two images.
    """
    by_name = {image.name: image.cam_from_world for image in reference.images}
    shared = [image for image in scene.images if image.name in by_name]
    if len(shared) < _MIN_SHARED:
        raise ValueError(
            f"`reference` must share {_MIN_SHARED} images or more with the model, by name, got "
            f"{len(shared)}."
        )
    poses = torch.stack([image.cam_from_world for image in shared])
    predicted = torch.stack([by_name[image.name] for image in shared])
    difference = predicted[:, :, :3].transpose(1, 2) @ poses[:, :, :3]
    # |R_ij - P_ij| equals |D_i - D_j| with D = P^T R, whatever the worlds.
    chord = torch.linalg.matrix_norm(difference[:, None] - difference[None])
    upper = torch.triu_indices(len(poses), len(poses), offset=1)
    angle = 2.0 * torch.asin((chord[upper[0], upper[1]] / 8.0**0.5).clamp(max=1.0))
    scale, rotation, translation = align(poses, predicted)
    moved = scale * camera_centers(poses) @ rotation.T + translation
    centers = camera_centers(predicted)
    offset = torch.linalg.vector_norm(moved - centers, dim=-1).median()
    extent = float(torch.cdist(centers, centers).max())
    share = float(offset) / extent if extent > 0 else 0.0
    return float(torch.rad2deg(angle.median())) if angle.numel() else 0.0, share


def contradiction(scene: Scene, reference: Scene, options: AuditOptions) -> str | None:
    """Return a sentence if a model contradicts a prediction of the same images, else ``None``.

    Matches alone cannot tell: a model that was folded by repeated things fits the very matches that
    folded it.
    """
    rotation_deg, position_share = compare_with_reference(scene, reference)
    if (
        rotation_deg <= options.reference_rotation_deg
        and position_share <= options.reference_position_share
    ):
        return None
    return (
        f"The model contradicts the prediction: its rotations differ by {rotation_deg:.1f} degrees "
        f"in the median pair (at most {options.reference_rotation_deg:g}), its cameras stand "
        f"{100 * position_share:.0f} per cent of the scene's extent apart from the predicted ones "
        f"(at most {100 * options.reference_position_share:g})."
    )


def _is_rotation_only(checks: Sequence[PairCheck], options: AuditOptions) -> bool:
    """Whether a pure rotation explains nearly all pairs."""
    if not checks:
        return False
    small = [check.rotation_only_px <= options.max_rotation_only_px for check in checks]
    return float(np.mean(small)) >= options.min_rotation_only_share


def _weights(checks: Sequence[PairCheck], options: AuditOptions) -> NDArray[np.float64]:
    return np.array([min(check.num_matches, options.max_pair_weight) for check in checks], float)


def _agreeing_shares(
    checks: Sequence[PairCheck],
    agrees: NDArray[np.bool_],
    num_images: int,
    options: AuditOptions,
) -> tuple[list[float | None], set[int]]:
    """Find contradicted images, the worst first.

    A wrong image spoils the share of its right neighbours, so once it is found its pairs no longer
    count.

    Returns:
        Each image's share of agreeing matches, and the contradicted images.
    """
    ends = np.array([[check.first, check.second] for check in checks], dtype=int).reshape(-1, 2)
    weights = _weights(checks, options)
    contradicted: set[int] = set()
    is_active = np.ones(len(checks), dtype=bool)

    def share(index: int, counted: NDArray[np.bool_]) -> float | None:
        mine = (ends == index).any(1) & counted
        total = weights[mine].sum()
        return float(weights[mine & agrees].sum() / total) if total else None

    while True:
        shares = {
            index: value
            for index in range(num_images)
            if index not in contradicted and (value := share(index, is_active)) is not None
        }
        worst = min(shares, key=lambda index: shares[index], default=None)
        if worst is None or shares[worst] >= options.min_agreeing_share:
            break
        contradicted.add(worst)
        is_active &= ~(ends == worst).any(1)
    final: list[float | None] = []
    for index in range(num_images):
        # Those that have only contradicted partners are judged by these.
        value = share(index, is_active) if index not in contradicted else None
        final.append(share(index, np.ones_like(is_active)) if value is None else value)
    return final, contradicted


def _components(
    checks: Sequence[PairCheck],
    connects: NDArray[np.bool_],
    contradicted: set[int],
    num_images: int,
) -> list[int | None]:
    """Number the groups that some pairs connect, the largest first; ``None`` for loners."""
    parent = list(range(num_images))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for check, is_tie in zip(checks, connects, strict=True):
        if is_tie and not {check.first, check.second} & contradicted:
            parent[root(check.first)] = root(check.second)
    members: dict[int, list[int]] = {}
    for index in range(num_images):
        members.setdefault(root(index), []).append(index)
    groups = sorted((g for g in members.values() if len(g) > 1), key=lambda g: (-len(g), g[0]))
    number = {index: n for n, group in enumerate(groups) for index in group}
    return [number.get(index) for index in range(num_images)]


def _judge(
    index: int,
    name: str,
    checks: Sequence[PairCheck],
    share: float | None,
    is_contradicted: bool,
    component: int | None,
    part: int | None,
    contradicted: set[int],
    options: AuditOptions,
) -> ImageVerdict:
    """Give one image its verdict."""
    others = [c for c in checks if not ({c.first, c.second} - {index}) & contradicted]
    counted = checks if is_contradicted or not others else others
    verdict: Verdict = "unmatched"
    if is_contradicted:
        verdict = "contradicted"
    elif counted and others:
        weights = _weights(counted, options)
        fits = [c.epipolar_error_px <= options.epipolar_tolerance_px for c in counted]
        is_good = float(weights[np.array(fits)].sum()) >= options.min_good_share * weights.sum()
        verdict = "good" if is_good else "weak"
    return ImageVerdict(
        name=name,
        verdict=verdict,
        num_pairs=len(checks),
        num_matches=sum(check.num_matches for check in checks),
        agreeing_share=share,
        rotation_error_deg=_median([check.rotation_error_deg for check in counted]),
        epipolar_error_px=_median([check.epipolar_error_px for check in counted]),
        component=component,
        part=part,
    )


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _reasons(
    images: Sequence[ImageVerdict],
    num_components: int,
    is_rotation_only: bool,
    options: AuditOptions,
) -> tuple[str, ...]:
    """Say why a scene cannot be trusted; nothing if it can."""
    if is_rotation_only:
        return (
            "The photos show no parallax: the camera only turned. Rotations can be trusted, "
            "positions and depth cannot; take photos from different places.",
        )
    good = [image for image in images if image.verdict == "good" and image.component == 0]
    parts = Counter(image.part for image in good if image.part is not None)
    if max(parts.values(), default=0) >= options.min_trusted_share * len(images):
        return ()
    reasons = []
    if len(parts) > 1:
        sizes = sorted(parts.values(), reverse=True)
        reasons.append(
            f"The photos fall into {len(parts)} parts ({', '.join(map(str, sizes))} images) that "
            "are each right in themselves but do not fit each other, though matches connect them."
        )
    if num_components > 1:
        sizes = [sum(image.component == n for image in images) for n in range(num_components)]
        reasons.append(
            f"The photos fall into {num_components} groups that share nothing "
            f"({', '.join(map(str, sizes))} images): these may be different places, or too few "
            "photos lie between them."
        )
    unconfirmed = [image.name for image in images if image.verdict != "good"]
    if unconfirmed:
        reasons.append(
            f"Only {len(images) - len(unconfirmed)} of {len(images)} images are confirmed by "
            f"matches; not confirmed: {name_some(unconfirmed)}."
        )
    return tuple(reasons)
