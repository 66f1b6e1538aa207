"""The zygotes of a node, one for each Python that jobs run in."""

from __future__ import annotations

import asyncio
import sys

from burla.node.memory import find_gauge
from burla.node.node import Node
from burla.protocol import NodeOffer


def test_a_zygote_that_a_job_waits_for_is_not_ended_as_unused():
    """The one before it was used until a minute ago, and its end comes while this one starts."""

    async def main() -> None:
        gauge = find_gauge()
        node = Node(NodeOffer(id="node", name="node", cpus=4, ram_bytes=gauge.read().limit_bytes), gauge)
        try:
            waiting = asyncio.ensure_future(node.settings._nursery_of(sys.executable))
            await asyncio.sleep(0)
            ((nursery, _),) = node.settings._nurseries.values()
            while not nursery._ready:
                await asyncio.sleep(0)
            node.settings._end_unused(sys.executable)
            child = await (await waiting).clean_child()
            assert child.nested.fileno() >= 0
        finally:
            node.close()

    asyncio.run(main())
