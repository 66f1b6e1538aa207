"""The messages between client, head, node and child, and the states of a job.

Every message is a frozen dataclass that travels as one pickle; which process sends it stands in the headings. No
message is larger than `MESSAGE_BYTES` by much: larger values travel as a `Blob`, in pieces. An input has one index from
0 to total - 1; a slice is a half-open range of indices within one block, so that splitting and handing back cost
nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PROTOCOL_VERSION = 1
STREAM_OP = "burla"  # the Dask operation that begins a stream of these messages to the head
STOP_OP = "burla_stop"  # a Dask operation with plain arguments, which other versions understand too
MESSAGE_BYTES = 4_000_000  # a 190 MB message stalled a scheduler for 7.5 s, 4 MB pieces for 30 ms
BLOCK_INPUTS = 4096
BLOCK_BYTES = 64_000
BLOB_BYTES = 1_000_000  # a payload from this size on travels as a blob
TIME_BOX_S = 0.05  # a child reports, and hands back what it did not start, this often
POLL_S = 20.0  # the longest that the head keeps a poll waiting
STDOUT, STDERR = 1, 2


class JobState(enum.Enum):
    """Where a job is. `head/jobs.py` holds the table of moves between them."""

    RECEIVING = "receiving"  # inputs arrive; nothing runs before the last one is here
    WAITING = "waiting"  # complete, no slot yet
    RUNNING = "running"
    STOPPING = "stopping"  # failed or cancelled; calls are being ended
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True)
class Blob:
    """A large payload that the head keeps; fetched and stored in pieces."""

    id: str
    size_bytes: int


Payload = bytes | Blob


def inline_bytes(payload: Payload) -> int:
    """Return how many bytes of a message a payload takes: those of a blob stay with the head."""
    return len(payload) if isinstance(payload, bytes) else 0


@dataclass(frozen=True, slots=True)
class Block:
    """Inputs `first` … `first + count - 1`: one pickle of a list.

    With `each`, the items of that list are pickles themselves, loaded when their call starts.
    """

    first: int
    count: int
    each: bool
    payload: Payload


@dataclass(frozen=True, slots=True)
class Slice:
    """Calls `start` … `stop - 1`, all of them of `block`. `alone`: a retry that shares its child with nothing."""

    block: Block
    start: int
    stop: int
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Results:
    """The results of calls `start` … `stop - 1`, in the form of a block's payload."""

    start: int
    stop: int
    each: bool
    payload: Payload


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that raised. `payload`: see `serialize.dump_exception`."""

    index: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Crash:
    """A call that ended its child: by `signal`, or with `exit_code`."""

    index: int
    signal: int | None
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class Output:
    """What call `index` wrote to `stream` (1 or 2): whole lines, or the unfinished last one of a call that ended."""

    index: int
    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence for the user, from the head."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of a job. `error` is the pickle of a BurlaError, for a job that did not end by its own calls."""

    state: JobState
    error: bytes | None = None


Event = Results | Failure | Output | Notice | Ended


@dataclass(frozen=True, slots=True)
class CallContext:
    """What a call sees of its caller: working directory, environment, `sys.path`."""

    cwd: str
    environ: Mapping[str, str]
    sys_path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a job asks for. Sent once to the head, and once to each node that runs calls of it."""

    id: str
    function_name: str
    function: Payload
    context: CallContext
    func_cpu: int = 1
    func_ram_bytes: int | None = None  # None: dynamic
    func_gpu: str | None = None
    image: str | None = None
    max_parallelism: int | None = None
    grow: bool = False
    start_timeout_s: float = 60.0
    depth: int = 0  # 0: called by a user's process; n: called by a call of depth n - 1
    parent: str | None = None  # the job whose call made this one


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A job at this moment; beside the journal, because only the newest one matters."""

    state: JobState
    total: int
    done: int
    running: int
    nodes: int


# client → head --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of a client. `session` is made up by it and kept over reconnects. Reply: `Welcome`."""

    session: str
    version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class Welcome:
    version: int
    closing: bool  # the head is about to end: find or start another


@dataclass(frozen=True, slots=True)
class Beat:
    """From a client or a node, every few seconds, without reply: it still lives."""


@dataclass(frozen=True, slots=True)
class Submit:
    """A new job. With `total` known, these are all its inputs. Reply: `Events`, or an error."""

    spec: JobSpec
    blocks: tuple[Block, ...] = ()
    total: int | None = None


@dataclass(frozen=True, slots=True)
class AddInputs:
    """More blocks, in order. Reply: None, once the head has them."""

    job: str
    blocks: tuple[Block, ...]
    total: int | None = None  # set in the last message: the job may start


