"""Errors a user can meet, each with the exit code the command line ends with.

A message is one line: what is wrong, where, and what to do. Nothing else reaches the screen.
"""


class MlxDpoError(Exception):
    """A run failed for a reason that can be named. The base of all errors below."""

    exit_code = 1


class UsageError(MlxDpoError):
    """An option, a config file or a model folder is not as it must be."""

    exit_code = 2


class DataError(MlxDpoError):
    """A preference file or a pair in it can't be used."""

    exit_code = 3


class NonFiniteError(MlxDpoError):
    """A loss or gradient was NaN or infinite; no update was applied."""

    exit_code = 5


class LockedError(MlxDpoError):
    """A run's folder is in use by another process."""

    exit_code = 6


class DiskError(MlxDpoError):
    """A file could not be written; what was there before is untouched."""

    exit_code = 7


class StoppedError(MlxDpoError):
    """A signal ended the run after its state was saved; it can be resumed."""

    exit_code = 75
