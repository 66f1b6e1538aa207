"""The messages between client, head, node and child, and the states of a job.

Every message is a frozen dataclass that travels as one pickle; which process sends it stands in the headings. No
message is larger than `MESSAGE_BYTES` by much: larger values travel as a `Blob`, in pieces. An input has one index from
0 to total - 1; a slice is a half-open range of indices within one block, so that splitting and handing back cost
nothing.
"""

from __future__ import annotations

import enum
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PROTOCOL_VERSION = 2
STREAM_OP = "burla"  # the Dask operation that begins a stream of these messages to the head
# these have plain arguments and replies, which other versions understand too
STOP_OP = "burla_stop"  # the Dask operation that ends an own head
LEAVE_OP = "burla_leave"  # the one that makes a head leave a scheduler that somebody else runs
GET_PACKAGE_OP = "burla_get_package"  # a head of ours gives its nodes our package
PUT_PACKAGE_OP = "burla_put_package"  # a machine that is to be a head takes it (named in clusters/bootstrap.py too)
NODES_OP = "burla_nodes"  # the nodes that have joined, with their slots in use
NEEDED_OP = "burla_needed"  # the names of unfinished jobs
HEAD_KEY = "burla-head"  # of Dask's metadata: which version the head of a scheduler is
MESSAGE_BYTES = 4_000_000  # a 190 MB message stalled a scheduler for 7.5 s, 4 MB pieces for 30 ms
BLOCK_INPUTS = 4096
BLOCK_BYTES = 64_000
BLOB_BYTES = 1_000_000  # a payload from this size on travels as a blob
SLOWEST = 5  # calls that take long are named, this many
TIME_BOX_S = 0.05  # a child reports, and hands back what it did not start, this often
POLL_S = 20.0  # the longest that the head keeps a poll waiting
STDOUT, STDERR = 1, 2
ANY_GPU = "any"  # a `func_gpu` that every GPU fits
MISSING = "burla_missing"  # an attribute of exceptions: ("path" or "variable", name) of what a node does not have
PARTS = "parts"  # in the place of a job's id: blobs that jobs share, named by the hash of their content


def python_tag() -> str:
    """Return which Python this is, such as `cpython 3.11`: pickled functions run on no other."""
    return f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"


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
    """A large payload that the head keeps; fetched and stored in pieces. `crc`: `zlib.crc32` of the whole."""

    id: str
    size_bytes: int
    crc: int


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


LITTLE = 0.1  # of a node; calls that have no more are in nobody's way


@dataclass(frozen=True, slots=True)
class Evicted:
    """A call that was ended for want of memory, when it had `peak_bytes`.

    `fixed`: it was over `limit_bytes`, its `func_ram`. Else the node ran short of `limit_bytes`, its own, while
    `beside` other calls ran there, which had `others_bytes`. `left_bytes` were there before the call began: what
    earlier calls of its process had left.
    """

    index: int
    peak_bytes: int
    limit_bytes: int
    beside: int
    others_bytes: int
    left_bytes: int
    fixed: bool

    @property
    def alone(self) -> bool:
        """Whether nothing beside it was in its way."""
        return self.fixed or self.others_bytes <= LITTLE * self.limit_bytes


@dataclass(frozen=True, slots=True)
class Output:
    """What call `index` wrote to `stream` (1 or 2): whole lines, or the unfinished last one of a call that ended."""

    index: int
    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Outputs:
    """What several calls wrote, of `start` … `stop - 1` and perhaps not all of them: see `outputs`."""

    start: int
    stop: int
    packed: bytes


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence for the user, from the head."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of a job. `error` is the pickle of a BurlaError, for a job that did not end by its own calls."""

    state: JobState
    error: bytes | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """The outcome of calls `start` … `stop - 1` was in the store, and cannot be read any more."""

    start: int
    stop: int
    what: str


Event = Results | Failure | Output | Outputs | Notice | Ended | Lost


class Kind(enum.IntFlag):
    """Kinds of events, for who wants only some of them."""

    RESULTS = 1
    FAILURE = 2
    OUTPUT = 4
    NOTICE = 8
    ENDED = 16
    ALL = 31


