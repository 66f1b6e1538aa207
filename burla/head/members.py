"""Who is connected to a head, or was a moment ago: nodes and clients."""

from __future__ import annotations

from dataclasses import dataclass, field

from burla import config
from burla.channel import Channel
from burla.protocol import NodeOffer


@dataclass
class NodeState:
    """A node that has joined."""

    offer: NodeOffer
    channel: Channel
    address: str
    seen: float
    disks: dict[str, bool] = field(default_factory=dict)  # by an origin's digest: whether it shares that disk


@dataclass
class Session:
    """A client, over reconnects. `node`, `parent` and `depth`: it is the client of a child, in a call."""

    id: str
    seen: float
    channel: Channel | None = None
    gone: float | None = None  # since when its connection has been gone
    gone_cleanly: bool = False
    node: str | None = None
    parent: str | None = None
    depth: int = -1
    jobs: set[str] = field(default_factory=set)

    def expired(self, now: float) -> bool:
        """Whether its attached jobs are nobody's any more."""
        if self.node is not None:
            return False  # its node says when the child ends
        if self.gone is not None and self.gone_cleanly and now - self.gone > config.CLIENT_GONE_S:
            return True
        return now - self.seen > config.CLIENT_LEASE_S
