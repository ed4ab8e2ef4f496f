"""Seeds from names: every draw has a key, so that it can be drawn again.

A key says what a draw is for and which one it is, such as ("augment", seed, position). Equal
keys give equal draws on any machine, in any process and with any number of workers.
"""

import hashlib


def seed_of(*key: int | str) -> int:
    """A 63-bit seed that is a pure function of ``key``; different keys give unrelated seeds."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
