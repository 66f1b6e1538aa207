"""The commands about one cluster: the local one, or one in a cloud."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from burla import config
from burla.errors import InvalidValue


def add(groups: Any) -> None:
    """Add the commands to a parser's group."""
    cluster = groups.add_parser("cluster", help="make, look at, change and end clusters: the local one, and in a cloud")
    actions = cluster.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_create(actions)
    listing = actions.add_parser("list", help="the clusters in clouds, and the machines that they have now")
    listing.set_defaults(run=_list)
    status = actions.add_parser("status", help="show nodes, jobs, and when it ends by itself (exit code 3: not up)")
    status.add_argument("name", nargs="?", metavar="NAME", help="a cluster in a cloud; without: the one in use")
    status.set_defaults(run=_status)
    scale = actions.add_parser("scale", help="have so many nodes in a cluster in a cloud")
    scale.add_argument("name", metavar="NAME")
    scale.add_argument("nodes", type=int, metavar="N")
    scale.set_defaults(run=_scale)
    stop = actions.add_parser(
        "stop",
        help="end it, and the jobs that run on it; of the local one, detached ones go on at its next start",
        description="End the local cluster; or with NAME all machines of a cluster in a cloud, with all jobs and "
        "results there. Its name and settings stay: burla cluster create NAME boots it again.",
    )
    stop.add_argument("name", nargs="?", metavar="NAME", help="a cluster in a cloud; without: the local one")
    stop.set_defaults(run=_stop)
    delete = actions.add_parser("delete", help="end all machines of a cluster in a cloud, and forget its name and keys")
    delete.add_argument("name", metavar="NAME")
    delete.set_defaults(run=_delete)
    _add_gc(actions)
    _add_sharing(actions)
    for parser in (stop, delete):
        parser.add_argument("--force", action="store_true", help="also if jobs are unfinished there")


def _add_create(actions: Any) -> None:
    create = actions.add_parser(
        "create",
        help="boot a cluster in a cloud",
        description="Boot a cluster in a cloud and keep it under a name, for burla use NAME. It bills until its "
        "machines end, which they do by themselves when idle. If a step fails, what was made is removed. A cluster of "
        "this name that was stopped, or has ended by itself, is booted again, as it was but for what is given.",
    )
    create.add_argument("name", metavar="NAME")
    create.add_argument("--cloud", help="aws, gcp or azure")
    create.add_argument("--region", help="the cloud's name of it (none: what the cloud's own configuration says)")
    create.add_argument("--machine", metavar="TYPE", help="the cloud's name of the kind of machine that nodes are")
    create.add_argument("--nodes", type=int, default=1, metavar="N", help="how many to begin with (1)")
    create.add_argument("--image", help="the container image of the nodes (python:X.Y-slim)")
    create.add_argument(
        "--idle-minutes",
        type=float,
        metavar="M",
        help=f"machines end after so long idle ({config.CLOUD_IDLE_MINUTES:g})",
    )
    create.add_argument("--spot", action="store_true", default=None, help="nodes that the cloud may take back")
    create.add_argument("--disk-gb", type=int, metavar="N", help=f"of each machine ({config.CLOUD_DISK_GB})")
    create.add_argument("--role", help="the cloud's identity that machines have, for your own data (none)")
    create.add_argument(
        "--store",
        metavar="URL",
        help="a folder that outlives machines, such as s3://bucket/results: finished results are copied there, and "
        "read from there when the head has gone (none)",
    )
    create.add_argument(
        "--keep-results-hours",
        type=float,
        metavar="H",
        help="an idle head stays so long for results of a detached job that nobody has read, or that could not be "
        f"copied to --store ({config.KEEP_RESULTS_HOURS:g}; 0: not at all)",
    )
    create.set_defaults(run=_create)


def _add_gc(actions: Any) -> None:
    gc = actions.add_parser(
        "gc",
        help="find what was left in a cloud by clusters that are gone, and delete it (exit code 4: found, not deleted)",
        description="Find machines, disks and networks that a burla of yours has made in a cloud and that no living "
        "head claims, such as those of a creation that was killed; with --yes, delete them. What is of others, of a "
        "cluster that is up or just being made is never touched.",
    )
    gc.add_argument("--cloud", help="aws, gcp or azure (none: all)")
    gc.add_argument("--region", help="the cloud's name of it (none: all)")
    gc.add_argument("--yes", action="store_true", help="delete what is found")
    gc.add_argument("--json", action="store_true", help="print one JSON document")
    gc.set_defaults(run=_gc)


