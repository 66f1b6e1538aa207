"""The clusters that this user knows, and which of them is in use."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

from burla.client import choice
from burla.clusters import local, registry
from burla.clusters.registry import LOCAL, Entry
from burla.clusters.rpc import ask_scheduler
from burla.display.table import html_table, text_table
from burla.errors import BurlaError

LOOK_S = 2.0
COLUMNS = ("name", "address", "kind", "up", "in use")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster as it was when it was looked at.

    `name` may be empty. `kind`: "local"; "dask": a scheduler that somebody else runs; or the cloud that it is in.
    `in_use`: who chose it for this process, or empty.
    """

    name: str
    address: str
    kind: str
    up: bool
    in_use: str


class Clusters(Sequence[Cluster]):
    """Clusters, the local one first; shows as a table."""

    def __init__(self, clusters: list[Cluster]):
        self._clusters = clusters

    @overload
    def __getitem__(self, index: int) -> Cluster: ...
    @overload
    def __getitem__(self, index: slice) -> list[Cluster]: ...
    def __getitem__(self, index: int | slice) -> Cluster | list[Cluster]:
        return self._clusters[index]

    def __len__(self) -> int:
        return len(self._clusters)

    def _rows(self) -> list[tuple[str, ...]]:
        return [(one.name, one.address, one.kind, "yes" if one.up else "no", one.in_use) for one in self._clusters]

    def __repr__(self) -> str:
        return text_table(COLUMNS, self._rows())

    def _repr_html_(self) -> str:
        return html_table(COLUMNS, self._rows())


def clusters() -> Clusters:
    """Return the local cluster, those with a name, and the one in use, as they are now."""
    used = choice.chosen()
    found: list[tuple[Entry, Any]] = [(one, one.security) for one in registry.entries()]
    if used.target is not None and used.name not in [one.name for one, _ in found]:
        target = used.target
        found.append((Entry(target.address), lambda: target.security))
    with concurrent.futures.ThreadPoolExecutor(max_workers=16) as pool:
        up = list(pool.map(lambda pair: _is_up(pair[0].address, pair[1]), found))
    ready = local.find()
    here = Cluster(
        LOCAL, ready.address if ready else "", LOCAL, ready is not None, used.why if used.target is None else ""
    )
    return Clusters(
        [here]
        + [
            Cluster(one.name, one.address, one.kind, answers, used.why if _is(used, one) else "")
            for (one, _), answers in zip(found, up, strict=True)
        ]
    )


def _is(used: choice.Choice, one: Entry) -> bool:
    return used.target is not None and used.name == one.name and used.target.address == one.address


def _is_up(address: str, security: Any) -> bool:
    try:
        ask_scheduler(address, security(), "identity", LOOK_S)
    except (OSError, BurlaError):  # a missing certificate, too
        return False
    return True
