"""Mask the credentials in text before it is printed or stored."""

import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote, unquote

_REFERENCE = r"(?:\$\{env:[A-Za-z0-9_]+\})+"
_USER_INFO = re.compile(
    # One slash is left of two where the address was taken for a path.
    r"(?<!\bmodels)(?<!\bruns)(?P<slashes>:/{1,3})[^\s/@:]*(?::(?P<password>\S{0,1024}))?@"
    r"|(?P<encoded>:/{1,3})[^\s/@:]*(?::|%3a)[^\s/@]{0,1024}%40",
    re.I,
)
_ENCODED_USER_INFO = re.compile(r"(%3a%2f%2f)[^\s/?&]{1,1024}(%40)", re.I)
_NO_SCHEME = re.compile(
    # Also the address of a proxy; but not an image NAME:TAG@sha256:... and not models:/NAME@ALIAS
    rf"(?<![\w.%@{{$:-])((?:{_REFERENCE}|[\w.%+~-]){{1,64}}):(?!/)(?P<password>[^\s@'\"]{{1,200}})@"
    r"(?!sha256:)(?=[\w\[$])"
)
_PLAIN_USER_INFO = re.compile(rf"(?::/+)?(?:(?:[^\s/@:]*|{_REFERENCE}):)?{_REFERENCE}@")
_OPTION = re.compile(r"([?&#;]|%3[FfBb]|%2[36]|(?<![\w%./$-]))([\w.%+-]{1,80}?)(=|%3[Dd])")
_VALUE = re.compile(
    # {} quotes a value of ODBC. Quotes and the like are part of a value that goes on after them.
    r"(?:\{[^{}]*\}|[^&\s'\"},;:.)]|['\"}](?=[\w%])|[,;:.)](?=\S))+"
)
_NO_SECRET = re.compile(rf"(?:{_REFERENCE}|\.{{3,}}|\*{{3}})[,;:.)}}`]?")
"""A reference, or what stands in the place of a value in a message."""
_SECRET_OPTION = re.compile(
    r"(?i)passw|passphrase|pwd|^pass$|secret|token|signature|(?<![a-z])sig(?![a-z])|credential"
    r"|^auth$|(api|access|account|private|shared|secret)[_-]?(access)?[_-]?key"
)
_NO_SECRET_OPTION = re.compile(r"(?i)(file|path|uri|url)$|^tokeni")
_SECRET_WORD = re.compile(
    r"(?i)(^|.*[_.-])(password|passwd|passphrase|pwd|secret|token|signature|sig|credentials?"
    r"|(shared)?access_?signature|(secret|api|(shared)?access|account|private)_?(access_?)?key(_?id)?)"
)
_HEADER = re.compile(r"(?i)\b(basic|bearer)(\s+)(?=\S*\d)[\w+/=.~-]{8,}")
_SECRET_NAME = re.compile(
    r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|API_?KEY|ACCESS_KEY|CONNECTION_STRING"
    r"|_KEY$|_(PASS|PWD|PW)$",
    re.I,
)
_MIN_SECRET_LENGTH = 6
"""A shorter value would be found by chance in other words."""


def mask(text: str) -> str:
    """Replace passwords, tokens and keys in ``text`` by ***.

    These are the user and the password before the @ of an address, with a scheme or without, and
    the values of options such as ``?password=``, ``&X-Amz-Signature=``, ``;PWD=`` and
    ``#access_token=``, all of them percent-encoded or not. A password that is a reference such as
    ``${env:NAME}`` is no secret, and is not changed. Passwords may contain / and @, so everything
    up to the last @ counts as one.
    """
    text = _USER_INFO.sub(lambda uri: uri[0] if _is_plain(uri) else _without_user(uri), text)
    text = _NO_SCHEME.sub(lambda uri: uri[0] if _is_plain(uri) else "***@", text)
    text = _ENCODED_USER_INFO.sub(r"\1***\2", text)
    kept, end = [], 0
    for start, stop in _option_values(text):
        kept += [text[end:start], "***"]
        end = stop
    return _HEADER.sub(r"\1\2***", "".join([*kept, text[end:]]))


def mask_secrets(text: str, environ: Mapping[str, str]) -> str:
    """Mask as ``mask`` does, and also the secrets in ``environ``, wherever they stand.

    Secrets are the values of variables such as AWS_SECRET_ACCESS_KEY, and the passwords in the
    addresses of variables such as MLFLOW_TRACKING_URI and HTTP_PROXY. A variable whose value is a
    path, as RAY_AUTH_TOKEN_PATH has, holds no secret.
    """
    secrets: set[str] = set()
    for name, value in environ.items():
        if _SECRET_NAME.search(name) and not name.endswith(("_PATH", "_FILE")):
            secrets.add(value)
        secrets |= _find_secrets(value)
    forms = {form for secret in secrets for form in _forms(secret)}
    for form in sorted(forms, key=len, reverse=True):
        if len(form) >= _MIN_SECRET_LENGTH:
            text = text.replace(form, "***")
    return mask(text)


def _is_plain(found: re.Match[str]) -> bool:
    """Whether a match holds no secret: references alone, or the container of an abfss:// place."""
    before, address = found.string[: found.start()], found[0].lstrip(":/")
    is_container = before.endswith(("abfs", "abfss")) and address.find("@") == len(address) - 1
    is_container = is_container and ":" not in address
    return is_container or _PLAIN_USER_INFO.fullmatch(found[0]) is not None


def _without_user(uri: re.Match[str]) -> str:
    return f"{uri['slashes']}***@" if uri["slashes"] else f"{uri['encoded']}***%40"


def _option_values(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of the value of each option that is a secret.

    The value of another option may be an address or a connection string, with options of its own.
    """
    position = 0
    while option := _OPTION.search(text, position):
        position = option.end()
        value = _VALUE.match(text, position)
        if value is None or not _is_secret_option(option[1], option[2]):
            continue
        if _NO_SECRET.fullmatch(value[0]) is None:
            yield value.span()
            position = value.end()


def _is_secret_option(before: str, name: str) -> bool:
    """Whether an option after ``before``, which is empty outside of addresses, is a secret."""
    name = unquote(unquote(name))
    if not before:
        return _SECRET_WORD.fullmatch(name) is not None
    return bool(_SECRET_OPTION.search(name)) and not _NO_SECRET_OPTION.search(name)


def _find_secrets(value: str) -> set[str]:
    """Return the passwords and tokens in an address or a connection string."""
    addresses = (*_USER_INFO.finditer(value), *_NO_SCHEME.finditer(value))
    found = {address["password"] or "" for address in addresses}
    options = {value[start:end] for start, end in _option_values(value)}
    # Of a connection string, whose options end with a semicolon, the value is the first part.
    return found | options | {option.partition(";")[0] for option in options}


def _forms(secret: str) -> set[str]:
    """Return a secret as it is, decoded, and as URLs and representations contain it."""
    plain = unquote(secret)
    return {secret, plain, quote(plain, safe=""), quote(plain), repr(plain)[1:-1]}
