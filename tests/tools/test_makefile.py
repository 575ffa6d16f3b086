"""Which Python the Makefile takes, and what it says where MLX has no wheels. Programs are faked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NAMES = ("python3.14", "python3.13", "python3.12", "python3.11", "python3", "python")
# Runs what it is asked to as on another machine; instead of an environment it writes its name.
PYTHON = """#!/bin/sh
if [ "$1" = -m ]; then mkdir -p "$3" && basename "$0" > "$3/made-by"; exit; fi
exec {python} -c 'import platform, sys
sys.platform, sys.version_info = "{platform}", {version}
platform.machine = lambda: "{machine}"
exec(sys.argv[1])' "$2"
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


class Machine:
    """A machine with a system and Pythons of the names that the Makefile looks for."""

    def __init__(self, root: Path) -> None:
        self.root, self.bin = root, root / "bin"
        self.bin.mkdir()
        for name in NAMES:
            self.write(name, "#!/bin/sh\nexit 127\n")

    def write(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def python(
        self, name: str, machine: str, platform: str = "linux", version: tuple[int, int] = (3, 12)
    ) -> None:
        text = PYTHON.format(
            python=sys.executable, machine=machine, platform=platform, version=version
        )
        self.write(name, text)

    def mac(self, version: str) -> None:
        self.write("uname", "#!/bin/sh\necho Darwin\n")
        self.write("sw_vers", f"#!/bin/sh\necho {version}\n")

    def make(self, *arguments: str) -> tuple[int, list[str], Path]:
        """Exit code, lines on stdout, and the environment that was asked for."""
        venv = self.root / "venv"
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "MAKEFLAGS")}
        done = subprocess.run(
            ["make", "--silent", f"VENV={venv}", *arguments, f"{venv}/.made"],
            cwd=ROOT,
            env=environment | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.splitlines(), venv


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_newest_python_that_fits_makes_the_environment(machine: Machine) -> None:
    machine.python("python3.13", "x86_64")
    machine.python("python3.12", "x86_64")
    code, _, venv = machine.make()
    assert code == 0
    assert (venv / "made-by").read_text() == "python3.13\n"


def test_a_python_that_is_named_goes_before_those_on_the_path(machine: Machine) -> None:
    machine.python("python3.13", "x86_64")
    machine.python("python", "x86_64")
    code, _, venv = machine.make("PYTHON=python")
    assert code == 0
    assert (venv / "made-by").read_text() == "python\n"


def test_a_python_that_is_named_and_too_old_is_refused(machine: Machine) -> None:
    machine.python("python3.13", "x86_64")
    machine.python("python3", "x86_64", version=(3, 9))
    code, lines, venv = machine.make("PYTHON=python3")
    assert code != 0
    assert lines == ["PYTHON=python3 is no Python 3.11 or newer (on a Mac, for arm64)."]
    assert not venv.exists()


def test_macos_13_is_told_what_it_needs(machine: Machine) -> None:
    machine.mac("13.7.8")
    machine.python("python3", "arm64", "darwin")
    code, lines, venv = machine.make()
    assert code != 0
    assert lines == ["mlx-dpo needs macOS 14 or newer, and this is 13.7.8."]
    assert not venv.exists()


def test_an_intel_python_on_a_mac_is_passed_over(machine: Machine) -> None:
    machine.mac("26.1")
    machine.python("python3.14", "x86_64", "darwin")
    machine.python("python3.11", "arm64", "darwin")
    code, _, venv = machine.make()
    assert code == 0
    assert (venv / "made-by").read_text() == "python3.11\n"


def test_a_mac_with_nothing_but_an_intel_python_gets_one_line(machine: Machine) -> None:
    machine.mac("15.3")
    machine.python("python3", "x86_64", "darwin")
    code, lines, _ = machine.make()
    assert code != 0
    assert lines == [
        "mlx-dpo needs Python 3.11 or newer (on a Mac, for arm64), and none was found on the PATH."
    ]