@dataclass(frozen=True, slots=True)
class Poll:
    """Ask for events from number `after` on; the head waits for the first. Reply: `Events`."""

    job: str
    after: int
    wait_s: float = POLL_S


@dataclass(frozen=True, slots=True)
class Events:
    """Events `after` … `next - 1` of the journal, and how the job stands."""

    events: tuple[Event, ...]
    next: int
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the job. Reply: None, once no call of it runs."""

    job: str


@dataclass(frozen=True, slots=True)
class Forget:
    """The client has all that it wants of this job. No reply."""

    job: str


@dataclass(frozen=True, slots=True)
class PutPiece:
    """Bytes of a blob, in order. Reply: None."""

    job: str
    blob: str
    data: bytes


@dataclass(frozen=True, slots=True)
class GetPiece:
    """Reply: at most `MESSAGE_BYTES` bytes of the blob, from `offset_bytes` on."""

    job: str
    blob: str
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The client ends, and its attached jobs with it. Reply: None."""


@dataclass(frozen=True, slots=True)
class GetStatus:
    """Reply: `ClusterStatus`."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    id: str
    function_name: str
    snapshot: Snapshot
    age_s: float


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    nodes: tuple[NodeOffer, ...]
    jobs: tuple[JobStatus, ...]
    clients: int
    idle_after_s: float | None
    idle_for_s: float


# node → head ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeOffer:
    """What a node has. `gpus`: our name → how many."""

    id: str
    name: str
    cpus: int
    ram_bytes: int
    gpus: Mapping[str, int] = field(default_factory=dict)
    image: str | None = None


@dataclass(frozen=True, slots=True)
class Join:
    """The first message of a node. Reply: `Joined`. The same id again replaces the earlier membership."""

    offer: NodeOffer
    address: str  # of its Dask worker
    version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class Joined:
    trade_every_s: float


@dataclass(frozen=True, slots=True)
class Trade:
    """What a node has to tell of one job, and what it asks for; one in flight per lease. Reply: `Work`.

    `want`: calls it could take now; `running`: calls that run; `queued`: calls here that have not started, which the
    head may ask back; `held`: slots in use.
    """

    job: str
    news: tuple[Results | Failure | Crash | Output, ...]  # in order: what a call wrote stands before its result
    handed_back: tuple[tuple[int, int], ...]  # (start, stop)
    want: int
    running: int
    queued: int
    held: int
    leases: int = 0  # how many `SetSlots` of this job the node has carried out


@dataclass(frozen=True, slots=True)
class Work:
    """`give_back`: so many of the calls that have not started are wanted elsewhere."""

    slices: tuple[Slice, ...] = ()
    give_back: int = 0


@dataclass(frozen=True, slots=True)
class Released:
    """The node has ended all children of the job. No reply."""

    job: str


@dataclass(frozen=True, slots=True)
class Relay:
    """A message of a child's own client: its call made a nested call. Reply: that message's reply."""

    session: str
    parent: str
    depth: int  # of the call that asks
    message: Any


@dataclass(frozen=True, slots=True)
class RelayEnded:
    """The child is gone: its nested jobs end. No reply."""

    session: str


# head → node ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BeginLease:
    """A lease on this job begins; how large it is, `SetSlots` says. No reply."""

    spec: JobSpec


@dataclass(frozen=True, slots=True)
class SetSlots:
    """Run calls of the job in `slots` slots from now on; fewer than before end when their calls do. No reply."""

    job: str
    slots: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class MoreWork:
    """Slices for a lease that had asked for more than there was. No reply."""

    job: str
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class EndLease:
    """The job is over: end its children, running calls too, then say `Released`. No reply."""

    job: str


# node → child ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prepare:
    """The first message to a child: become a child of this job."""

    job: str
    depth: int
    context: CallContext
    environ: Mapping[str, str]  # on top of the caller's: thread counts, visible GPUs
    cpus: tuple[int, ...]  # affinity; empty: leave it
    function: bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """A slice for a child. `payload` None: of the same block as the piece before."""

    first: int
    each: bool
    payload: bytes | None
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Run:
    """Run these, for `TIME_BOX_S` at most. Reply: `Report`."""

    pieces: tuple[Piece, ...]


# child → node ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Report:
    """What a child did of a `Run`: the first `calls` of its calls, in `seconds`. The rest has not started."""

    results: tuple[Results, ...]
    failures: tuple[Failure, ...]
    calls: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Early:
    """What a `Run` has brought so far, because the call that runs takes long. The `Report` has only the rest."""

    results: tuple[Results, ...]


@dataclass(frozen=True, slots=True)
class Nested:
    """Where a child finds its node for nested calls."""

    fd: int
    job: str
    depth: int
    pid: int  # of the child; a process that it forks would speak on the same socket


nested: Nested | None = None  # set in children only
