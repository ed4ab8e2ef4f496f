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


def problems(load: Load, text: str, *overrides: str, **environ: str) -> str:
    """The message with which ``text`` is refused."""
    with pytest.raises(JobFileError) as caught:
        load(text, *overrides, **environ)
    assert caught.value.exit_code == 2
    return str(caught.value)


def edited(old: str, new: str) -> str:
    """The valid job with one piece exchanged."""
    assert VALID.count(old) == 1
    return VALID.replace(old, new)
