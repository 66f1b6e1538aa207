"""Calls of Azure's API, with what it says in our words: import it inside functions only."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError
from azure.core.pipeline.transport import HttpTransport
from azure.identity import DefaultAzureCredential
from azure.mgmt.compute import ComputeManagementClient
from azure.mgmt.network import NetworkManagementClient
from azure.mgmt.resource.resources import ResourceManagementClient

from burla.clusters.cloud import Refused

TRANSPORT: HttpTransport[Any, Any] | None = None  # of all that is sent; None: the SDK's own
NOT_FOUND = ("ResourceGroupNotFound", "ResourceNotFound", "NotFound")
_CAPACITY = {
    "SkuNotAvailable",
    "AllocationFailed",
    "ZonalAllocationFailed",
    "OverconstrainedAllocationRequest",
    "OverconstrainedZonalAllocationRequest",
    "QuotaExceeded",
    "OperationNotAllowed",  # as it calls a quota of CPUs
}
_AZ_S = 30.0
_AT_ONCE = 64
_T = TypeVar("_T")


class Client:
    """The API, as the credentials let it be used for a subscription."""

    def __init__(self, credential: Any, subscription: str):
        options: dict[str, Any] = {} if TRANSPORT is None else {"transport": TRANSPORT}
        self.subscription = subscription
        self._threads = ThreadPoolExecutor(_AT_ONCE, "burla-azure")  # one waits for each machine that boots
        self.compute = ComputeManagementClient(credential, subscription, **options)
        self.network = NetworkManagementClient(credential, subscription, **options)
        self.resources = ResourceManagementClient(credential, subscription, **options)

    async def call(self, function: Callable[..., _T], *arguments: Any, **more: Any) -> _T:
        """Return what the API answers. Raises Refused."""
        with refusing():
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, lambda: function(*arguments, **more))

    async def every(self, function: Callable[..., Any], *arguments: Any, **more: Any) -> list[Any]:
        """Return all items of a list. Raises Refused."""
        return await self.call(lambda: list(function(*arguments, **more)))

    async def carry_out(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Have something changed that takes a while; return what it is then. Raises Refused."""
        return await self.call(lambda: function(*arguments).result())


async def connect() -> Client:
    """Return a client, with the credentials and the subscription that Azure's own tools find. Raises Refused."""
    return await asyncio.to_thread(_connect)


def _connect() -> Client:
    options: dict[str, Any] = {} if TRANSPORT is None else {"transport": TRANSPORT}
    return Client(DefaultAzureCredential(**options), os.environ.get("AZURE_SUBSCRIPTION_ID") or _chosen())


def _chosen() -> str:
    """Return the subscription that `az account set` has chosen."""
    why = "no subscription is chosen: set AZURE_SUBSCRIPTION_ID, or: az account set --subscription ID"
    try:
        command = ["az", "account", "show", "--output", "json"]
        told = subprocess.run(command, check=True, capture_output=True, timeout=_AZ_S).stdout
        return json.loads(told)["id"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        raise Refused(why) from error


@contextmanager
def refusing() -> Iterator[None]:
    """Turn what the API says into Refused."""
    try:
        yield
    except ClientAuthenticationError as error:
        raise Refused(error.message, "ClientAuthenticationError") from error
    except HttpResponseError as error:
        told = error.error
        code = getattr(told, "code", None) or str(error.status_code)
        message = getattr(told, "message", None) or str(error)
        raise Refused(f"{message} ({code})", code, code in _CAPACITY) from error
    except AzureError as error:  # no network
        raise Refused(str(error)) from error
