"""How a command ends, whatever becomes of it: in processes of their own, as a shell starts them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = [
    "campaign",
    "curves",
    "export",
    "figures",
    "gains",
    "report",
    "reproduce",
    "run",
    "speed",
    "study",
    "table",
    "verify",
]
ROOT = Path(__file__).resolve().parent.parent
FRAME = "import sys; from bench.cli import closed; sys.exit(closed(lambda: {}))"


def _python(*arguments: str, **how: object) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [sys.executable, *arguments],
        text=True,
        stderr=subprocess.PIPE,
        check=False,
        **how,  # type: ignore[call-overload]
    )
    return done


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_option_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib

    main = importlib.import_module(f"bench.{name}").main
    with pytest.raises(SystemExit) as caught:
        main(["--nonsense"])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert said.endswith(" --help tells the options\n")


@pytest.mark.parametrize(
    ("body", "code"),
    [("3", 3), ("sys.exit(4)", 4), ("(_ for _ in ()).throw(KeyboardInterrupt)", 130)],
)
def test_the_exit_code_is_the_commands_or_the_signals(body: str, code: int) -> None:
    done = _python("-c", FRAME.format(body), stdout=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize(("arguments", "closed", "code"), [("list", ">&-", 0), ("--suite none", "2>&-", 2)])
def test_a_closed_stream_is_no_traceback(arguments: str, closed: str, code: int) -> None:
    command = f"{shlex.quote(sys.executable)} -m bench.run {arguments} {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_a_closed_standard_input_is_an_empty_one() -> None:
    code = FRAME.format("len(sys.stdin.read()) + 5 * sys.stdin.isatty()")
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} <&-"
    assert subprocess.run(["sh", "-c", command], cwd=ROOT, check=False).returncode == 0


def test_a_sign_that_the_output_cannot_hold_is_one_line() -> None:
    done = _python("-c", FRAME.format(r"print('\xe9') or 0"), stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2
    assert done.stderr == "error: ascii cannot write '\\xe9' of the output; set PYTHONIOENCODING=utf-8\n"


def test_a_message_is_one_line_whatever_a_name_holds(capsys: pytest.CaptureFixture[str]) -> None:
    from bench.run import main

    assert main(["--suite", "a\nb.yaml"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_name_that_is_no_text_is_printed_as_its_bytes() -> None:
    body = r"print('\udcff') or 0"
    done = subprocess.run([sys.executable, "-c", FRAME.format(body)], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"\xff\n")


def test_a_reader_that_leaves_is_no_error() -> None:
    body = "[print('x' * 1000) for _ in range(1000)] and 0"
    with subprocess.Popen(["head", "-c", "1"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as head:
        assert head.stdin is not None
        done = _python("-c", FRAME.format(body), stdout=head.stdin)
        head.stdin.close()
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_output_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        done = _python("-c", FRAME.format("print('x') or 0"), stdout=full)
    assert done.returncode == 2
    assert done.stderr == "error: cannot write the output (No space left on device); free some space\n"


def test_a_full_standard_error_leaves_the_exit_code() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    command = f"{shlex.quote(sys.executable)} -m bench.run --suite none 2>/dev/full"
    assert subprocess.run(["sh", "-c", command], cwd=ROOT, check=False).returncode == 2


def test_a_process_started_without_standard_error_has_one_too() -> None:
    """Else the first file that a trial's process opens would be its standard error."""
    code = FRAME.format("__import__('subprocess').run(['sh', '-c', 'echo heard >&2']).returncode")
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=ROOT, check=False).returncode == 0


def test_a_signal_while_a_command_still_imports_is_no_traceback() -> None:
    done = _python("-c", "import sys; sys.argv = ['-m']; import bench; raise KeyboardInterrupt", cwd=ROOT)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_outside_its_environment_is_one_line(name: str) -> None:
    done = _python("-S", "-m", f"bench.{name}", cwd=ROOT, stdout=subprocess.PIPE)  # without any installed library
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: \w+ is not installed for .*; make install, then \. \.venv/bin/activate\n", done.stderr)


def test_any_other_uncaught_error_is_told_as_python_tells_it() -> None:
    program = "import sys; sys.argv = ['-m']; import bench{}; 1 / 0"
    for told, fails in (("ZeroDivisionError", ""), ("ModuleNotFoundError", ", bench.nothing")):
        done = _python("-c", program.format(fails), cwd=ROOT)
        assert done.returncode == 1 and done.stderr.startswith("Traceback") and told in done.stderr
    assert not _python("-c", "import bench, sys; assert sys.excepthook is sys.__excepthook__", cwd=ROOT).stderr
