"""Explain what botocore raises: the cause, and what to do; no text contains a secret."""

import os
from typing import TYPE_CHECKING

from orchestrator.addresses import shown_endpoint
from orchestrator.errors import EnvironmentProblem, OrchestratorError, TryAgain
from orchestrator.proxies import describe_proxy
from orchestrator.storage import s3_settings

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

AWS_ENDPOINT = "https://s3.amazonaws.com"
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)
TRANSIENT_CODES = ("RequestTimeout",)
"""Answers of a server that is busy or shutting down; S3 sends RequestTimeout with status 400."""
REGION_HEADER = "x-amz-bucket-region"
"""Sent with an answer to a request at another region than the bucket's."""


class ProxyProblem(TryAgain):
    """The proxy is out of reach: retried like an outage, but in the end a setting to correct."""

    exit_code = 3


def endpoint_url() -> str:
    """Return the endpoint that the environment sets, or that of AWS."""
    return next(filter(None, map(os.environ.get, ENDPOINT_VARIABLES)), AWS_ENDPOINT)


def endpoint() -> str:
    """Return the endpoint for messages. Raises EnvironmentProblem if it is not valid."""
    if (url := endpoint_url()) == AWS_ENDPOINT:
        return "AWS"
    return shown_endpoint(url, next(filter(os.environ.get, ENDPOINT_VARIABLES)))


def code_and_status(error: "ClientError") -> tuple[str, int]:
    """Return the code and the HTTP status of an answer."""
    status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
    return str(error.response["Error"].get("Code", "")), int(status)


def explain_failure(error: Exception, uri: str) -> OrchestratorError:
    """Explain a request to ``uri`` that got no answer, or that could not be made."""
    from botocore.exceptions import ConnectionError, HTTPClientError, ProxyConnectionError

    kind = type(error).__name__
    if isinstance(error, ProxyConnectionError):
        url = endpoint_url()
        return ProxyProblem(f"{uri} is unreachable at {endpoint()}: {describe_proxy(url)}")
    if isinstance(error, ConnectionError | HTTPClientError):
        # A gateway that restarts looks like a wrong endpoint, so training retries both.
        return TryAgain(
            f"{uri} is unreachable at {endpoint()} ({kind}); try again later if the server is "
            "restarting, otherwise check AWS_ENDPOINT_URL_S3 and the network"
        )
    return EnvironmentProblem(
        f"{uri} cannot be used at {endpoint()} ({kind}); check AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL_S3"
    )


def explain_refusal(error: "ClientError", uri: str, bucket: str) -> OrchestratorError:
    """Explain an answer that refuses a request to ``uri``."""
    code, status = code_and_status(error)
    if code == "NoSuchBucket":
        return EnvironmentProblem(
            f"{uri}: there is no bucket {bucket!r} at {endpoint()}; create it, or check the name "
            "and AWS_ENDPOINT_URL_S3"
        )
    if status in TRANSIENT_STATUS or code in TRANSIENT_CODES:
        return TryAgain(f"{uri}: {endpoint()} answered {status} {code}")
    if code.startswith("ExpiredToken"):
        return EnvironmentProblem(
            f"{uri}: the credentials for {endpoint()} have expired ({code}); renew "
            "AWS_SESSION_TOKEN and its keys, or log in again to the profile in AWS_PROFILE"
        )
    if region := error.response["ResponseMetadata"].get("HTTPHeaders", {}).get(REGION_HEADER):
        return EnvironmentProblem(
            f"{uri}: the bucket is in the region {region} ({status} {code}); set "
            f"AWS_DEFAULT_REGION={region}"
        )
    what = f"{uri}: {endpoint()} refused with {status} {code}"
    return EnvironmentProblem(_explain_denial(what, code))


def _explain_denial(what: str, code: str) -> str:
    """Add to ``what`` was refused the causes that the answer allows, and the remedies."""
    if s3_settings.lacks(endpoint(), s3_settings.CREDENTIALS):
        return (
            f"{what} to a request without credentials; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if code == "RequestTimeTooSkewed":
        return f"{what}; this machine's clock is wrong: synchronise it, for example with chrony"
    if proxy := describe_proxy(endpoint_url()):
        what = f"{what}; {proxy}"
    missing = []
    if not s3_settings.payer():
        missing.append(f"{s3_settings.REQUEST_PAYER}=requester for a requester-pays bucket")
    if not s3_settings.encryption():
        name = s3_settings.ENCRYPTION
        missing.append(f"{name}=AES256 or aws:kms if its policy requires encryption")
    if not os.environ.get(s3_settings.UNSIGNED):
        missing.append(f"{s3_settings.UNSIGNED}=1 for a public bucket")
    settings = f"; or set {', '.join(missing)} (in a job: `s3:`)" if missing else ""
    return (
        f"{what}; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), and that "
        f"they may use this bucket{settings}"
    )
