"""What a call costs in clusters and jobs of all sizes: `python -m tests.benchmarks.growth [--nodes 1,10]`.

No-ops, over TLS, on nodes of one slot whose children are stand-ins (see `stand_in`), which share the cores of this
machine with the head and the client. Prints a Markdown table: µs a call, the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from burla import remote_parallel_map
from tests.benchmarks.simulated import Simulation
from tests.benchmarks.stand_in import Simulated

ROUNDS = 3
LONG_S = 30.0  # what takes longer is not repeated


def measure(nodes: int, counts: list[int]) -> list[float]:
    """Return the microseconds that a call takes, for each count of calls."""
    figures: list[float] = []
    with Simulation(nodes) as cluster:
        assert cluster.load().nodes == nodes
        for _ in range(2):
            remote_parallel_map(Simulated(), range(4 * nodes), spinner=False)
        for count in counts:
            seconds: list[float] = []
            for _ in range(ROUNDS):
                began = time.perf_counter()
                assert len(remote_parallel_map(Simulated(), range(count), spinner=False)) == count
                seconds.append(time.perf_counter() - began)
                if seconds[-1] > LONG_S:
                    break
            figures.append(1e6 * statistics.median(seconds) / count)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", default="1,10,100,1000")
    parser.add_argument("--calls", default="1000,10000,100000,1000000,10000000")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    counts = [int(count) for count in options.calls.split(",")]
    print("| nodes | " + " | ".join(f"{count:,} calls" for count in counts) + " |")
    print("| --- |" + " --- |" * len(counts))
    table: dict[int, list[float]] = {}
    for nodes in map(int, options.nodes.split(",")):
        table[nodes] = measure(nodes, counts)
        print(f"| {nodes:,} | " + " | ".join(f"{one:,.2f} µs" for one in table[nodes]) + " |", flush=True)
    if options.json:
        options.json.write_text(json.dumps([[nodes, counts, row] for nodes, row in table.items()]))


if __name__ == "__main__":
    main()
