"""A valid job, edited and loaded, for the tests of job files."""

import pytest

from orchestrator.errors import JobFileError
from services.fixtures_jobs import Load

VALID = """\
#!/usr/bin/env -S orchestrator run
name: cats
model:
  name: pix2pix
  image_size: 64
data:
  train: cats/train
train:
  batch_size: 16
  epochs: 10
"""


def load_error(load: Load, text: str, *overrides: str, **environ: str) -> str:
    """Load ``text``, which must fail; return the error message."""
    with pytest.raises(JobFileError) as error:
        load(text, *overrides, **environ)
    assert error.value.exit_code == 2
    return str(error.value)


def edit_job(old: str, new: str) -> str:
    """Replace one part of the valid job."""
    assert VALID.count(old) == 1
    return VALID.replace(old, new)
