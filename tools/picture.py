"""A picture of a command on a terminal: `python -m tools.picture` writes docs/demo.svg.

The command runs on a terminal of 80 columns, and what is left on the screen when it ends becomes an
SVG: a dark window, so that it can be read on light and dark pages. It asks for no font and loads
nothing.

    python -m tools.picture                             mlx_dpo train, on the embedded model
    python -m tools.picture --out FILE.svg -- COMMAND   another one
"""

import argparse
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 80
OUT = Path("docs/demo.svg")
_COMMAND = ("mlx_dpo", "train")
_PLACE = "/Users/me/mlx-dpo"  # shown instead of this folder
_CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])")
# Rich's own frame names a font on a server.
_FRAME = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def run_on_terminal(
    command: Sequence[str],
    width: int,
    *,
    height: int = 50,
    react: Callable[[bytes, int], None] = lambda written, process: None,
) -> tuple[int, str]:
    """Run a command on a new terminal.

    Args:
        command: Program and arguments.
        width: Columns.
        height: Rows.
        react: Called with all that was written, and the process's number, when there is more.

    Returns:
        Its exit code, and every character it wrote.
    """
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        command, stdin=there, stdout=there, stderr=there, env=environment, close_fds=True
    ) as process:
        os.close(there)
        written = bytearray()
        while True:
            try:
                part = os.read(here, 65536)
            except OSError:  # on Linux, when nobody holds the other side any more
                break
            if not part:
                break
            written += part
            react(bytes(written), process.pid)
    os.close(here)
    return process.returncode, written.decode(errors="replace")


def screen_of(written: str) -> list[str]:
    """The lines that a terminal without end shows after all that was written, with their colours.

    Understands what this program and rich write: the cursor moves up, lines are erased.
    """
    lines, row = [""], 0
    position = 0
    for match in re.finditer(r"\x1b\[[?\d;]*[A-Za-z]|\r\n|\n|\r|[^\x1b\r\n]+|\x1b", written):
        part = match[0]
        control = _CONTROL.fullmatch(part)
        if part in ("\n", "\r\n"):
            row, position = row + 1, 0
            if row == len(lines):
                lines.append("")
        elif part == "\r":
            position = 0
        elif control is None or control[2] == "m":
            # A line is written anew from its beginning, or goes on at its end.
            lines[row] = part if position == 0 and control is None else lines[row] + part
            position += 1
        elif control[2] == "A":
            row = max(0, row - int(control[1] or 1))
        elif control[2] == "K":
            lines[row] = ""
    return [line.rstrip() for line in lines]


def picture(lines: Sequence[str], title: str) -> str:
    """The lines as an SVG."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
        for line in lines:
            console.print(Text.from_ansi(line), soft_wrap=True)
        return console.export_svg(title=title, code_format=_FRAME, unique_id="demo")


def main() -> None:
    """Run the command and write its picture."""
    parser = argparse.ArgumentParser(prog="tools.picture", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("command", nargs="*", default=_COMMAND)
    options = parser.parse_args()
    command = list(options.command)
    title = " ".join(command)
    if command[0] == "mlx_dpo":
        command[:1] = [sys.executable, "-m", "mlx_dpo"]
    code, written = run_on_terminal(command, WIDTH)
    lines = [line.replace(str(Path.cwd()), _PLACE) for line in screen_of(written)]
    if code:
        sys.exit(f"{title}: exit code {code}: {lines[-2:]}")
    options.out.write_text(picture(lines, title), encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
