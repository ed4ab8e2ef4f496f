"""Errors that a user can act on. Each class has an exit code, and whether a retry may help.

Messages state what happened, what was expected and what to do. A programming error is an assertion
error instead.
"""

from typing import ClassVar


class OrchestratorError(Exception):
    """Base class of errors that a user can act on."""

    exit_code: ClassVar[int] = 5
    retry: ClassVar[bool] = False


class UsageError(OrchestratorError):
    """The command line is not valid, or asks for something impossible."""

    exit_code = 2


class JobFileError(UsageError):
    """A job file has mistakes; the message has one line for each."""


class EnvironmentProblem(OrchestratorError):
    """Something outside the job is missing, unreachable or not permitted."""

    exit_code = 3


class DataError(OrchestratorError):
    """A dataset is corrupt, or does not fit the job."""

    exit_code = 4


class CorruptSample(DataError):
    """One sample is corrupt: a wrong checksum, no valid tar, or no image of the set's size."""


class TrainingFailed(OrchestratorError):
    """Training failed, and all retries are used up."""

    exit_code = 5


class Diverged(OrchestratorError):
    """A loss or a gradient is not finite."""

    exit_code = 6


class Collapsed(Diverged):
    """All values are finite, but all samples look alike, or one network has won for good."""


class TryAgain(OrchestratorError):
    """A transient failure: the same command may work later."""

    exit_code = 75
    retry = True


class Superseded(OrchestratorError):
    """Another driver has taken over the run: this process may write nothing more to it."""

    exit_code = 75


class Stopped(OrchestratorError):
    """The run was stopped by a signal or a command."""

    exit_code = 130
