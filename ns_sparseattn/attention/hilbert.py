# SPDX-License-Identifier: Apache-2.0
"""A Hilbert-like curve through a rectangle of any size.

A Hilbert curve keeps cells that follow each other close together, so that a run of patches along it
covers a compact piece of a photo instead of a thin strip. The classic curve needs a square with a
power of two as side. The generalised one (J. Červený's construction) cuts a rectangle into pieces
until they are one cell wide: a long one across into two, any other into three, of which the outer
two run perpendicular to the middle one. Cuts fall on even lengths where they can, so that all steps
but at most one go to a neighbour; that one, in rectangles with an odd longer and an even shorter
side, is diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass

# Longer than this multiple of its width, a piece is cut into two instead of three.
_LONG = 1.5


@dataclass(frozen=True)
class _Side:
    """A side of a piece: so many cells in a direction."""

    length: int
    dx: int
    dy: int

    def resized(self, length: int) -> _Side:
        """Return the same direction with another length; a negative one turns it around."""
        sign = -1 if length < 0 else 1
        return _Side(abs(length), sign * self.dx, sign * self.dy)

    def half(self) -> int:
        """Return half the length; an odd one leaves the larger part on the side of the origin."""
        is_backwards = self.dx + self.dy < 0
        return (self.length + is_backwards) // 2

    def even_half(self) -> int:
        """Return about half the length, even unless the side is too short for that."""
        half = self.half()
        return half + 1 if half % 2 and self.length > 2 else half


_Piece = tuple[int, int, _Side, _Side]
"""First cell (x, y), the side to walk along, the side to cross meanwhile."""


def hilbert_order(height: int, width: int) -> list[int]:
    """Return the cells of a grid in the order of the curve, as row-major indices.

    Args:
        height: Cells in a column.
        width: Cells in a row.

    Returns:
        ``y * width + x`` of each cell; the curve starts at ``(0, 0)`` and runs along the longer
        side.

    Raises:
        ValueError: If a side is less than one cell.

    Example:
        >>> hilbert_order(2, 2)
        [0, 2, 3, 1]
    """
    if min(height, width) < 1:
        raise ValueError(f"A grid needs at least one cell, got {height} x {width}.")
    across, down = _Side(width, 1, 0), _Side(height, 0, 1)
    cells: list[int] = []
    # Pieces still to walk, the next one last.
    pieces: list[_Piece] = [(0, 0, across, down) if width >= height else (0, 0, down, across)]
    while pieces:
        x, y, along, over = pieces.pop()
        if min(along.length, over.length) == 1:
            side = along if over.length == 1 else over
            cells.extend((y + i * side.dy) * width + x + i * side.dx for i in range(side.length))
        else:
            pieces.extend(reversed(_cut(x, y, along, over)))
    return cells


def _cut(x: int, y: int, along: _Side, over: _Side) -> list[_Piece]:
    """Cut a piece into two or three, in the order in which the curve runs through them."""
    if along.length > _LONG * over.length:
        near = along.even_half()
        return [
            (x, y, along.resized(near), over),
            (
                x + near * along.dx,
                y + near * along.dy,
                along.resized(along.length - near),
                over,
            ),
        ]
    # Out along the near half of the crossing side, over to the far end, and back.
    turn, middle = over.even_half(), along.half()
    back = along.length - 1
    return [
        (x, y, over.resized(turn), along.resized(middle)),
        (x + turn * over.dx, y + turn * over.dy, along, over.resized(over.length - turn)),
        (
            x + back * along.dx + (turn - 1) * over.dx,
            y + back * along.dy + (turn - 1) * over.dy,
            over.resized(-turn),
            along.resized(middle - along.length),
        ),
    ]