KIND_OF: dict[type[Event], Kind] = {
    Results: Kind.RESULTS,
    Lost: Kind.RESULTS,
    Failure: Kind.FAILURE,
    Output: Kind.OUTPUT,
    Outputs: Kind.OUTPUT,
    Notice: Kind.NOTICE,
    Ended: Kind.ENDED,
}


@dataclass(frozen=True, slots=True, repr=False)
class Variables:
    """Environment variables; their values are not shown, so that they do not get into logs."""

    values: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Variables({', '.join(self.values)})"

    def and_these(self, others: Variables) -> Variables:
        """Return these variables and others; of two with one name, the other one."""
        return Variables({**self.values, **others.values})


@dataclass(frozen=True, slots=True)
class Origin:
    """The machine of a client, as a node can tell whether it has the same disk: a file that only this user reads.

    `digest`: of the content of the file at `path`; `executable`: the client's Python.
    """

    path: str
    digest: str
    executable: str


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
    detach: bool = False  # it outlives its client, from the moment that all inputs are in the store
    on_error: str = "raise"  # or "continue": a failure is the outcome of its call alone
    owner: str = ""  # the user who asked for it
    resumed: str | None = None  # the job whose results it took over
    python: str = ""  # the client's, as in `NodeOffer`
    origin: Origin | None = None  # who has its disk runs calls as they would run there; None: every node has, or none
    environment: str | None = None  # what the others need: a document of `burla.environment`, only passed on
    sealed: str | None = None  # environment variables, encrypted by the head
    max_run_s: float | None = None  # it is stopped when it has had nodes for so long
    max_cost_usd: float | None = None  # ... when its nodes have cost so much


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A job at this moment; beside the journal, because only the newest one matters."""

    state: JobState
    total: int
    done: int  # calls with a result
    failed: int  # calls that raised, or crashed for the last time
    running: int
    nodes: int
    installing: int = 0  # nodes that prepare for it what its function needs
    rate_per_s: float | None = None  # outcomes of late; None: not known
    retries: int = 0  # calls that were begun again, because the process that ran them was lost
    slowest: tuple[tuple[int, float], ...] = ()  # (input, seconds so far) of calls that run, the longest first
    peak_bytes: int = 0  # the most memory that a call has had; 0: not known
    short_of_memory: bool = False  # fewer calls run at once than the CPUs allow
    remark: str | None = None  # what holds the job up now, such as a full disk
    node_s: float = 0.0  # seconds of nodes that it has used, alone or with others
    usd: float | None = None  # what these cost; None: not known


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
    ends_with_machine: bool = False  # a detached job goes on until this machine stops, not only until its cluster does
    scheduler: str = ""  # whose end is the end of all jobs, if there is such a one


@dataclass(frozen=True, slots=True)
class Beat:
    """From a client or a node, every few seconds, without reply: it still lives."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Results of another job for a new one: of the inputs in `ranges` (start, stop), which are the same in both."""

    job: str
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Submit:
    """A new job. With `total` known, these are all its inputs. Reply: `Events`, or an error. May be sent again.

    `variables` are what the head seals into the spec. Refused: EnvironmentNeeded, if nodes lack the client's disk and
    the spec does not say what the function needs.
    """

    spec: JobSpec
    blocks: tuple[Block, ...] = ()
    total: int | None = None
    variables: Variables = Variables()
    grows: bool = False  # its client boots machines for it, if its spec says `grow`


@dataclass(frozen=True, slots=True)
class AddInputs:
    """More blocks, in order. Reply: None, once the store has them. May be sent again."""

    job: str
    blocks: tuple[Block, ...]
    total: int | None = None  # set in the last message: the job may start
    resume: Resume | None = None  # in the last message


@dataclass(frozen=True, slots=True)
class Poll:
    """Ask for events from number `after` on; the head waits for the first. Reply: `Events`.

    With `kinds` or `index`, only events of these kinds, or about this input, are sent; `next` counts all.
    """

    job: str
    after: int
    wait_s: float = POLL_S
    kinds: Kind = Kind.ALL
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Events:
    """Events `after` … `next - 1` of the journal, and how the job stands."""

    events: tuple[Event, ...]
    next: int
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the job; `if_attached`: unless it is detached meanwhile. Reply: None, once no call of it runs."""

    job: str
    if_attached: bool = False


@dataclass(frozen=True, slots=True)
class Forget:
    """The client has all that it wants of this job: it is deleted, unless it is detached. No reply."""

    job: str


@dataclass(frozen=True, slots=True)
class Detach:
    """The job is to outlive its client. Reply: None, once function and all inputs are in the store."""

    job: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a job that has ended, and all that is kept of it. Reply: None. Refused: JobUnfinished."""

    job: str


