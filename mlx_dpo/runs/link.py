"""The link between the ranks of a run: how long a sum over it takes, measured by short ones.

Run as a program this is one of the ranks; the first prints what it measured.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from mlx_dpo.errors import MlxDpoError, PeerError
from mlx_dpo.runs.launcher import Hosts, Ranks

SMALL, LARGE = 1 << 8, 1 << 22  # numbers of a message
SHARE = 0.85  # of the ideal speed-up, from which several ranks are called worth it
_TIMES = 7


@dataclass(frozen=True)
class Link:
    """What a sum over all ranks takes.

    Attributes:
        ranks: How many there are.
        latency: Seconds of a small one.
        bandwidth: Bytes a second of a large one.
    """

    ranks: int
    latency: float
    bandwidth: float

    def seconds(self, num_bytes: float, messages: int) -> float:
        """Of one step: its messages, and what they hold together."""
        return messages * self.latency + num_bytes / self.bandwidth

    def least_step(self, seconds: float, share: float) -> float:
        """Least seconds of a step in one process that give a share of the ideal speed-up.

        Args:
            seconds: Of the sums of a step.
            share: Of a speed-up by the number of ranks; 1 / ranks is as fast as one.
        """
        return seconds * share * self.ranks / (1 - share)


def measure_link(hosts: Hosts, tell: Callable[[str], None]) -> Link:
    """Start the ranks, and let them sum.

    Raises:
        PeerError: If they have other versions, or don't find each other; what they said was told.
    """
    ranks = Ranks(hosts, [sys.executable, "-m", __name__], tell, stdout=subprocess.PIPE)
    code, said = ranks.wait(), ranks.said()
    if code:
        line = f"the link was not measured: a rank ended with exit code {code}"
        raise PeerError(line, code if code > 0 else 1)
    return Link(**json.loads(said))


def main() -> None:
    """Be one of the ranks."""
    import mlx.core as mx
    import numpy as np

    from mlx_dpo.runs.group import joined, same_start

    mx.set_default_device(mx.cpu)
    with joined() as peers:
        same_start(peers, None, {})

        def median(size: int) -> float:
            numbers, seconds = np.ones(size, np.float32), []
            for _ in range(_TIMES):
                peers.table("a short sum", np.ones(SMALL, np.float32))  # all are there
                begin = time.perf_counter()
                peers.table("a sum", numbers)
                seconds.append(time.perf_counter() - begin)
            return statistics.median(seconds)

        small, large = median(SMALL), median(LARGE)
        bandwidth = LARGE * 4 / max(large - small, 1e-9)
        if peers.rank == 0:
            # Each measured sum is a meeting and a message.
            print(json.dumps(asdict(Link(peers.size, small / 2, bandwidth))), flush=True)


if __name__ == "__main__":
    try:
        main()
    except MlxDpoError as error:
        print(f"mlx_dpo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
