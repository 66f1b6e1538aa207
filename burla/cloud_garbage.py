"""What nobody claims any more in the user's clouds, and its end."""

from __future__ import annotations

import time
from dataclasses import dataclass

from burla.clusters import cloud as clouds
from burla.clusters import gc, lifecycle
from burla.clusters.apart import run_apart
from burla.clusters.cloud import CLOUDS, TAG_EXPIRY, TAG_NAME, TAG_ROLE, Refused, Resource
from burla.display.table import text_table
from burla.errors import CloudError, InvalidType, InvalidValue, MissingExtra

COLUMNS = ("kind", "id", "cluster", "role", "machine", "state", "cloud", "region", "expired")


@dataclass(frozen=True, slots=True)
class Orphan:
    """Something that costs money, or may, and that no cluster claims. `expired_for_s`: since nobody may be at it."""

    kind: str
    id: str
    cluster: str
    role: str
    machine: str
    state: str
    cloud: str
    region: str
    expired_for_s: float


@dataclass(frozen=True, slots=True)
class CloudGarbage:
    """What nobody claims; `deleted`: it is gone now. `not_searched`: where, and why. Shows as a table."""

    found: tuple[Orphan, ...]
    deleted: bool
    not_searched: tuple[str, ...]

    def __str__(self) -> str:
        if not self.found:
            return "Nothing is left over."
        rows = [
            (one.kind, one.id, one.cluster, one.role, one.machine, one.state, one.cloud, one.region, _ago(one))
            for one in self.found
        ]
        return text_table(COLUMNS, rows)

    __repr__ = __str__


def _ago(one: Orphan) -> str:
    hours = one.expired_for_s / 3600
    return f"{hours:.1f} h ago" if hours < 48 else f"{hours / 24:.0f} days ago"


def collect_garbage(*, cloud: str | None = None, region: str | None = None, delete: bool = False) -> CloudGarbage:
    """Find what a burla of this user has made in clouds and no living head claims; with `delete`, delete it.

    That is: machines, disks and networks that carry this user's name, of clusters that have no head and on which nobody
    has been at work for a while. Nothing else is touched.

    Parameters
    ----------
    cloud
        "aws", "gcp" or "azure"; None: every cloud whose packages and credentials are there.
    region
        The cloud's name of a region; None: every one.
    delete
        Whether it is deleted too.

    Raises
    ------
    CloudError
        The cloud did not let itself be searched, or did not delete all; the others are gone then.
    """
    for key, value in {"cloud": cloud, "region": region}.items():
        if value is not None and not isinstance(value, str):
            raise InvalidType(f"{key}={value!r}: it must be a text.")
    if not isinstance(delete, bool):
        raise InvalidType(f"delete={delete!r}: it must be True or False.")
    if region is not None and cloud is None:
        raise InvalidValue(f"region={region!r}: say of which cloud, too: cloud=, one of {', '.join(CLOUDS)}.")
    found: list[Orphan] = []
    not_searched: list[str] = []
    errors: list[CloudError | MissingExtra] = []
    for one in CLOUDS if cloud is None else (cloud,):
        try:
            there, unseen = run_apart(_collect(one, region, delete))
        except (CloudError, MissingExtra) as error:
            if cloud is not None or (isinstance(error, CloudError) and error.left):
                raise
            errors.append(error)
            not_searched.append(str(error))
        else:
            found += there
            not_searched += unseen
    if len(errors) == len(CLOUDS):
        raise errors[0]
    return CloudGarbage(tuple(found), delete, tuple(not_searched))


async def _collect(cloud: str, region: str | None, delete: bool) -> tuple[list[Orphan], list[str]]:
    account, owner, now_s = clouds.account(cloud), lifecycle.owner(), time.time()
    step = f"looking at what {owner} has in {cloud}"
    lifecycle.say(step)
    try:
        regions = [region] if region is not None else await account.regions()
    except Refused as error:
        raise _error(step, error) from error
    found, refused = await gc.search(account, regions, owner)
    if len(refused) == len(regions):
        raise _error(step, next(iter(refused.values())))
    gone = gc.orphans(found, owner, now_s)
    if delete and gone:
        step = f"deleting {', '.join(f'{one.kind} {one.id}' for one in gone)}"
        lifecycle.say(step)
        failed = await gc.remove(account, gone)
        if failed:
            text = "; ".join(f"{one.kind} {one.id} in {one.region}: {error}" for one, error in failed)
            left = [one.id for one, _ in failed]
            raise CloudError(f"not all was deleted: {text}. Try again.", step=step, told=text, left=left)
    unseen = [f"{cloud} {region}: {error}" for region, error in refused.items()]
    return [_orphan(cloud, one, now_s) for one in gone], unseen


def _error(step: str, error: Refused) -> CloudError:
    return CloudError(f"{step}: {error}", step=step, told=str(error), left=[])


def _orphan(cloud: str, one: Resource, now_s: float) -> Orphan:
    return Orphan(
        kind=one.kind,
        id=one.id,
        cluster=one.tags.get(TAG_NAME, ""),
        role=one.tags.get(TAG_ROLE, ""),
        machine=one.machine,
        state=one.state,
        cloud=cloud,
        region=one.region,
        expired_for_s=now_s - float(one.tags[TAG_EXPIRY]),
    )
