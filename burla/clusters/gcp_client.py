"""Calls of Compute Engine's API, with what it says in our words: import it inside functions only."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import google.auth
import google_auth_httplib2
import googleapiclient.discovery
import httplib2
from google.auth.exceptions import GoogleAuthError
from googleapiclient.errors import HttpError
from googleapiclient.http import HttpRequest

from burla.clusters.cloud import Refused

# gcloud's own variable: where the API is, if not at Google
_ENDPOINT = "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE"
_GOOGLE = "https://compute.googleapis.com/compute/v1/"
_SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
_CAPACITY = {
    "ZONE_RESOURCE_POOL_EXHAUSTED",
    "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
    "RESOURCE_POOL_EXHAUSTED",
    "QUOTA_EXCEEDED",
    "quotaExceeded",
    "limitExceeded",
}
NOT_FOUND = "notFound"
EXISTS = "alreadyExists"
IN_USE = ("resourceInUseByAnotherResource", "resourceNotReady", "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE")
_LOOK_S = 0.5
_ANSWER_S = 60.0
_RETRIES = 3


def endpoint() -> str:
    """Return the URL of the API."""
    return os.environ.get(_ENDPOINT, _GOOGLE)


class Client:
    """The API, as the project's credentials let it be used. Its methods raise Refused.

    `compute` makes requests, whose `execute` raises Refused too.
    """

    def __init__(self, compute: Any, project: str):
        self.compute = compute
        self.project = project

    async def call(self, request: HttpRequest) -> dict[str, Any]:
        """Return what the API answers."""
        return await asyncio.to_thread(request.execute)

    async def all(self, collection: Any, **query: object) -> dict[str, list[dict[str, Any]]]:
        """Return what a collection has, by place (zones/europe-west4-a)."""
        found: dict[str, list[dict[str, Any]]] = {}
        request = collection.aggregatedList(project=self.project, **query)
        while request is not None:
            answer = await self.call(request)
            for place, items in answer.get("items", {}).items():
                for kind in items.keys() - {"warning"}:
                    found.setdefault(place, []).extend(items[kind])
            request = collection.aggregatedList_next(request, answer)
        return found

    async def carry_out(self, request: HttpRequest) -> None:
        """Have something changed, for the whole project; return once it is."""
        operation = await self.call(request)
        while check(operation)["status"] != "DONE":
            await asyncio.sleep(_LOOK_S)
            asked = self.compute.globalOperations().get(project=self.project, operation=operation["name"])
            operation = await self.call(asked)


async def connect() -> Client:
    """Return a client, with the credentials that Google's own tools find. Raises Refused."""
    return await asyncio.to_thread(_connect)


def _connect() -> Client:
    try:
        credentials, project = google.auth.default(_SCOPES)
    except GoogleAuthError as error:
        raise Refused(str(error)) from error
    if not project:
        raise Refused("the credentials say no project: set GOOGLE_CLOUD_PROJECT")
    compute = googleapiclient.discovery.build(
        "compute",
        "v1",
        credentials=credentials,
        client_options={"api_endpoint": endpoint()},
        requestBuilder=_requests(credentials),
    )
    return Client(compute, project)


def _requests(credentials: Any) -> type[HttpRequest]:
    class Request(HttpRequest):
        """Has a connection of its own, as httplib2 needs it to be used by threads."""

        def __init__(self, http: Any, *args: Any, **kwargs: Any):
            http = google_auth_httplib2.AuthorizedHttp(credentials, http=httplib2.Http(timeout=_ANSWER_S))
            super().__init__(http, *args, **kwargs)

        def execute(self, http: Any = None, num_retries: int = 0) -> Any:
            """Return the answer. Raises Refused."""
            # what has been asked for twice may be made twice
            retries = _RETRIES if self.method == "GET" else num_retries
            try:
                return super().execute(http, retries)
            except HttpError as error:
                raise _refused(error) from error
            except (GoogleAuthError, httplib2.HttpLib2Error, OSError) as error:
                raise Refused(str(error)) from error

    return Request


def check(operation: dict[str, Any]) -> dict[str, Any]:
    """Return an operation that has not failed. Raises Refused."""
    errors = operation.get("error", {}).get("errors", [])
    if errors:
        told = "; ".join(f"{one.get('message', '')} ({one['code']})" for one in errors)
        raise Refused(told, errors[0]["code"], any(one["code"] in _CAPACITY for one in errors))
    return operation


def _refused(error: HttpError) -> Refused:
    try:
        told = json.loads(error.content)["error"]
        code = told["errors"][0]["reason"]
        return Refused(f"{told['message']} ({code})", code, code in _CAPACITY)
    except (ValueError, KeyError, IndexError, TypeError):  # not from the API itself: a proxy, say
        return Refused(str(error))
