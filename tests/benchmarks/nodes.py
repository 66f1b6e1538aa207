"""How many nodes one head serves: `python -m tests.benchmarks.nodes [--nodes 1000] [--calls 100000]`.

The head is real, in a process of its own, and so are Dask's workers and TLS; children are stand-ins (see `stand_in`).
They share the cores of this machine with the head and the client. Prints a Markdown table, a row for each size.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from burla import remote_parallel_map
from tests.benchmarks.simulated import Simulation
from tests.benchmarks.stand_in import Simulated

LONG_S = 1.0
IDLE_S = 5.0


def measure(nodes: int, calls: int) -> dict[str, Any]:
    """Return what so many nodes cost."""
    with Simulation(nodes) as cluster:
        for _ in range(2):
            remote_parallel_map(Simulated(), range(4 * nodes), spinner=False)
        cluster.load()
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            began = time.perf_counter()
            results = remote_parallel_map(Simulated(LONG_S, prints=True), range(nodes), spinner=False)
            print_s = time.perf_counter() - began - LONG_S
        printed = cluster.load()
        lines = shown.getvalue().splitlines()
        assert results == list(range(nodes)) and len(lines) == nodes
        slots = len({line.rpartition(" ")[2] for line in lines})
        began = time.perf_counter()
        assert remote_parallel_map(Simulated(LONG_S), range(calls), spinner=False) == list(range(calls))
        long_s = time.perf_counter() - began
        worked = cluster.load()
        time.sleep(IDLE_S)
        idle = cluster.load()
    return {
        "nodes": nodes,
        "slots that printed": slots,
        "prints_s": print_s,
        "prints_stall_s": printed.stall_s,
        "calls": calls,
        "calls_s": long_s,
        "ideal_s": LONG_S * -(-calls // nodes),
        "calls_stall_s": worked.stall_s,
        "calls_cpu": worked.cpu,
        "idle_cpu": idle.cpu,
        "loads": [asdict(one) for one in (printed, worked, idle)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", default="125,250,500,1000")
    parser.add_argument("--calls", type=int, help="of 1 s each; none given: 100 for each node")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print(
        "| nodes | a print from each slot, beside its 1 s | longest stall of the head "
        "| calls of 1 s | beside the ideal | longest stall | CPU of the head | … when idle |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for nodes in map(int, options.nodes.split(",")):
        row = measure(nodes, options.calls or 100 * nodes)
        rows.append(row)
        print(
            f"| {nodes:,} | {row['prints_s']:.2f} s ({row['slots that printed']:,} slots) "
            f"| {1e3 * row['prints_stall_s']:.0f} ms | {row['calls']:,} | {row['calls_s'] / row['ideal_s']:.3f} × "
            f"| {1e3 * row['calls_stall_s']:.0f} ms | {row['calls_cpu']:.0%} | {row['idle_cpu']:.0%} |",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
