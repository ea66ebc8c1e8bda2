"""Entry point: parse, call the command, turn every ending into an exit code and one screen of words."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from types import FrameType
from typing import Any, NoReturn

from ..errors import Interrupted, ShoestringError
from .output import emit, only_json

INTERRUPTED_CODE = 5
_TYPER_INTERRUPTED = 130  # typer turns KeyboardInterrupt into this exit code
CONTINUE = "interrupted; finished stages and checkpoints are kept: run the same command again to continue"


def main(argv: list[str] | None = None) -> NoReturn:
    """The `shoestring` command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    status = run(arguments)
    # A Ctrl-C that leaves an exec of source, which is how dataclasses are made, marks the interpreter to end by SIGINT
    # whatever its exit code (CPython, run_eval_code_obj); evaluating source again takes the mark away.
    exec("")
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    debug = "--debug" in arguments or os.environ.get("SHOESTRING_DEBUG", "") not in ("", "0")
    arguments = [a for a in arguments if a != "--debug"]
    is_json = "--json" in arguments
    with only_json(is_json):
        try:
            status = _call(arguments)
            sys.stdout.flush()
            return status
        except BrokenPipeError:
            # The reader (head, less) went away: nothing to say, and nobody to say it to.
            with open(os.devnull, "w") as devnull:
                os.dup2(devnull.fileno(), sys.stdout.fileno())
            return 1
        except KeyboardInterrupt:
            return _fail(Interrupted(CONTINUE), is_json, debug)
        except ShoestringError as error:
            return _fail(error, is_json, debug)
        except Exception as error:
            if hasattr(error, "format_message"):  # typer's usage errors, by whatever class its version has
                return _usage(error, is_json)
            if type(error).__name__ == "Abort":  # what older versions make of Ctrl-C
                return _fail(Interrupted(CONTINUE), is_json, debug)
            return _crash(error, is_json, debug)


def _call(arguments: list[str]) -> int:
    from .commands import app

    previous = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, _terminate)
    except ValueError:  # not in the main thread: whoever called us owns the signals
        previous = None
    try:
        status: Any = app(args=arguments or ["--help"], prog_name="shoestring", standalone_mode=False)
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)
    if status == _TYPER_INTERRUPTED:
        raise KeyboardInterrupt
    return status if isinstance(status, int) else 0


def _terminate(signum: int, frame: FrameType | None) -> None:
    """SIGTERM ends a run the way Ctrl-C does: resumable."""
    raise KeyboardInterrupt


def _fail(error: ShoestringError, is_json: bool, debug: bool) -> int:
    """Say what went wrong in words; the exception knows its exit code."""
    if debug:
        traceback.print_exception(error)
    _say("" if isinstance(error, Interrupted) else "error: ", str(error))
    return _finish(type(error).__name__, str(error), error.exit_code, is_json)


def _usage(error: Any, is_json: bool) -> int:
    """A command line that cannot be parsed: what is wrong, and where help is."""
    message = error.format_message()
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "shoestring"
    _say("error: ", f"{message}\nTry '{path} --help'.")
    return _finish("UsageError", message, 2, is_json)


def _crash(error: Exception, is_json: bool, debug: bool) -> int:
    """An error we did not foresee: short words, the traceback in a file."""
    text = "".join(traceback.format_exception(error))
    first_line = (str(error).strip().splitlines() or [""])[0]
    message = f"unexpected {type(error).__name__}: {first_line[:300]}"
    if debug:
        sys.stderr.write(text)
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="shoestring-error-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
        message += f"\nThe traceback is in {file.name}; finished stages are kept, the same command continues them."
    except OSError as second:
        message += f"\nThe traceback could not be saved ({second.strerror}); SHOESTRING_DEBUG=1 shows it."
    _say("error: ", message)
    return _finish(type(error).__name__, message, 1, is_json)


def _finish(kind: str, message: str, exit_code: int, is_json: bool) -> int:
    if is_json:
        emit({"error": {"type": kind, "message": message, "exit_code": exit_code}})
    return exit_code


def _say(head: str, message: str) -> None:
    """Head and message on standard error, control characters of hostile file names made visible."""
    shown = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in message)
    sys.stderr.write(f"{head}{shown}\n")
    sys.stderr.flush()
