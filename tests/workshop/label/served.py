"""A labelling page that runs in a process of its own, as a person would start it."""

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit


class Served:
    """`mlx_dpo data label` in a folder.

    Attributes:
        address: The page, with its token.
        port: Where it listens.
        token: What the page sends with each request.
    """

    def __init__(self, folder: Path, *args: str) -> None:
        command = [sys.executable, "-m", "mlx_dpo", "data", "label", *args]
        path = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        said = []
        while line := self.process.stdout.readline():
            said.append(line)
            if "http://" in line:
                break
        self.address = line.strip()
        if not self.address:
            self.kill()
            raise AssertionError("".join(said))
        parts = urlsplit(self.address)
        assert parts.port is not None
        self.port, self.token = parts.port, parts.fragment

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
