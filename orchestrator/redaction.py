"""Mask the credentials in URIs before they are printed or stored."""

import re
from collections.abc import Mapping

_USER_INFO = re.compile(r"://([^\s/@:]*)(:[^\s]*)?@")
_REFERENCE = r"(?:\$\{env:[A-Za-z0-9_]+\})+"
_QUERY_SECRET = re.compile(
    r"(?i)([?&][\w.-]*(?:passw|pwd|secret|token|signature|\bsig|credential|api_?key)[\w.-]*=)"
    rf"(?!{_REFERENCE}(?:[&\s'\"]|$))[^&\s'\"]+"
)
_URI = re.compile(r"://\S+")
_NAMED_ONLY = re.compile(rf"://(?:(?:[^\s/@:]*|{_REFERENCE}):)?{_REFERENCE}@")
_SECRET_NAME = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|API_?KEY|ACCESS_KEY", re.I)
_MIN_SECRET_LENGTH = 6
"""A shorter value would be found by chance in other words."""


def mask(text: str) -> str:
    """Replace the user and the password of each URI in ``text`` by ***, also in its options.

    A URI whose password is a reference such as ``${env:NAME}`` contains no secret, and is not
    changed. Passwords may contain / and @, so everything up to the last @ counts as one. Options
    are ``?password=...`` of a database, and tokens and signatures of signed URLs.
    """
    without_user = _USER_INFO.sub(lambda uri: uri[0] if _is_plain(uri) else "://***@", text)
    return _URI.sub(lambda uri: _QUERY_SECRET.sub(r"\1***", uri[0]), without_user)


def mask_secrets(text: str, environ: Mapping[str, str]) -> str:
    """Mask URIs as ``mask`` does, and the values of variables such as AWS_SECRET_ACCESS_KEY.

    A variable whose value is a path, as RAY_AUTH_TOKEN_PATH has, holds no secret.
    """
    secrets = {
        value
        for name, value in environ.items()
        if _SECRET_NAME.search(name) and not name.endswith(("_PATH", "_FILE"))
        if len(value) >= _MIN_SECRET_LENGTH
    }
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return mask(text)


def _is_plain(found: re.Match[str]) -> bool:
    """Whether a match holds no secret: references alone, or the container of an abfss:// place."""
    is_container = found[2] is None and found.string[: found.start()].endswith(("abfs", "abfss"))
    return is_container or _NAMED_ONLY.fullmatch(found[0]) is not None