@dataclass(frozen=True, slots=True)
class Retry:
    """A new, detached job `id`: as `job` was, with its results; only inputs without one run. Reply: None.

    `function` None: the same; one that is a blob was put into `job` before; `environment`: what that needs. Refused:
    JobUnfinished; EnvironmentNeeded, if there is none and `job` had one.
    """

    job: str
    id: str
    function: Payload | None = None
    environment: str | None = None


@dataclass(frozen=True, slots=True)
class GetJob:
    """Reply: `JobInfo`. `job` may be the beginning of an id; None: the newest of `owner`. Refused: UnknownJob."""

    job: str | None
    owner: str = ""


@dataclass(frozen=True, slots=True)
class ListJobs:
    """Reply: `JobList`, newest first. `states` empty: all."""

    states: tuple[JobState, ...] = ()
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class GetInputs:
    """Reply: `Inputs`, blocks from the one that holds input `index` on, about as much as a message holds."""

    job: str
    index: int


@dataclass(frozen=True, slots=True)
class Inputs:
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class JobInfo:
    """What there is to know of a job without reading its journal. Times are of the head's wall clock, in seconds."""

    id: str
    function_name: str
    owner: str
    detached: bool
    on_error: str
    resumed: str | None
    snapshot: Snapshot
    created_at_s: float
    ended_at_s: float | None
    kept_until_s: float | None  # then it is deleted; None: it has not ended, or is a copy
    size_bytes: int  # on the head's disk, about
    events: int  # how long its journal is


@dataclass(frozen=True, slots=True)
class JobList:
    """`remarks`: what a user should know of the store, such as damage that was found."""

    jobs: tuple[JobInfo, ...]
    keep_s: float
    used_bytes: int
    limit_bytes: int
    remarks: tuple[str, ...]
    copies: str = ""  # the URL where these are copies, which the cluster does not delete by itself


@dataclass(frozen=True, slots=True)
class PutPiece:
    """Bytes of a blob, from `offset_bytes` on. The last piece brings `crc`, of the whole. Reply: None.

    Refused: BlobBroken, when the head, started again, lacks what came before; the blob is sent again under another id.
    """

    job: str
    blob: str
    offset_bytes: int
    data: bytes
    crc: int | None = None


