"""Seeds: derived by hashing names, so that no two uses of randomness share a stream by accident; lists of them as text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from hashlib import sha256

from bench.errors import UserError

MAX_SEEDS = 10_000
_SEEDS = re.compile(r"\d{1,9}(-\d{1,9})?( *, *\d{1,9}(-\d{1,9})?)*", re.ASCII)


def derive(*parts: str | int) -> int:
    """A seed in [0, 2**63) from the sha256 of `parts`: equal in every process, on every machine, in every version.

    The parts are joined as a JSON list, so ("a", "b") and ("ab",), or 1 and "1", give different seeds.
    """
    digest = sha256(json.dumps(list(parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def parse_seeds(text: str | int, where: str = "seeds") -> list[int]:
    """Seeds from "0-9", "0,3,7" or "0-4,8"; a single number, text or int, is that one seed.

    UserError at `where`: malformed, given twice, too many.
    """
    if isinstance(text, bool) or not isinstance(text, str | int) or not _SEEDS.fullmatch(str(text)):
        raise UserError(f"{where}: expected seeds like 0-9 or 0,3,7, got {str(text)[:40]!r}")
    seeds: list[int] = []
    for part in str(text).replace(" ", "").split(","):
        first, _, last = part.partition("-")
        span = range(int(first), int(last or first) + 1)
        if not 0 < len(span) <= MAX_SEEDS:
            raise UserError(f"{where}: {part} holds {len(span)} seeds; expected 1 to {MAX_SEEDS}")
        seeds += span
    if len(seeds) > MAX_SEEDS:
        raise UserError(f"{where}: {len(seeds)} seeds; expected 1 to {MAX_SEEDS}")
    return distinct(seeds, where)


def spans(seeds: Iterable[int]) -> str:
    """Seeds as `parse_seeds` reads them, in order, such as "0-2,5"."""
    found: list[list[int]] = []
    for seed in sorted(seeds):
        if found and seed == found[-1][1] + 1:
            found[-1][1] = seed
        else:
            found.append([seed, seed])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def distinct(seeds: Iterable[int], where: str = "seeds") -> list[int]:
    """`seeds`, refused if one stands twice: a trial counted twice would shrink the standard error."""
    seen: dict[int, None] = {}
    for seed in seeds:
        if seed in seen:
            raise UserError(f"{where}: seed {seed} stands twice; name it once")
        seen[seed] = None
    if not seen:
        raise UserError(f"{where}: no seed is given")
    return list(seen)
