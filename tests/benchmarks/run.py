"""Compare burla with its peers: `python -m tests.benchmarks.run [--rounds 5] [--only one,noop-1k] [--json FILE]`.

Each contestant has a driver process of its own, which stays warm; the measurements of a round alternate between them,
so that whatever else the machine does hits all of them. Two slots each. Prints medians as a Markdown table.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.contestants import available, environment
from tests.benchmarks.drive import Driver, script_s
from tests.benchmarks.workloads import WORKLOADS, Target

SCRIPT_WARM, SCRIPT_COLD = "script", "script-cold"
SCRIPTS = {
    SCRIPT_WARM: ("a script with one call, from start to end", (Target("joblib", 1.5, 0.7),)),
    SCRIPT_COLD: ("… that has to start the cluster", (Target("seconds", 3.0, 1.2),)),
}
NAMES = [*WORKLOADS, *SCRIPTS]
Samples = dict[str, dict[str, list[float]]]  # workload, contestant → seconds; of calls that were fewer, scaled up


def measure(rounds: int, scale: float, only: list[str]) -> Samples:
    """Return one figure a round."""
    samples: Samples = {}
    chosen = {name: WORKLOADS[name] for name in only if name in WORKLOADS}
    ours = ["burla", *(["burla over TLS"] if "one" in chosen else [])]
    peers = {peer for workload in chosen.values() for peer in workload.peers}
    drivers = {name: Driver(name) for name in available() if name in ours or name in peers}
    try:
        for number in range(rounds):
            for name, workload in chosen.items():
                here = [one for one in drivers if one in workload.peers or (one in ours[: 1 + (name == "one")])]
                for who in here[number % len(here) :] + here[: number % len(here)]:
                    count = max(2, int(workload.count * scale))
                    asked = min(count, workload.fewer) if who == "dask" and workload.fewer else count
                    seconds = drivers[who].measure(name, asked) * count / asked
                    samples.setdefault(name, {}).setdefault(who, []).append(seconds)
            for name in [one for one in SCRIPTS if one in only]:
                for who, seconds in _scripts(name).items():
                    samples.setdefault(name, {}).setdefault(who, []).append(seconds)
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    finally:
        for driver in drivers.values():
            driver.close()
    return samples


def _scripts(name: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="burla-bench-", ignore_cleanup_errors=True) as home:
        try:
            cold_s = script_s("burla", home)
            if name == SCRIPT_COLD:
                return {"burla": cold_s}
            script_s("joblib", home)  # what it reads is in memory for both
            return {"burla": script_s("burla", home), "joblib": script_s("joblib", home)}
        finally:
            _stop(home)


def _stop(home: str) -> None:
    subprocess.run([sys.executable, "-m", "burla.cli", "cluster", "stop"], env=environment("burla", home), check=True)


def table(samples: Samples, scale: float) -> str:
    """Return the medians as Markdown, with what they say about burla."""
    lines = ["| workload, 2 workers | burla | beside | at least | aim | |", "|" + " --- |" * 6]
    for name, by in samples.items():
        middle = {who: statistics.median(values) for who, values in by.items()}
        workload = WORKLOADS.get(name)
        title, targets = (workload.title, workload.targets) if workload else SCRIPTS[name]
        count = max(2, int(workload.count * scale)) if workload else 1
        if workload is not None and workload.ideal_s is not None:
            middle["ideal"] = workload.ideal_s(count)
        for target in targets:
            lines += [_row(title, who, middle, target, count) for who in ("burla", "burla over TLS") if who in middle]
            title = ""
    return "\n".join(line for line in lines if line)


def _row(title: str, who: str, middle: dict[str, float], target: Target, count: int) -> str:
    seconds = middle[who]
    if target.against == "lines/s":
        figure, beside, good = count / seconds, "", 1
        shown, ratio = f"{figure:,.0f} lines/s", figure
        asked = [f"≥ {one:,.0f}" if one else "" for one in (target.at_least, target.aim)]
    elif target.against == "seconds":
        shown, beside, ratio, good = _time(seconds), "", seconds, -1
        asked = [f"≤ {one:g} s" if one else "" for one in (target.at_least, target.aim)]
    elif target.against in middle:
        other = middle[target.against]
        ratio, good = seconds / other, -1
        shown, beside = _time(seconds), f"{ratio:.2f} × {target.against} ({_time(other)})"
        asked = [f"≤ {one:g} ×" if one else "" for one in (target.at_least, target.aim)]
    else:
        return ""  # that peer is not installed
    reached = [one is None or good * ratio >= good * one for one in (target.at_least, target.aim)]
    verdict = ("aim" if target.aim is not None and reached[1] else "yes") if reached[0] else "**no**"
    named = title if who == "burla" else f"{title}, over TLS"
    return f"| {named} | {shown} | {beside} | {asked[0]} | {asked[1]} | {verdict} |"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.2 else f"{seconds:.2f} s"


def versions() -> dict[str, str]:
    """Return what was compared, and on what."""
    found: dict[str, str] = {}
    for name in ("burla-dask", "dask", "distributed", "joblib", "ray"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    load = f"{os.getloadavg()[0]:.2f}"
    return found | {
        "python": platform.python_version(), "system": platform.platform(), "cpus": str(os.cpu_count()), "load": load
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--json", type=Path, help="write every sample, and the versions, to this file")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the workloads; 1 is what the table says")
    options = parser.parse_args()
    only = options.only.split(",")
    if unknown := set(only) - set(NAMES):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    before: dict[str, Any] = versions()
    samples = measure(options.rounds, options.scale, only)
    print(table(samples, options.scale))
    print("\n" + ", ".join(f"{name} {version}" for name, version in before.items()))
    if options.json:
        options.json.write_text(json.dumps({"versions": before, "rounds": options.rounds, "samples": samples}))


if __name__ == "__main__":
    main()
