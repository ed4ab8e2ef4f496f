"""What obstore's errors mean.

obstore has few classes of errors, and their texts quote URLs, which may contain a signature, and
values of credential files. So only the status, the server's code and known causes are read.
"""

import re

from orchestrator.errors import EnvironmentProblem, OrchestratorError, TryAgain
from orchestrator.proxies import describe_proxy
from orchestrator.storage.cloud_settings import CloudPlace

TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)
_STATUS = re.compile(r"status code: (\d{3})|\(code: (\d{3})\)")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified container does not exist")
_MACHINE_LOGIN = ("/computeMetadata/", "/metadata/identity/", "api-version=2019-08-01")
"""Parts of the URLs at which both clouds' machines get credentials."""
_CAUSES = {
    "Account must be specified": "no storage account is given",
    "Invalid Access Key": "the account key is not valid base64",
    "Unable to open service account file": "the file with the credentials cannot be opened",
    "external_account": "credentials of the type external_account are not supported",
    "Unable to decode service account": "the credentials are no service account or user login",
    "Unable to read service account": "the file with the credentials cannot be read",
    "SAS query pair": "the SAS token is not name=value pairs joined by &",
    "path segment": "a key below it has an empty part or a dot, which obstore cannot list",
}
_GOOGLE_LOGIN = (
    "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account, or run "
    "`gcloud auth application-default login`"
)
_AZURE_LOGIN = (
    "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or "
    "AZURE_STORAGE_CONNECTION_STRING"
)
_GOOGLE_CHECK = (
    "check GOOGLE_APPLICATION_CREDENTIALS, and that its account may use this bucket (the role "
    "Storage Object User)"
)
_AZURE_CHECK = (
    "check AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, that they may use this container "
    "(the role Storage Blob Data Contributor), and this machine's clock"
)


def is_missing_key(text: str) -> bool:
    """Whether the error says that a key does not exist, in a bucket that may exist.

    The answer to a HEAD does not tell a missing bucket from a missing key.
    """
    return _status(text) == 404 and not any(each in text for each in _NO_BUCKET)


def is_past_the_end(text: str) -> bool:
    """Whether the error says that a range starts behind the last byte."""
    return _status(text) == 416 or "Wanted range starting at" in text


def explain(text: str, uri: str, place: CloudPlace) -> OrchestratorError:
    """Return our error for the text of obstore's, with what to do about it."""
    if status := _status(text):
        return _explain_answer(text, status, uri, place)
    login, endpoint = _AZURE_LOGIN if place.is_azure else _GOOGLE_LOGIN, place.endpoint()
    variable = "AZURE_STORAGE_ENDPOINT" if place.is_azure else "GOOGLE_BASE_URL"
    if _asks_machine(text):
        return EnvironmentProblem(f"{uri}: there are no credentials for {endpoint}; {login}")
    if "HTTP error: builder error" in text:
        return EnvironmentProblem(f"{uri}: {endpoint} is not an address; correct {variable}")
    if "HTTP error" in text:
        proxy = describe_proxy(place.endpoint())
        return TryAgain(
            f"{uri} is unreachable at {endpoint}; try again later if the server is restarting, "
            f"otherwise check {variable} and the network{f'; {proxy}' * bool(proxy)}"
        )
    cause = next((ours for theirs, ours in _CAUSES.items() if theirs in text), None)
    return EnvironmentProblem(f"{uri} cannot be used: {cause or 'obstore failed'}; {login}")


def _explain_answer(
    text: str, status: int, uri: str, place: CloudPlace
) -> EnvironmentProblem | TryAgain:
    endpoint = place.endpoint()
    code = found[1] if (found := _CODE.search(text)) else ""
    answer = f"{status} {code}".rstrip()
    if any(each in text for each in _NO_BUCKET):
        what = "container" if place.is_azure else "bucket"
        return EnvironmentProblem(
            f"{uri}: there is no {what} {place.bucket!r} at {endpoint}; create it, or check it"
        )
    if status == 412:
        return TryAgain(f"{uri} was replaced while it was being read")
    if status in TRANSIENT_STATUS:
        return TryAgain(f"{uri}: {endpoint} answered {answer}")
    if _asks_machine(text):
        login = _AZURE_LOGIN if place.is_azure else _GOOGLE_LOGIN
        return EnvironmentProblem(f"{uri}: there are no credentials for {endpoint}; {login}")
    check = _AZURE_CHECK if place.is_azure else _GOOGLE_CHECK
    if proxy := describe_proxy(place.endpoint()):
        check = f"{proxy}; {check}"
    return EnvironmentProblem(f"{uri}: {endpoint} refused with {answer}; {check}")


def _asks_machine(text: str) -> bool:
    """Whether obstore asked the machine for credentials, as the environment has none."""
    return "token request" in text and any(each in text for each in _MACHINE_LOGIN)


def _status(text: str) -> int:
    found = _STATUS.search(text)
    return int(found[1] or found[2]) if found else 0
