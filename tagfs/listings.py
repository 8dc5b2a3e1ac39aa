"""Listings: directories that are given out in parts.  Pure.

Owns: the names that a listing goes on with; positions, which stay good while others list the same directory, and while
it changes.
Does not know: what the names stand for.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_LISTINGS = 63
"""Directories that are being read in parts at once, before one of them is listed anew for the rest of it."""

_SHIFT = 25
"""Bits of the place in a listing, in a position; above them the listing's number.  Both fit into the 31 bits that a
32-bit program can hold."""


@dataclass(slots=True)
class _Listing:
    """`readers` have begun it and not come to its end."""

    directory: int
    names: list[bytes]
    readers: int = 1


class Listings:
    """The listings that somebody has begun."""

    def __init__(self) -> None:
        self._listings: dict[int, _Listing] = {}
        self._numbers = itertools.cycle(range(1, _LISTINGS + 1))

    def __len__(self) -> int:
        return len(self._listings)

    def names(self, directory: int, position: int, read: Callable[[], list[bytes]]) -> Iterator[tuple[int, bytes]]:
        """(position of the next, name) of a directory from `position` on; `read` tells its names where it is begun, at
        0, or is not known any more."""
        number, place = position >> _SHIFT, position & (1 << _SHIFT) - 1
        listing = self._listings.get(number)
        if place == 0 or listing is None or listing.directory != directory:
            number = self._begin(directory, read())
            listing = self._listings[number]
        if place >= len(listing.names):
            listing.readers -= 1
            if listing.readers <= 0:
                del self._listings[number]  # read to its end; who seeks back has it listed anew
        following = itertools.count(number << _SHIFT | place + 1)
        return zip(following, itertools.islice(listing.names, place, None), strict=False)

    def _begin(self, directory: int, names: list[bytes]) -> int:
        """The number of a listing: of one that is kept where that has the same names, so that who begins many and ends
        none takes no more memory."""
        for number, known in self._listings.items():
            if known.directory == directory and known.names == names:
                known.readers += 1
                return number
        if len(self._listings) >= _LISTINGS:
            del self._listings[next(iter(self._listings))]
        number = next(number for number in self._numbers if number not in self._listings)
        self._listings[number] = _Listing(directory, names)
        return number
