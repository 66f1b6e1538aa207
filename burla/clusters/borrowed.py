"""Any Dask scheduler that already runs: our plugin makes it a head, and installs the node side on its workers."""

from __future__ import annotations

from typing import Any

from burla.clusters.rpc import ask_scheduler

ANSWER_S = 10.0


def prepare(address: str, security: Any) -> None:
    """Make the scheduler at `address` a head, unless it is one. Raises OSError if nobody answers there."""
    from distributed.protocol.pickle import dumps

    from burla.head.plugin import PLUGIN_NAME, HeadPlugin

    plugin = dumps(HeadPlugin())
    ask_scheduler(
        address,
        security,
        "register_scheduler_plugin",
        ANSWER_S,
        plugin=plugin,
        name=PLUGIN_NAME,
        idempotent=True,
    )