def _add_sharing(actions: Any) -> None:
    admit = actions.add_parser(
        "admit", help="let this machine connect to a cluster in a cloud, from its address of now"
    )
    admit.add_argument("name", metavar="NAME")
    admit.add_argument("cidr", nargs="?", metavar="CIDR", help="other addresses, such as 198.51.100.0/24")
    admit.set_defaults(run=_admit)
    export = actions.add_parser(
        "export",
        help="write a cluster in a cloud to an encrypted file, for another machine",
        description="Write a cluster with its keys to a file, encrypted with a passphrase. Who has both runs code on "
        "the cluster, and reads what is there.",
    )
    export.add_argument("name", metavar="NAME")
    export.add_argument("file", metavar="FILE")
    export.set_defaults(run=_export)
    importing = actions.add_parser("import", help="use a cluster that another machine has exported, under its name")
    importing.add_argument("file", metavar="FILE")
    importing.set_defaults(run=_import)
    for parser in (export, importing):
        parser.add_argument("--passphrase-file", metavar="PATH", help="its first line is the passphrase (none: asks)")


def _create(chosen: argparse.Namespace) -> int:
    from burla.cloud_api import create_cluster

    create_cluster(
        chosen.name,
        cloud=chosen.cloud,
        region=chosen.region,
        machine=chosen.machine,
        nodes=chosen.nodes,
        image=chosen.image,
        idle_minutes=chosen.idle_minutes,
        spot=chosen.spot,
        disk_gb=chosen.disk_gb,
        role=chosen.role,
        store=chosen.store,
        keep_results_hours=chosen.keep_results_hours,
    )
    return 0


def _list(_: argparse.Namespace) -> int:
    from burla.cloud_state import cloud_clusters

    print(cloud_clusters())
    return 0


def _status(chosen: argparse.Namespace) -> int:
    from burla.cluster_state import cluster_status

    state = cluster_status(chosen.name)
    print(state)
    return 0 if state.up else 3


def _scale(chosen: argparse.Namespace) -> int:
    from burla.cloud_api import scale_cluster

    scale_cluster(chosen.name, chosen.nodes)
    return 0


def _stop(chosen: argparse.Namespace) -> int:
    from burla.cluster_state import stop_cluster

    later = stop_cluster(chosen.name, force=chosen.force)
    if chosen.name is not None:
        print(f"{chosen.name} has ended.")
        return 0
    if later is None:
        print("The local cluster is not up.")
        return 3
    print("The local cluster has ended.")
    if later:
        print(f"When it is next started, these detached jobs go on: {', '.join(later)} (burla jobs starts it).")
    return 0


def _delete(chosen: argparse.Namespace) -> int:
    from burla.cloud_api import delete_cluster

    delete_cluster(chosen.name, force=chosen.force)
    return 0


def _gc(chosen: argparse.Namespace) -> int:
    from burla.cloud_garbage import collect_garbage

    garbage = collect_garbage(cloud=chosen.cloud, region=chosen.region, delete=chosen.yes)
    print(json.dumps(asdict(garbage), indent=2) if chosen.json else garbage)
    for where in garbage.not_searched:
        print(f"burla: not searched: {where}", file=sys.stderr)
    if not garbage.found or garbage.deleted:
        return 0
    print("burla: nothing was deleted; to delete all of this: the same with --yes", file=sys.stderr)
    return 4


def _admit(chosen: argparse.Namespace) -> int:
    from burla.cloud_api import admit_client

    admit_client(chosen.name, chosen.cidr)
    return 0


def _export(chosen: argparse.Namespace) -> int:
    from burla.clusters import bundle, record

    cluster = record.get(chosen.name)
    data = bundle.seal(cluster, _passphrase(chosen.passphrase_file, twice=True))
    bundle.write(Path(chosen.file), data)
    print(f"{chosen.file} holds {cluster.name}. There: burla cluster import {chosen.file}")
    return 0


def _import(chosen: argparse.Namespace) -> int:
    from burla.cloud_api import admit_client
    from burla.clusters import bundle
    from burla.errors import CloudError, MissingExtra

    data = bundle.read(Path(chosen.file))
    cluster, keys = bundle.unseal(data, _passphrase(chosen.passphrase_file))
    bundle.keep(cluster, keys)
    print(f"{cluster.name} is known here: burla use {cluster.name}")
    try:
        admit_client(cluster.name)
    except (CloudError, MissingExtra) as error:  # without credentials of the cloud it can only be used
        print(f"burla: this machine is not admitted yet: {error}", file=sys.stderr)
        print(f"burla: where {cluster.name} was created: burla cluster admit {cluster.name} CIDR", file=sys.stderr)
    return 0


def _passphrase(path: str | None, twice: bool = False) -> str:
    if path is not None:
        return Path(path).read_text().partition("\n")[0]
    first = getpass.getpass("Passphrase: ")
    if twice and getpass.getpass("Again: ") != first:
        raise InvalidValue("the passphrases differ.")
    return first
