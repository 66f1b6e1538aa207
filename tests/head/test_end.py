"""A head that ends: nobody is answered out of a store that is closed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from distributed import Security

from burla.channel import Channel, ChannelClosed
from burla.client.connection import DaskTarget
from burla.head.main import QuietScheduler
from burla.head.plugin import HeadPlugin
from burla.protocol import Hello, ListJobs, Submit, Welcome
from tests.head.samples import in_a_loop, spec


async def client(scheduler: QuietScheduler) -> tuple[Channel, asyncio.Future[ChannelClosed]]:
    """Return a channel to the head, and what serves it."""
    channel = Channel(await DaskTarget(scheduler.address, None).open())
    return channel, asyncio.ensure_future(channel.run())


@in_a_loop
async def test_a_head_that_has_ended_answers_nobody_so_that_they_ask_the_next_one(tmp_path: Path):
    """Neither who holds a connection, nor who makes one while the scheduler still listens."""
    plugin = HeadPlugin(tmp_path)
    scheduler = await QuietScheduler(host="127.0.0.1", dashboard=False, plugins=[plugin], security=Security())
    before, serving = await client(scheduler)
    assert isinstance(await before.ask(Hello("session")), Welcome)
    await plugin.close()
    for message in (Submit(spec("job"), ()), ListJobs()):
        with pytest.raises(ChannelClosed):
            await asyncio.wait_for(before.ask(message), 10)
    after, also_serving = await client(scheduler)
    with pytest.raises(ChannelClosed):
        await asyncio.wait_for(after.ask(Hello("another")), 10)
    await asyncio.gather(serving, also_serving)
    await scheduler.close()
