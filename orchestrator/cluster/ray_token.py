"""The token of Ray's clusters, ~/.ray/auth_token, which only its owner may read."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path


def protect_token(environ: Mapping[str, str]) -> None:
    """Withdraw the others' permission to read the token; create it if a new cluster needs one.

    Ray creates it readable for everyone. If it cannot be created here, Ray will say why.
    """
    file = Path(environ.get("HOME") or Path.home(), ".ray", "auth_token")
    with contextlib.suppress(OSError):
        if file.stat().st_uid == os.getuid():
            file.chmod(0o600)
    is_given = environ.get("RAY_AUTH_TOKEN") or environ.get("RAY_AUTH_TOKEN_PATH")
    is_disabled = environ.get("RAY_AUTH_MODE", "token").lower() != "token"
    if file.exists() or is_given or is_disabled or environ.get("RAY_ADDRESS"):
        return
    with contextlib.suppress(OSError):
        file.parent.mkdir(0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent) as new:  # of mode 0600
            new.write(secrets.token_hex(32))
            new.flush()
            os.link(new.name, file)  # whole, and not over that of another process
