"""What buckets and stores need beyond credentials, from the environment, and what some stores lack.

ORCHESTRATOR_S3_UNSIGNED=1 | BUCKET,...     read public buckets without credentials: all, or these
ORCHESTRATOR_S3_REQUEST_PAYER=requester     pay for requests to a requester-pays bucket
ORCHESTRATOR_S3_SSE=AES256 | aws:kms        encryption that a bucket's policy requires on writes
ORCHESTRATOR_S3_SSE_KMS_KEY_ID=...          key for aws:kms, if it is not the bucket's own
"""

import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

UNSIGNED = "ORCHESTRATOR_S3_UNSIGNED"
REQUEST_PAYER = "ORCHESTRATOR_S3_REQUEST_PAYER"
ENCRYPTION = "ORCHESTRATOR_S3_SSE"
ENCRYPTION_KEY = "ORCHESTRATOR_S3_SSE_KMS_KEY_ID"

VARIABLES = (UNSIGNED, REQUEST_PAYER, ENCRYPTION, ENCRYPTION_KEY)

CONDITIONAL_WRITES = "conditional writes"
CHECKSUMS = "checksums"
CREDENTIALS = "credentials"
_CONSEQUENCES = {
    CONDITIONAL_WRITES: "each is a look and a write, so two writers at once may both succeed",
    CHECKSUMS: "writes go without them",
}
_lacking: set[tuple[str, str]] = set()
"""Endpoints and what this process has found them, or itself, to lack."""
_honoring: set[str] = set()
"""Endpoints that have refused to overwrite an object."""

logger = logging.getLogger(__name__)


def payer() -> dict[str, Any]:
    """Return the argument of each request that says who pays for it."""
    value = os.environ.get(REQUEST_PAYER)
    return {"RequestPayer": value} if value else {}


def encryption() -> dict[str, Any]:
    """Return the arguments of each write that name its encryption."""
    value, key = os.environ.get(ENCRYPTION), os.environ.get(ENCRYPTION_KEY)
    if not value:
        return {}
    return {"ServerSideEncryption": value, **({"SSEKMSKeyId": key} if key else {})}


def is_unsigned(bucket: str) -> bool:
    """Return whether requests to ``bucket`` are to be sent without credentials."""
    names = [name.strip() for name in os.environ.get(UNSIGNED, "").split(",")]
    return bucket in names or names[0].lower() in ("1", "true", "yes")


def client_config(session: Any, endpoint: str, bucket: str) -> Any:
    """Return the part of a client's configuration that depends on the bucket and its store."""
    from botocore import UNSIGNED as NO_SIGNATURE
    from botocore.config import Config

    options: dict[str, Any] = {}
    if lacks(endpoint, CHECKSUMS):
        options["request_checksum_calculation"] = "when_required"
        options["response_checksum_validation"] = "when_required"
    if is_unsigned(bucket):
        options["signature_version"] = NO_SIGNATURE
    elif session.get_credentials() is None:
        _say_once(endpoint, CREDENTIALS, f"no credentials for {endpoint}: reading unsigned")
        options["signature_version"] = NO_SIGNATURE
    else:
        _lacking.discard((endpoint, CREDENTIALS))
    return Config(**options)


def lacks(endpoint: str, feature: str) -> bool:
    """Whether the store was found to lack ``feature``."""
    return (endpoint, feature) in _lacking


def note_lack(endpoint: str, feature: str) -> None:
    """Remember, and say once, that the store lacks ``feature``."""
    _say_once(endpoint, feature, f"{endpoint} does not support {feature}: {_CONSEQUENCES[feature]}")


def honors_conditions(endpoint: str) -> bool:
    """Whether the store has refused to overwrite an object, as a condition asked it to."""
    return endpoint in _honoring


def note_conditions(endpoint: str) -> None:
    """Remember that the store has refused to overwrite an object."""
    _honoring.add(endpoint)


def describe(endpoint: str) -> tuple[str, ...]:
    """Return the settings in use and what the store was found to lack, for a report."""
    found = [f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name)]
    if lacks(endpoint, CREDENTIALS):
        found.append("read without credentials")
    return (*found, *(f"without {each}" for each in _CONSEQUENCES if lacks(endpoint, each)))


def refuses_conditions(error: "ClientError") -> bool:
    """Whether a store refused If-None-Match because it does not know it."""
    status = error.response["ResponseMetadata"].get("HTTPStatusCode")
    code, message = _code(error), str(error.response["Error"].get("Message", ""))
    named = any(word in message.lower() for word in ("if-none-match", "conditional"))
    return status == 501 or code == "NotImplemented" or (status == 400 and named)


def refuses_checksums(error: "ClientError") -> bool:
    """Whether a store refused the checksum or the trailer that newer clients send."""
    status = error.response["ResponseMetadata"].get("HTTPStatusCode")
    message = str(error.response["Error"].get("Message", "")).lower()
    named = any(word in message for word in ("checksum", "trailer", "x-amz-sdk", "aws-chunked"))
    known = _code(error) in ("XAmzContentSHA256Mismatch", "MissingContentLength")
    return status in (400, 411, 501) and (named or known)


def _code(error: "ClientError") -> str:
    return str(error.response["Error"].get("Code", ""))


def _say_once(endpoint: str, feature: str, text: str) -> None:
    if (endpoint, feature) not in _lacking:
        _lacking.add((endpoint, feature))
        logger.warning("%s", text)
