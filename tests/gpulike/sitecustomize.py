"""Python imports this first where its folder is on PYTHONPATH: children of the GPU-like tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))

from tests import gpulike

gpulike.install()
