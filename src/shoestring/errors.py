"""Exceptions a user can meet; each message names the value, the limit and the next step.

The command line turns `exit_code` into the process status (see the contract in docs/contracts.md).
"""

from typing import Any


class ShoestringError(Exception):
    """Root of all our exceptions: the work failed for a reason we can name."""

    exit_code = 1


class BadInput(ShoestringError, ValueError):
    """What the user gave cannot be used: a file, a key, a value, a model name."""

    exit_code = 2


class ConfigError(BadInput):
    """The run file is wrong; the message carries file and line."""


class DataError(BadInput):
    """The data cannot be used; the message carries file and line."""


class ModelError(BadInput):
    """The model is unknown, unreadable, or cannot do what was asked."""


class DoesNotFit(BadInput):
    """Predicted or measured memory exceeds what the device has."""


class MissingDependency(BadInput, ImportError):
    """An optional package is needed; the message carries the install line."""


class RunFolderError(ShoestringError, OSError):
    """The run folder cannot be written, or another process holds it."""


class EndpointError(ShoestringError):
    """An OpenAI-compatible endpoint refused, timed out, or answered nonsense."""


class SourceError(ShoestringError):
    """A price source refused, timed out, or sent something other than what it documents."""


class LaunchError(ShoestringError):
    """A machine or service where a run is launched cannot be reached, refused, or answered nonsense."""


class TrainingError(ShoestringError):
    """Training cannot go on: non-finite loss, empty mask, adapter without effect."""


class BudgetStopped(ShoestringError):
    """The next step would pass the budget; the run can be resumed with a larger one."""

    exit_code = 4


class Interrupted(ShoestringError):
    """A signal or Ctrl-C stopped the run; the same command continues it."""

    exit_code = 5


def require(module: str, *, extra: str, purpose: str) -> Any:
    """Import and return an optional module.

    Raises: MissingDependency with the install line.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependency(
            f"{purpose} needs the package {module!r}, which does not import here ({error}); "
            f"install it with: pip install 'shoestring[{extra}]'"
        ) from error