@dataclass(frozen=True, slots=True)
class GetPiece:
    """Reply: at most `MESSAGE_BYTES` bytes of the blob, from `offset_bytes` on."""

    job: str
    blob: str
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class GetMissing:
    """Reply: those of these blobs, shared by jobs and named by their content, that the head does not have."""

    blobs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The client ends, and its attached jobs with it. Reply: None."""


@dataclass(frozen=True, slots=True)
class GetStatus:
    """Reply: `ClusterStatus`."""


@dataclass(frozen=True, slots=True)
class GetNeed:
    """Reply: `Need`. Refused: UnknownJob."""

    job: str


@dataclass(frozen=True, slots=True)
class Need:
    """What a job asks of machines. `unfinished` 0: it needs none any more.

    `nodes`: those on which its calls fit, with what other jobs leave of them; `unfit`: names of the others; `cpus`: of
    all nodes, whoever holds them. `call_s`: how long a call takes, None: not known yet; `peak_bytes`: the most memory
    that one has had.
    """

    func_cpu: int = 1
    func_ram_bytes: int | None = None
    func_gpu: str | None = None
    image: str | None = None
    max_parallelism: int | None = None
    unfinished: int = 0
    call_s: float | None = None
    peak_bytes: int = 0
    cpus: int = 0
    nodes: tuple[NodeOffer, ...] = ()
    unfit: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Growth:
    """From who boots machines for a job: a sentence for those who follow it. `over`: no more of them will come."""

    job: str
    text: str
    over: bool = False


@dataclass(frozen=True, slots=True)
class JobStatus:
    id: str
    function_name: str
    snapshot: Snapshot
    age_s: float


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    nodes: tuple[NodeOffer, ...]
    jobs: tuple[JobStatus, ...]  # that have not ended
    clients: int
    idle_after_s: float | None
    idle_for_s: float
    remarks: tuple[str, ...] = ()  # for which results it stays


# node → head ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of a node. `uuid`: what NVML and CUDA know it by; `name`: ours, such as "A100_40G"."""

    uuid: str
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class NodeOffer:
    """What a node has. `image`: the container image that it runs, see `images.normalise`.

    `version`: of its package, where that may be another than its head's. `usd_per_hour`: what it costs, at most, if
    that is known.
    """

    id: str
    name: str
    cpus: int
    ram_bytes: int
    gpus: tuple[Gpu, ...] = ()
    image: str | None = None
    python: str = field(default_factory=python_tag)
    version: str = ""
    usd_per_hour: float | None = None

    @property
    def gpu_counts(self) -> Mapping[str, int]:
        """How many GPUs it has, by name."""
        return Counter(gpu.name for gpu in self.gpus)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a node that comes back still has of a job: `ranges` of calls that run, wait or were done there.

    `sent`: of calls whose news are in trade `number`, which the head may have taken, or not. `slots`, `held`, `leases`:
    as in `SetSlots` and `Trade`.
    """

    job: str
    ranges: tuple[tuple[int, int], ...]
    sent: tuple[tuple[int, int], ...]
    number: int
    slots: int
    held: int
    leases: int


@dataclass(frozen=True, slots=True)
class Join:
    """The first message of a node. Reply: `Joined`. The same id again replaces the earlier membership.

    `sessions`: of its children that have made nested calls.
    """

    offer: NodeOffer
    address: str  # of its Dask worker
    claims: tuple[Claim, ...] = ()
    sessions: tuple[str, ...] = ()
    version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class Joined:
    """`kept`: of each claimed job that goes on here, the calls that are this node's again; others run elsewhere."""

    trade_every_s: float
    kept: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trade:
    """What a node has to tell of one job, and what it asks for; one in flight per lease. Reply: `Work`.

    `want`: calls it could take now; `running`: calls that run; `queued`: calls here that have not started, which the
    head may ask back; `held`: slots in use.
    """

    job: str
    # in order: what a call wrote stands before its result
    news: tuple[Results | Failure | Crash | Evicted | Output | Outputs, ...]
    handed_back: tuple[tuple[int, int], ...]  # (start, stop)
    want: int
    running: int
    queued: int
    held: int
    leases: int = 0  # how many `SetSlots` of this job the node has carried out
    slowest: tuple[tuple[int, float], ...] = ()  # as in `Snapshot`, of this node
    peak_bytes: int = 0  # the most memory that a call of the job has had here since the last trade
    number: int = 0  # counted from 1; a trade whose reply was lost is sent again with the same number


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
class Preparing:
    """How far a node is with what the function of a job needs. No reply.

    `busy`: it goes on; `notices`: for the user; `error`: the pickle of the BurlaError for which it cannot run the job.
    """

    job: str
    busy: bool
    notices: tuple[str, ...] = ()
    error: bytes | None = None


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
class HasDisk:
    """Reply: whether the node shares the disk of a client."""

    origin: Origin


@dataclass(frozen=True, slots=True)
class BeginLease:
    """A lease on this job begins; how large it is, `SetSlots` says. No reply."""

    spec: JobSpec
    variables: Variables = Variables()


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
class Inherited:
    """What calls within a call have in common with it, as in `JobSpec`."""

    origin: Origin | None = None
    environment: str | None = None
    sealed: str | None = None
    hidden: tuple[str, ...] = ()  # names of variables that must not be written down readably


@dataclass(frozen=True, slots=True)
class Prepare:
    """The first message to a child: become a child of this job."""

    job: str
    depth: int
    context: CallContext
    environ: Variables  # on top of the caller's: thread counts, visible GPUs, what the user has set
    cpus: tuple[int, ...]  # affinity; empty: leave it
    function: bytes
    inherited: Inherited = Inherited()
    elsewhere: bool = False  # the caller's files and variables are not here
    absent: Mapping[str, str] = field(default_factory=dict)  # modules that could not be installed, and why


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
    inherited: Inherited


nested: Nested | None = None  # set in children only
