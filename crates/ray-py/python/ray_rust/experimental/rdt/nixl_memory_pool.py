"""Room in memory that was registered once."""

from __future__ import annotations

__all__ = ["MemoryPool", "NixlOutOfMemoryError"]


class NixlOutOfMemoryError(RuntimeError):
    """The memory pool of NIXL has no room for the tensors of a value."""


class MemoryPool:
    """Hands out pieces of so many bytes, first fit; what is returned is one with its free neighbours again."""

    def __init__(self, size: int) -> None:
        if size <= 0:
            raise ValueError(f"the size of a memory pool has to be above 0, is {size}")
        self.size = size
        # Start and end of what is free, in order; no two touch.
        self._free = [(0, size)]
        # By owner.
        self._taken: dict[str, list[tuple[int, int]]] = {}

    def take(self, owner: str, sizes: list[int], alignment: int) -> list[int]:
        """Room for pieces of these sizes, at multiples of `alignment`. NixlOutOfMemoryError if one does not fit."""
        before = list(self._free)
        pieces = []
        for size in sizes:
            start = self._take_one(size, alignment)
            if start is None:
                self._free = before
                raise NixlOutOfMemoryError(
                    f"the memory pool of {self.size} bytes has no room for {size} bytes more: "
                    f"{sum(end - begin for begin, end in before)} were free, in {len(before)} pieces"
                )
            pieces.append((start, start + size))
        self._taken.setdefault(owner, []).extend(piece for piece in pieces if piece[0] < piece[1])
        return [start for start, _ in pieces]

    def give_back(self, owner: str) -> bool:
        """Frees all that an owner has; whether that was anything."""
        pieces = self._taken.pop(owner, None)
        if pieces is None:
            return False
        merged: list[tuple[int, int]] = []
        for start, end in sorted([*self._free, *pieces]):
            if merged and merged[-1][1] == start:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        self._free = merged
        return True

    def _take_one(self, size: int, alignment: int) -> int | None:
        for index, (begin, end) in enumerate(self._free):
            start = -(-begin // alignment) * alignment
            if start + size <= end:
                rest = [(begin, start), (start + size, end)]
                self._free[index : index + 1] = [piece for piece in rest if piece[0] < piece[1]]
                return start
        return None
