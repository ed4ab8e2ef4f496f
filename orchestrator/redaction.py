"""Addresses as they may be printed or stored: without the user and the password in them."""

import re

_USER_INFO = re.compile(r"://([^\s/@:]*)(:[^\s]*)?@")
_REFERENCE = r"(?:\$\{env:[A-Za-z0-9_]+\})+"
_NAMED_ONLY = re.compile(rf"://(?:(?:[^\s/@:]*|{_REFERENCE}):)?{_REFERENCE}@")


def mask(text: str) -> str:
    """``text`` with *** for the user and password of each URI in it.

    What ``${env:NAME}`` stands for is not in ``text``: a URI whose password is such a reference
    is left alone. A password may hold / and @, so everything up to the last @ is taken for it.
    """
    return _USER_INFO.sub(
        lambda found: found[0] if _NAMED_ONLY.fullmatch(found[0]) else "://***@", text
    )
