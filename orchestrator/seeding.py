"""Derive seeds from keys, so that every random draw is reproducible.

A key has the purpose and the index of a draw, such as ("augment", seed, position). Equal keys give
equal draws on any machine, in any process and with any number of workers.
"""

import hashlib


def seed_of(*key: int | str) -> int:
    """Return a 63-bit seed that depends only on ``key``; different keys give unrelated seeds."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
