"""Mask the credentials in URIs before they are printed or stored."""

import re

_USER_INFO = re.compile(r"://([^\s/@:]*)(:[^\s]*)?@")
_REFERENCE = r"(?:\$\{env:[A-Za-z0-9_]+\})+"
_NAMED_ONLY = re.compile(rf"://(?:(?:[^\s/@:]*|{_REFERENCE}):)?{_REFERENCE}@")


def mask(text: str) -> str:
    """Replace the user and the password of each URI in ``text`` by ***.

    A URI whose password is a reference such as ``${env:NAME}`` contains no secret, and is not
    changed. Passwords may contain / and @, so everything up to the last @ counts as one.
    """
    return _USER_INFO.sub(lambda found: found[0] if _is_plain(found) else "://***@", text)


def _is_plain(found: re.Match[str]) -> bool:
    """Whether a match holds no secret: references alone, or the container of an abfss:// place."""
    is_container = found[2] is None and found.string[: found.start()].endswith(("abfs", "abfss"))
    return is_container or _NAMED_ONLY.fullmatch(found[0]) is not None
