"""Calls of EC2's API, with what it says in our words: import it inside functions only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import botocore.exceptions
from aiobotocore.session import AioSession

from burla.clusters.cloud import Refused

_CAPACITY = {
    "InsufficientInstanceCapacity",
    "InsufficientHostCapacity",
    "InsufficientCapacity",
    "MaxSpotInstanceCountExceeded",
    "SpotMaxPriceTooLow",
    "VcpuLimitExceeded",
    "InstanceLimitExceeded",
    "Unsupported",
}
IN_USE = ("DependencyViolation", "VolumeInUse")


@asynccontextmanager
async def client(region: str | None, session: AioSession | None = None) -> AsyncIterator[Any]:
    """Yield a client of EC2; None: of the region that the cloud's own configuration says. Raises Refused."""
    try:
        async with (session or AioSession()).create_client("ec2", region_name=region) as ec2:
            yield ec2
    except botocore.exceptions.ClientError as error:
        told = error.response["Error"]
        raise Refused(f"{told['Message']} ({told['Code']})", told["Code"], told["Code"] in _CAPACITY) from error
    except botocore.exceptions.NoRegionError as error:
        raise Refused(f"{error} Give region=, or set AWS_DEFAULT_REGION.") from error
    except botocore.exceptions.BotoCoreError as error:  # no credentials, no network
        raise Refused(str(error)) from error
