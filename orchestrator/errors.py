"""What can go wrong for a user, as a tree. Every class knows its exit code and whether to retry.

    OrchestratorError
    |- UsageError              2   the command line
    |  `- JobFileError         2   the job file: one line per problem
    |- EnvironmentProblem      3   something outside the job is missing or out of reach
    |- DataError               4   the data set is damaged or is not what the job needs
    |  `- CorruptSample        4   one sample of a set is damaged; training can do without it
    |- TrainingFailed          5   training failed after its retries
    |- Diverged                6   a loss or a gradient is no longer finite
    |  `- Collapsed            6   the generator has collapsed or has lost for good
    |- TryAgain               75   a passing fault: the same command may work later
    `- Stopped               130   someone stopped it

A user's mistake is one of these, with what happened, what was expected and what to do. A
programmer's mistake is an assert.
"""

from typing import ClassVar


class OrchestratorError(Exception):
    """Something that a user can understand and act upon."""

    exit_code: ClassVar[int] = 5
    retry: ClassVar[bool] = False


class UsageError(OrchestratorError):
    """The command line asks for what cannot be done."""

    exit_code = 2


class JobFileError(UsageError):
    """A job file does not say what it must; the message has a line for each problem."""


class EnvironmentProblem(OrchestratorError):
    """Something outside the job is missing, out of reach or not allowed."""

    exit_code = 3


class DataError(OrchestratorError):
    """A data set is damaged, or not what the job needs."""

    exit_code = 4


class CorruptSample(DataError):
    """One sample of a set is damaged: not its bytes, no tar, or no image of the set's size."""


class TrainingFailed(OrchestratorError):
    """Training failed, and its retries are used up."""

    exit_code = 5


class Diverged(OrchestratorError):
    """A loss or a gradient is no longer a finite number."""

    exit_code = 6


class Collapsed(Diverged):
    """All numbers are finite, but samples are all alike, or one network has won for good."""


class TryAgain(OrchestratorError):
    """A passing fault: the same command may work later."""

    exit_code = 75
    retry = True


class Stopped(OrchestratorError):
    """Someone stopped the run."""

    exit_code = 130
