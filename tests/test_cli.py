"""How a command ends, whatever becomes of it: in processes of their own, as a shell starts them."""

from __future__ import annotations

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
