"""The `s3:` section of a job file: what buckets need beyond an endpoint and credentials."""

import json
from typing import Literal

from pydantic import Field, model_validator

from orchestrator.bounds import Name, Text
from orchestrator.config.section import Section


class S3Section(Section):
    """Needs of S3 buckets; each key replaces an environment variable, see docs/operations.md."""

    unsigned: list[Name] | None = Field(default=None, min_length=1, max_length=1_000)
    """Names of buckets to read without credentials, as public ones allow."""
    request_payer: Literal["requester"] | None = None
    """Pay for the requests to requester-pays buckets."""
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    """Encryption that the policy of a bucket requires of each write, also for MLflow's files."""
    encryption_key: Text | None = None
    """Key for aws:kms, if it is not the bucket's own."""

    @model_validator(mode="after")
    def _key_has_encryption(self) -> "S3Section":
        if self.encryption_key is not None and self.encryption in (None, "AES256"):
            raise ValueError(
                "encryption_key needs `encryption: aws:kms`; add it, or remove the key"
            )
        return self

    def variables(self) -> dict[str, str]:
        """Return the environment variables that these keys stand for."""
        found: dict[str, str] = {}
        if self.unsigned is not None:
            found["ORCHESTRATOR_S3_UNSIGNED"] = ",".join(self.unsigned)
        if self.request_payer is not None:
            found["ORCHESTRATOR_S3_REQUEST_PAYER"] = self.request_payer
        if self.encryption is not None:
            found["ORCHESTRATOR_S3_SSE"] = self.encryption
            arguments: dict[str, str] = {"ServerSideEncryption": self.encryption}
            if self.encryption_key is not None:
                found["ORCHESTRATOR_S3_SSE_KMS_KEY_ID"] = self.encryption_key
                arguments["SSEKMSKeyId"] = self.encryption_key
            found["MLFLOW_S3_UPLOAD_EXTRA_ARGS"] = json.dumps(arguments)
        return found
