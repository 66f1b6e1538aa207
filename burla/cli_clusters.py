"""The commands about which cluster is in use."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import Any


def add(groups: Any) -> None:
    """Add the commands to a parser's group."""
    use = groups.add_parser(
        "use",
        help="choose the cluster of all your processes; without CLUSTER: show which one it is, and why",
        description="Choose the cluster that calls go to where neither burla.use() nor BURLA_CLUSTER says another. "
        "Without CLUSTER: show which one is in use, and who said so.",
    )
    use.add_argument("cluster", nargs="?", metavar="CLUSTER", help="a name, the address of a Dask scheduler, or: local")
    use.add_argument("--name", help="keep an address under this name")
    for option in ("--tls-ca-file", "--tls-client-cert", "--tls-client-key"):
        use.add_argument(option, metavar="FILE", help="a PEM file, for an address tls://… (none: your Dask config)")
    use.set_defaults(run=_use)
    clusters = groups.add_parser("clusters", help="the clusters that you know, whether they are up, which is in use")
    clusters.add_argument("--json", action="store_true", help="print one JSON document")
    clusters.set_defaults(run=_clusters)


def _use(chosen: argparse.Namespace) -> int:
    from burla.client import choice
    from burla.clusters import registry

    files = (chosen.tls_ca_file, chosen.tls_client_cert, chosen.tls_client_key)
    address = chosen.cluster is not None and registry.is_address(chosen.cluster)
    if (chosen.name or any(files)) and not address:
        print("burla: --name and --tls-… go with an address, such as tls://host:8786", file=sys.stderr)
        return 2
    if chosen.cluster is not None:
        entry = (
            registry.entry(chosen.cluster, *files, name=chosen.name or "") if address else registry.find(chosen.cluster)
        )
        if entry is not None:
            choice.find(entry.address, entry.security())
            if chosen.name:
                registry.save(entry)
        registry.keep(entry)
        if os.environ.get(choice.VARIABLE):
            print(f"burla: the variable {choice.VARIABLE} comes first: unset it", file=sys.stderr)
    used = choice.chosen()
    print(f"{used}: {used.why}")
    return 0


def _clusters(chosen: argparse.Namespace) -> int:
    from burla.known import clusters

    found = clusters()
    print(json.dumps([asdict(one) for one in found], indent=1) if chosen.json else found)
    return 0
