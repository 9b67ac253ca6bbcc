# SPDX-License-Identifier: Apache-2.0
"""Small synthetic photos for tests: of every awkward kind, and whole folders of awkward cases.

`draw_view` makes the pixels, `write_photo` a file of one `PhotoKind`, `write_hard_case` a folder.
Everything is deterministic. Sizes are (width, height) of the upright photo.
"""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

PhotoKind = Literal[
    "jpeg",
    "progressive",
    "gray",
    "cmyk",
    "webp",
    "tiff",
    "tiff16",
    "bmp",
    "png",
    "palette",
    "one_bit",
    "rgba",
    "gray_alpha",
    "gray16",
    "rgb16",
    "gif",
    "heic",
]
"""What `write_photo` writes; heic needs pillow-heif."""

SUFFIXES: dict[PhotoKind, str] = {
    "jpeg": ".jpg",
    "progressive": ".JPG",
    "gray": ".jpeg",
    "cmyk": ".jpg",
    "webp": ".webp",
    "tiff": ".tif",
    "tiff16": ".tiff",
    "bmp": ".bmp",
    "png": ".png",
    "palette": ".png",
    "one_bit": ".png",
    "rgba": ".png",
    "gray_alpha": ".png",
    "gray16": ".png",
    "rgb16": ".png",
    "gif": ".gif",
    "heic": ".heic",
}
"""Usual suffix of each kind, one of them in upper case as cameras write it."""

Size = tuple[int, int]

_SMALL: Size = (96, 64)

# How a camera stores an upright photo for each EXIF orientation: the inverse of what a reader does.
_STORE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def draw_view(size: Size = _SMALL, *, index: int = 0, seed: int = 0) -> Image.Image:
    """Draw a textured wall as a camera sees it that moves to the right by a tenth of the width.

    Args:
        size: Width and height, pixels.
        index: Position of the camera, in steps.
        seed: Which wall; different walls share nothing.

    Returns:
        RGB image.
    """
    generator = np.random.default_rng(seed)
    width, height = size
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / width)
    x = x + index / 10

    def waves(*frequencies: float) -> NDArray[np.float64]:
        total = np.zeros_like(x)
        for frequency in frequencies:
            angle, phase = generator.uniform(0, 2 * np.pi, 2)
            along = np.cos(angle) * x + np.sin(angle) * y
            total += np.sin(2 * np.pi * frequency * along + phase)
        return total

    # Waves of many directions, down to a few pixels long, give texture at every place and scale;
    # as in most photos, colours vary more slowly.
    texture = waves(1, 2, 3, 5, 7, 11, 17)
    tint = np.stack([waves(0.5, 1) for _ in range(3)], axis=-1)
    levels = 127.5 + 25 * texture[..., None] + 15 * tint
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def write_photo(
    path: Path,
    image: Image.Image | None = None,
    *,
    kind: PhotoKind = "jpeg",
    orientation: int | None = None,
    exif: Image.Exif | None = None,
) -> Path:
    """Write a photo; folders are made as needed.

    Args:
        path: Where; its suffix need not fit the kind.
        image: Upright RGB photo; the first view of the default wall if missing. The left sixth of
            kinds with transparency becomes transparent.
        kind: Format and layout of the file.
        orientation: EXIF orientation to declare; for 2 to 8 the pixels are stored accordingly,
            other values are declared as they are.
        exif: Further EXIF tags, from `camera_exif`.

    Returns:
        `path`.
    """
    image = draw_view() if image is None else image
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif() if exif is None else exif
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
        image = as_stored(image, orientation)
    # The content decides the format, so that a suffix may lie.
    _WRITERS[kind](path, image, exif)
    return path


def as_stored(image: Image.Image, orientation: int) -> Image.Image:
    """Return an upright photo as a camera stores it under an EXIF orientation.

    Args:
        image: Upright photo.
        orientation: 2 to 8 turn or mirror the pixels; all others leave them as they are.

    Returns:
        The stored photo, which may be `image` itself.
    """
    return image.transpose(_STORE[orientation]) if orientation in _STORE else image


def camera_exif(
    *,
    make: str | None = "Maker",
    model: str | None = "Model 1",
    lens: str | None = None,
    details: dict[int, object] | None = None,
) -> Image.Exif:
    """Return EXIF of a camera.

    Args:
        make: Maker of the camera.
        model: Model of the camera.
        lens: Lens model.
        details: Tags of the EXIF sub-directory, by number (`PIL.ExifTags.Base`).

    Returns:
        The tags, for `write_photo`.
    """
    exif = Image.Exif()
    if make is not None:
        exif[ExifTags.Base.Make] = make
    if model is not None:
        exif[ExifTags.Base.Model] = model
    directory = dict(details or {})
    if lens is not None:
        directory[ExifTags.Base.LensModel] = lens
    if directory:
        exif[ExifTags.IFD.Exif] = directory
    return exif


