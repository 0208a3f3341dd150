"""The command ``arrcoc-sam``: one thin module a command, and what errors look like.

Nothing here imports torch: commands import what they need when they run, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from arrcoc_sam._version import __version__
from arrcoc_sam.cli.analyze import analyze
from arrcoc_sam.cli.app import app as page
from arrcoc_sam.cli.atlas import atlas
from arrcoc_sam.cli.cache import cache
from arrcoc_sam.cli.calibrate import calibrate
from arrcoc_sam.cli.checkpoints import checkpoints
from arrcoc_sam.cli.console import print_notes
from arrcoc_sam.cli.demo import demo
from arrcoc_sam.cli.evaluate_iou import evaluate_iou
from arrcoc_sam.cli.filter import filter_masks
from arrcoc_sam.cli.record import recorded
from arrcoc_sam.cli.score import score
from arrcoc_sam.cli.segment import segment
from arrcoc_sam.cli.train import train
from arrcoc_sam.cli.validate import validate
from arrcoc_sam.cli.video import video
from arrcoc_sam.errors import ArrcocSamError, explain, no_room

__all__ = ["app", "run"]

# What a wrong option raises; the class has no public name in every release of Typer.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell has it: 128 and the signal's number."""

app = typer.Typer(
    name="arrcoc-sam",
    help="Measure, filter and train attention with SAM's whole, part and subpart masks and its predicted IoU.",
    epilog="Errors: one line, exit 2. Bad files inside a folder: a table of them, the rest done, exit 3.",
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # paragraphs of docstrings flow
)
app.command()(demo)
app.command()(analyze)
app.command()(atlas)
app.command()(cache)
app.command()(segment)
app.command()(score)
app.command("filter")(filter_masks)
app.command()(validate)
app.command()(calibrate)
app.command("evaluate-iou")(evaluate_iou)
app.command()(video)
app.command("app")(page)
app.add_typer(checkpoints, name="checkpoints")
app.add_typer(train, name="train")


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(f"arrcoc-sam {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False,
) -> None:
    """Measure, filter and train attention with SAM's whole, part and subpart masks and its predicted IoU."""
    del version, debug  # the first has a callback, the second is taken out by run() wherever it stands


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and answer its exit code: 0, 1 for a fault of ours, 2 for bad input, 3 for bad files.

    Args:
        arguments: The words after ``arrcoc-sam``; those of the process by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options_end = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:options_end]
    words = [word for i, word in enumerate(words) if word != "--debug" or i >= options_end]
    try:
        with recorded(words):
            command = typer.main.get_command(app)
            code = command.main(words or ["--help"], prog_name="arrcoc-sam", standalone_mode=False)
        sys.stdout.flush()
    except ArrcocSamError as error:
        return _fail(str(error), 2, debug=debug)
    except _UsageError as error:
        return _fail(_usage(error), 2, debug=debug)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain once more when it flushes stdout at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if isinstance(error, OSError) and no_room(error):  # of one of the libraries that write to output folders
            came = f"{error.filename or 'a file'} can't be written ({os.strerror(error.errno or 0)})"
            return _fail(explain(came, "room for it", "free some of the disk, or name another place"), 2, debug=debug)
        message = f"{type(error).__name__}: {error}".rstrip(". ")
        return _fail(
            f"{message}. A fault of arrcoc-sam: run it again with --debug and report what it says", 1, debug=debug
        )
    if code == INTERRUPTED:  # newer releases of Typer answer the code, older ones raise
        return _fail("interrupted", INTERRUPTED, debug=False)
    print_notes(succeeded=True)
    return code if isinstance(code, int) else 0


def _usage(error: Any) -> str:
    """What was wrong with the words of the command line, and where help is."""
    command = "arrcoc-sam" if error.ctx is None else error.ctx.command_path
    said = error.format_message().rstrip(".")
    return f"{said}{'' if said.endswith('?') else '.'} See: {command} --help"


def _fail(message: str, code: int, *, debug: bool) -> int:
    print_notes(succeeded=False)
    if debug:
        import traceback

        traceback.print_exc()
    # One line whatever the message holds, and no markup: file names may contain anything.
    print("error:", " ".join(message.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(run())
