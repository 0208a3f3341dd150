from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

import arrcoc_sam.cli.segment_job
from arrcoc_sam._version import __version__
from arrcoc_sam.cli.main import app

Command = Callable[..., Any]


def test_help_answers_without_torch() -> None:
    code = (
        "import sys; from arrcoc_sam.cli.main import run; "
        "words = (['--help'], ['analyze', '--help'], ['checkpoints', '--help'], ['--version']); "
        "codes = [run(each) for each in words]; "
        "heavy = {'torch', 'numpy', 'matplotlib', 'pandas', 'skimage', 'timm'} & set(sys.modules); "
        "sys.exit(f'{codes} {heavy}' if any(codes) or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("demo", "analyze", "segment", "checkpoints"):
        assert name in done.stdout


def options_of(command: Any) -> Iterator[tuple[str, str]]:
    """Name and help of every option of a command and of those below it."""
    for below in getattr(command, "commands", {}).values():
        yield from options_of(below)
    yield from ((each.name, each.help) for each in command.params if getattr(each, "help", None))


def test_help_of_an_option_makes_sense_alone() -> None:
    found = list(options_of(typer.main.get_command(app)))
    assert len(found) > 100
    assert [each for each in found if each[1].split()[0] in ("Of", "So", "Whose")] == []


def test_version(command: Command) -> None:
    answer = command("--version")
    assert (answer.code, answer.out) == (0, f"arrcoc-sam {__version__}\n")


def test_the_package_runs_as_a_module() -> None:
    words = [sys.executable, "-m", "arrcoc_sam", "segment", "missing.png", "--point", "1,1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: missing.png")


def test_no_words_show_the_help(command: Command) -> None:
    answer = command()
    assert answer.code == 0
    assert "Usage" in answer.out


@pytest.mark.parametrize("place", [0, 1, 3])
def test_debug_anywhere_adds_the_traceback(command: Command, place: int) -> None:
    words = ["segment", "missing.png", "--point", "1,1"]
    words.insert(place, "--debug")
    answer = command(*words)
    assert answer.code == 2
    assert "Traceback" in answer.err
    assert "ImageReadError" in answer.err
    assert answer.err.splitlines()[-1].startswith("error: missing.png does not exist")


def test_a_fault_of_ours_is_one_line_too(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("inside\nout")

    monkeypatch.setattr(arrcoc_sam.cli.segment_job.SegmentJob, "run", fail)
    answer = command("segment", "x.png", "--point", "1,1")
    assert answer.code == 1
    assert "KeyError" in answer.error
    assert "--debug" in answer.error


def test_a_full_disk_is_no_fault_of_ours(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device")

    monkeypatch.setattr(arrcoc_sam.cli.segment_job.SegmentJob, "run", fail)
    answer = command("segment", "x.png", "--point", "1,1")
    assert answer.code == 2
    assert answer.error.startswith("error: a file can't be written (No space left on device); expected room for it.")


def test_an_interruption_says_so(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(arrcoc_sam.cli.segment_job.SegmentJob, "run", interrupt)
    answer = command("segment", "x.png", "--point", "1,1")
    assert answer.code == 130
    assert answer.error == "error: interrupted"
