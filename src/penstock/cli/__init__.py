"""The command line: one file per command, imported when it is called. stdout carries the result, stderr the rest."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

import click

import penstock
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from collections.abc import Sequence

# name → what it does; kept here so that --help imports nothing
COMMANDS = {
    "init": "Write a commented settings file for a model.",
    "build": "From a source to a verified, measured, chosen deployment.",
    "check": "Look at an untrusted model without running anything of it.",
    "export": "Write the ONNX model of a source, proved against it.",
    "inspect": "Show what a model is made of and what it costs.",
    "optimize": "Rewrite the graph until no pass finds anything.",
    "convert": "Say a model in another opset, newer or older.",
    "quantize": "Make an int8 model with calibration data.",
    "search": "Find the fastest quantized model within an accuracy budget.",
    "qat": "Train a module on the grids of its int8 model.",
    "write": "Write a model as a TensorFlow Lite file.",
    "verify": "Hold a model's outputs against its source.",
    "bisect": "Find the first node where two backends part.",
    "evaluate": "Measure accuracy on labelled data.",
    "bench": "Time models side by side.",
    "select": "Choose again from a finished build under other limits.",
    "diff": "Tell how two builds differ, and why.",
    "cache": "Show and prune the cache of transforms.",
    "doctor": "Tell what this machine has, and what is missing.",
    "env": "Environments of runtimes that can't live beside others.",
    "list": "Show backends, passes, quantizers, frontends and data sets.",
    "explain": "Explain the id of an error, or an operator.",
    "schema": "Print the JSON Schema of the settings file.",
    "completion": "Print the script that lets a shell complete.",
    "zoo": "Reference networks: show them, train them.",
}


MOST_TEXT = 1000  # characters of a line of an error, which may quote a file


class LazyGroup(click.Group):
    """A group that knows its commands' names and help lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of a build."""
        # not list(…): the command `list` is a module of this package and takes that name
        return [*COMMANDS, *_third_party()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            if cmd_name not in _third_party():
                return None
            from penstock import registry

            found: click.Command = registry.load("commands", cmd_name)  # type: ignore[assignment]  # it has looked
            return found
        command: click.Command = importlib.import_module(f"penstock.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for an unknown one offer the nearest name."""
        import difflib

        if args and args[0] not in COMMANDS and not args[0].startswith("-") and args[0] not in _third_party():
            known = self.list_commands(ctx)
            near = difflib.get_close_matches(args[0], known, 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Commands: {', '.join(known)}."
            raise click.UsageError(f"There is no command {args[0]!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items()])
        if theirs := _third_party():
            with formatter.section("Commands of plug-ins"):
                formatter.write_dl([(name, f"from {origin}") for name, origin in theirs.items()])


def _third_party() -> dict[str, str]:
    """Map the commands of plug-ins to where they come from; nothing of theirs is imported."""
    from penstock import registry

    return registry.origins("commands")


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 fine, 1 a gate said no, 2 wrong usage or input, 3 something is missing here, 130 stopped "
    "(143 by SIGTERM, 129 by a hang-up).",
)
@click.version_option(penstock.__version__, prog_name="penstock")
def group() -> None:
    """From a trained model to a verified, measured, chosen deployment."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    from penstock import deferred

    deferred.install()
    with contextlib.suppress(Exception):  # where stderr is no file
        faulthandler.enable(all_threads=False)  # a fault in somebody's native code says where it was called
    arguments = [*(sys.argv[1:] if arguments is None else arguments)]
    _stop_tidily()
    code = run(arguments)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    # runtimes with thread pools may take long, or crash, when the interpreter tears them down
    sys.stderr.flush()
    os._exit(code) if "onnxruntime" in sys.modules or "openvino" in sys.modules else sys.exit(code)


_stopped_by: list[int] = []
PATIENCE_S = 10.0


def _stop_tidily() -> None:
    """Let SIGTERM and SIGHUP stop the work as Ctrl-C does, so that scratch folders and workers go with it.

    Which one came is kept, Ctrl-C's too: a library whose import is interrupted may raise another error in its place.
    A signal can't interrupt a runtime's own loop: after ten seconds the process ends whatever it is in.
    """

    def stop(number: int, frame: object) -> None:
        _stopped_by.append(number)
        raise KeyboardInterrupt

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # nohup has it ignored
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, stop)
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def watch() -> None:
        deadly = {getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")}
        while (number := os.read(read, 1)) and number[0] not in deadly:
            pass
        time.sleep(PATIENCE_S)
        os._exit(128 + number[0])

    threading.Thread(target=watch, daemon=True).start()


def run(arguments: list[str]) -> int:
    """Run the command line; return the exit code. Every error a user may see becomes its message here."""
    verbose = any(a == "--verbose" or (a[:1] == "-" and a[1:2] != "-" and set(a[1:]) <= set("qv") and "v" in a)
                  for a in arguments)  # fmt: skip
    try:
        result = group.main(arguments, prog_name="penstock", standalone_mode=False)
        return int(result) if isinstance(result, int) else 0
    except PenstockError as error:
        if verbose:
            traceback.print_exc()
        if _stopped_by:
            return _stopped(arguments)
        _tell(error, arguments)
        return error.exit_code
    except click.ClickException as error:
        if "--json" in arguments:
            _tell(PenstockError("bad-usage", error.format_message()), arguments)
        else:
            error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        return _stopped(arguments)
    except BrokenPipeError:
        _let_go_of_stdout()
        return 0
    except OSError as error:
        if verbose:
            traceback.print_exc()
        if _while_printing(error):
            _let_go_of_stdout()
            what = f"the result can't be written: {os.strerror(error.errno or 0)}"
            _tell(PenstockError("file-error", what, where="standard output", do="free some space there"), [])
            return 2
        from penstock.errors import StoreError
        from penstock.store import explained

        try:
            with explained("a file that had to be written"):
                raise error
        except StoreError as told:
            _tell(told, arguments)
        return 2
    except MemoryError:
        _tell(PenstockError("out-of-memory", "there is not enough memory", do="use a smaller model or data"), arguments)
        return 2
    except Exception as error:  # a fault of ours: said in one line, the rest behind -v
        if verbose:
            traceback.print_exc()
        if _stopped_by:
            return _stopped(arguments)
        what, do = f"{type(error).__name__}: {error}", "run again with -v and report what it shows"
        if owner := _third_party().get(arguments[0] if arguments else ""):
            what = f"the command {arguments[0]!r} of {owner} failed: {what}"
            _tell(PenstockError("plug-in-failed", what, do=f"{do} to the authors of {owner}"), arguments)
        else:
            _tell(PenstockError("internal", f"internal error: {what}", do=do), arguments)
        return 2


def _stopped(arguments: list[str]) -> int:
    """Say that the work was stopped; return the exit code of the signal that stopped it."""
    with contextlib.suppress(OSError):  # after a hang-up there may be no terminal
        kept = (
            "the same command goes on where it stopped" if "build" in arguments[:1] else "nothing half-written is left"
        )
        click.echo(f"stopped; {kept}", err=True)
    return 128 + _stopped_by[0] if _stopped_by else 130


def _while_printing(error: OSError) -> bool:
    """Tell whether an error came up in the functions that print; a library's own write may name no file either."""
    places = {("click.utils", "echo"), ("rich.console", "print")}
    return any((frame.f_globals.get("__name__"), frame.f_code.co_name) in places
               for frame, _ in traceback.walk_tb(error.__traceback__))  # fmt: skip


def _let_go_of_stdout() -> None:
    """Write nothing more there, at the end neither."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(error: PenstockError, arguments: list[str]) -> None:
    if "--json" in arguments:
        click.echo(json.dumps({"schema": 1, "error": error.to_json()}, indent=2))
        return
    from penstock.cli._console import printable

    first, *rest = (printable(line, limit=MOST_TEXT) for line in error.lines())
    plain = bool(os.environ.get("NO_COLOR"))
    click.echo(("error: " if plain else click.style("error: ", fg="red", bold=True)) + first, err=True)
    for line in rest:
        click.echo(line, err=True)
    from penstock import explanations

    if error.id != "bad-usage" and error.id in explanations.everything():  # a plug-in's own has none
        click.echo(f"  more:  penstock explain {error.id}", err=True)