def levels_16_bit(image: Image.Image) -> NDArray[np.uint16]:
    """Return an 8-bit image's levels spread over 16 bit, 255 becoming 65535."""
    return np.asarray(image).astype(np.uint16) * np.uint16(257)


def _write_png16(path: Path, image: Image.Image, exif: Image.Exif) -> None:
    """Write a 16-bit RGB PNG, which Pillow itself cannot."""
    del exif
    levels = levels_16_bit(image).astype(">u2")
    height, width = levels.shape[:2]
    rows = b"".join(b"\0" + levels[row].tobytes() for row in range(height))

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def _write_heic(path: Path, image: Image.Image, exif: Image.Exif) -> None:
    import pillow_heif

    heif = pillow_heif.from_pillow(image)
    heif.save(path, quality=95, format="HEIF", exif=exif.tobytes() if len(exif) else None)


def _with_alpha(image: Image.Image) -> Image.Image:
    """Make the left sixth transparent."""
    alpha = np.full((image.height, image.width), 255, dtype=np.uint8)
    alpha[:, : image.width // 6] = 0
    copy = image.copy()
    copy.putalpha(Image.fromarray(alpha))
    return copy


def _saver(
    image_format: str,
    convert: Callable[[Image.Image], Image.Image] | None = None,
    **settings: object,
) -> Callable[[Path, Image.Image, Image.Exif], None]:
    def save(path: Path, image: Image.Image, exif: Image.Exif) -> None:
        converted = image if convert is None else convert(image)
        extra = {"exif": exif.tobytes()} if len(exif) else {}
        converted.save(path, format=image_format, **settings, **extra)

    return save


def _write_tiff(path: Path, image: Image.Image, exif: Image.Exif) -> None:
    # The library that compresses cannot write an EXIF sub-directory.
    has_details = ExifTags.IFD.Exif in exif
    _saver("TIFF", compression=None if has_details else "tiff_lzw")(path, image, exif)


def _gray16(image: Image.Image) -> Image.Image:
    return Image.fromarray(levels_16_bit(image.convert("L")))


_WRITERS: dict[PhotoKind, Callable[[Path, Image.Image, Image.Exif], None]] = {
    "jpeg": _saver("JPEG", quality=95),
    "progressive": _saver("JPEG", quality=95, progressive=True),
    "gray": _saver("JPEG", lambda image: image.convert("L"), quality=95),
    "cmyk": _saver("JPEG", lambda image: image.convert("CMYK"), quality=95),
    "webp": _saver("WEBP", lossless=True),
    "tiff": _write_tiff,
    "tiff16": _saver("TIFF", _gray16),
    "bmp": _saver("BMP"),
    "png": _saver("PNG"),
    "palette": _saver("PNG", lambda image: image.quantize(256)),
    "one_bit": _saver("PNG", lambda image: image.convert("1")),
    "rgba": _saver("PNG", _with_alpha),
    "gray_alpha": _saver("PNG", lambda image: _with_alpha(image.convert("L"))),
    "gray16": _saver("PNG", _gray16),
    "rgb16": _write_png16,
    "gif": _saver("GIF"),
    "heic": _write_heic,
}


HardCase = Literal[
    "corrupt",
    "degraded",
    "duplicates",
    "empty_folder",
    "exif_rotated",
    "formats",
    "large_images",
    "mixed_sizes",
    "nested_tree",
    "portrait_landscape",
    "pure_rotation",
    "single_image",
    "two_identical",
    "two_images",
    "two_no_overlap",
    "two_scenes_mixed",
    "video_only",
]
"""Folders that `write_hard_case` makes."""

HARD_CASES: tuple[HardCase, ...] = get_args(HardCase)


def write_hard_case(folder: Path, case: HardCase, *, size: Size = _SMALL) -> Path:
    """Fill a folder with an awkward photo set.

    Args:
        folder: Made if missing.
        case: Which set.
        size: Width and height of the ordinary photos in it, pixels.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _CASES[case](folder, size)
    return folder


def _views(
    folder: Path, size: Size, num_views: int, *, seed: int = 0, first: int = 0
) -> list[Path]:
    return [
        write_photo(folder / f"img_{first + i}.jpg", draw_view(size, index=i, seed=seed))
        for i in range(num_views)
    ]


def _corrupt(folder: Path, size: Size) -> None:
    """Three good photos, a JPEG named .png, four broken files, and others that are no photos."""
    good = _views(folder, size, 3)[0].read_bytes()
    (folder / "really_jpeg.png").write_bytes(good)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "not_an_image.jpg").write_text("This is a text.")
    (folder / "trunc_half.jpg").write_bytes(good[: len(good) // 2])
    (folder / "trunc_header.jpg").write_bytes(good[:100])
    (folder / "notes.txt").write_text("Notes.")
    (folder / "Thumbs.db").write_bytes(bytes(64))
    (folder / "._img_0.jpg").write_bytes(bytes(64))


def _degraded(folder: Path, size: Size) -> None:
    """Two good photos, a dark one, a uniform one, and noise."""
    _views(folder, size, 2)
    write_photo(folder / "dark.jpg", draw_view(size, index=2).point(lambda level: level * 0.15))
    write_photo(folder / "blank.jpg", Image.new("RGB", size, "white"))
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    write_photo(folder / "noise.jpg", Image.fromarray(noise))


def _duplicates(folder: Path, size: Size) -> None:
    """Three photos, the first copied byte for byte, the second at half size."""
    first, *_ = _views(folder, size, 3)
    shutil.copyfile(first, folder / "img_0_copy.jpg")
    write_photo(folder / "img_1_half.jpg", draw_view(size, index=1).reduce(2))


def _exif_rotated(folder: Path, size: Size) -> None:
    """One photo for each EXIF orientation, all of one size when upright."""
    for orientation in range(1, 9):
        view = draw_view(size, index=orientation - 1)
        write_photo(folder / f"img_{orientation}.jpg", view, orientation=orientation)


def _formats(folder: Path, size: Size) -> None:
    """One photo of each kind that needs no extra package, and one with an umlaut in its name."""
    kinds = [kind for kind in get_args(PhotoKind) if kind != "heic"]
    for i, kind in enumerate(kinds):
        write_photo(
            folder / f"f{i:02d}_{kind}{SUFFIXES[kind]}", draw_view(size, index=i), kind=kind
        )
    write_photo(folder / "with space ä.jpg", draw_view(size, index=len(kinds)))


def _large_images(folder: Path, size: Size) -> None:
    """Two photos of sixteen times the width."""
    _views(folder, (size[0] * 16, size[1] * 16), 2)


def _mixed_sizes(folder: Path, size: Size) -> None:
    """The same camera at three sizes, of not quite equal aspect."""
    for i, share in enumerate((1.0, 0.5, 0.31)):
        small = (round(size[0] * share), round(size[1] * share))
        write_photo(folder / f"img_{i}.jpg", draw_view(small, index=i))


def _nested_tree(folder: Path, size: Size) -> None:
    """The same base names in three sub-folders, one of them with a blank."""
    for i, name in enumerate(("cam_a", "cam_b", "cam b/deeper")):
        for j in range(2):
            write_photo(folder / name / f"img_{j}.jpg", draw_view(size, index=2 * i + j))


def _portrait_landscape(folder: Path, size: Size) -> None:
    """Landscape and portrait photos in turn."""
    for i in range(4):
        turned = size if i % 2 == 0 else (size[1], size[0])
        write_photo(folder / f"img_{i}.jpg", draw_view(turned, index=i))


def _pure_rotation(folder: Path, size: Size) -> None:
    """Views from one place: crops of one panorama."""
    panorama = draw_view((size[0] * 3, size[1]))
    for i in range(4):
        left = i * size[0] // 2
        write_photo(folder / f"img_{i}.jpg", panorama.crop((left, 0, left + size[0], size[1])))


def _two_identical(folder: Path, size: Size) -> None:
    """The same bytes twice."""
    (path,) = _views(folder, size, 1)
    shutil.copyfile(path, folder / "img_1.jpg")


def _two_no_overlap(folder: Path, size: Size) -> None:
    """Two photos of different walls."""
    _views(folder, size, 1, seed=0)
    _views(folder, size, 1, seed=1, first=1)


def _two_scenes_mixed(folder: Path, size: Size) -> None:
    """Three photos each of two walls."""
    _views(folder, size, 3, seed=0)
    _views(folder, size, 3, seed=1, first=3)


def _video_only(folder: Path, size: Size) -> None:
    """A file named as a video; its content does not matter."""
    del size
    (folder / "clip.mp4").write_bytes(bytes(64))


_CASES: dict[HardCase, Callable[[Path, Size], object]] = {
    "corrupt": _corrupt,
    "degraded": _degraded,
    "duplicates": _duplicates,
    "empty_folder": lambda folder, size: None,
    "exif_rotated": _exif_rotated,
    "formats": _formats,
    "large_images": _large_images,
    "mixed_sizes": _mixed_sizes,
    "nested_tree": _nested_tree,
    "portrait_landscape": _portrait_landscape,
    "pure_rotation": _pure_rotation,
    "single_image": lambda folder, size: _views(folder, size, 1),
    "two_identical": _two_identical,
    "two_images": lambda folder, size: _views(folder, size, 2),
    "two_no_overlap": _two_no_overlap,
    "two_scenes_mixed": _two_scenes_mixed,
    "video_only": _video_only,
}
