"""Run notebooks/dpo.ipynb from top to bottom, and keep the result as a notebook and as a page.

    python -m tools.notebook

`MLX_DPO_FAST=1` runs it in small. The page needs no network; on a terminal it is opened.
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from traitlets.config import Config

from mlx_dpo.cli.screen import open_page
from mlx_dpo.files import write_file

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "notebooks" / "dpo.ipynb"
OUT = ROOT / "runs" / "notebook"


def run(notebook: Any) -> str | None:
    """Execute the cells in place; the error of the cell that failed, if one did."""
    started = time.monotonic()

    def say(cell: Any, cell_index: int) -> None:
        # The client's own way to be interrupted ends in an AssertionError.
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
        title = heading(cell)
        if title:
            print(f"{time.monotonic() - started:4.0f} s  {title}", flush=True)

    with TemporaryDirectory() as folder:
        # Sockets in a folder of this user's: nothing listens on a port. macOS wants short names.
        sockets = {"transport": "ipc", "connection_file": f"{folder}/k.json"}
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            config=Config(KernelManager=sockets),
            # What fails in a cell is told anyway; the rest is noise of a kernel that is stopped.
            extra_arguments=["--IPKernelApp.log_level=50"],
            timeout=None,
            on_cell_start=say,
            resources={"metadata": {"path": str(SOURCE.parent)}},
        )
        try:
            client.execute()
        except (CellExecutionError, DeadKernelError) as error:
            return str(error)
    return None


def heading(cell: Any) -> str | None:
    """The title of a section that a Markdown cell begins."""
    first = str(cell.source).partition("\n")[0]
    return first[3:] if cell.cell_type == "markdown" and first.startswith("## ") else None


def page(notebook: Any) -> str:
    """The notebook as a page of HTML, styles included; it loads nothing."""
    imports = {"enabled": True, "remove_cell_tags": {"remove-cell"}}  # nothing to read there
    exporter = HTMLExporter(
        template_name="basic", anchor_link_text="", config=Config(TagRemovePreprocessor=imports)
    )
    body, _ = exporter.from_notebook_node(notebook)
    frame = (SOURCE.parent / "page.html").read_text("utf-8")
    return frame.replace("{{ body }}", body)


def main() -> int:
    """Run, write, and open what was written."""
    notebook: Any = nbformat.read(SOURCE, as_version=4)
    failure = run(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":  # links lead from where the result lies
            cell.source = cell.source.replace("](../", "](../../")
    OUT.mkdir(parents=True, exist_ok=True)
    write_file(OUT / "dpo.ipynb", nbformat.writes(notebook))
    write_file(OUT / "dpo.html", page(notebook))
    shown = os.path.relpath(OUT / "dpo.html")
    if failure is not None:
        print(f"{failure}\nnotebook: a cell failed; {shown} shows where", file=sys.stderr)
        return 1
    print(f"The notebook with its results is {shown}, and dpo.ipynb beside it.")
    if sys.stdout.isatty():
        open_page((OUT / "dpo.html").as_uri())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("notebook: interrupted; nothing was written", file=sys.stderr)
        sys.exit(75)
