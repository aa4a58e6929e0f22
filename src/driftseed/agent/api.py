"""The local API's routes (docs/api.md): HTTP on one side, what an agent can be asked and told on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from driftseed.agent.router import METRICS_TYPE, Request, Response, Router
from driftseed.agent.submissions import Submissions
from driftseed.core import limits
from driftseed.core.apiviews import (
    AgentStatus,
    Announced,
    ConfigView,
    OverlayView,
    PeerView,
    UpdateDetail,
    UpdateView,
)


class AgentControl(Protocol):
    """What a running agent can be asked and told. Errors are DriftseedErrors, which become answers."""

    async def status(self) -> AgentStatus:
        """How it does."""
        ...

    async def overlay(self) -> OverlayView:
        """How it can be reached, and whom it knows."""
        ...

    async def peers(self) -> Sequence[PeerView]:
        """Its connections."""
        ...

    async def updates(self) -> Sequence[UpdateView]:
        """Its updates, newest first."""
        ...

    async def update(self, deployment: str) -> UpdateDetail:
        """One update with its history. Raises NotFound."""
        ...

    async def remove_update(self, deployment: str) -> None:
        """Forget a finished update and its content.

        Raises:
            NotFound: there is none.
            Conflict: it is installed, or under way.
        """
        ...

    async def announce(self) -> Announced:
        """Pass the newest timestamp on to every neighbour again. Raises FileMissing when there is none yet."""
        ...

    async def config(self) -> ConfigView:
        """Its settings."""
        ...

    async def change_config(self, changes: Mapping[str, Any]) -> ConfigView:
        """Change settings, all or none. Raises ConfigInvalid or DiskFull."""
        ...

    async def metrics(self) -> str:
        """Counters in Prometheus' text format."""
        ...


class _Routes:
    def __init__(self, control: AgentControl, submissions: Submissions) -> None:
        self._control = control
        self._submissions = submissions

    async def status(self, _: Request) -> Response:
        return Response.json(await self._control.status())

    async def overlay(self, _: Request) -> Response:
        return Response.json(await self._control.overlay())

    async def peers(self, _: Request) -> Response:
        return Response.json({"peers": await self._control.peers()})

    async def updates(self, _: Request) -> Response:
        return Response.json({"updates": await self._control.updates()})

    async def update(self, request: Request) -> Response:
        return Response.json(await self._control.update(request.params["deployment"]))

    async def remove_update(self, request: Request) -> Response:
        deployment = request.params["deployment"]
        await self._control.remove_update(deployment)
        return Response.json({"removed": deployment})

    async def announce(self, _: Request) -> Response:
        return Response.json(await self._control.announce())

    async def config(self, _: Request) -> Response:
        return Response.json(await self._control.config())

    async def change_config(self, request: Request) -> Response:
        return Response.json(await self._control.change_config(await request.json_object()))

    async def metrics(self, _: Request) -> Response:
        return Response(200, (await self._control.metrics()).encode(), METRICS_TYPE)

    async def submit(self, _: Request) -> Response:
        return Response.json({"submission": await self._submissions.begin()}, 201)

    async def submitted(self, request: Request) -> Response:
        submission = request.params["submission"]
        return Response.json(
            {"submission": submission, "missing": await self._submissions.missing(submission)}
        )

    async def abandon(self, request: Request) -> Response:
        submission = request.params["submission"]
        self._submissions.abandon(submission)
        return Response.json({"removed": submission})

    async def submit_file(self, request: Request) -> Response:
        name = request.params["name"]
        body = request.stream(limits.TORRENT_BYTES_MAX)
        length = await self._submissions.put_file(request.params["submission"], name, body)
        return Response.json({"name": name, "length": length})

    async def submit_content(self, request: Request) -> Response:
        sha256 = request.params["sha256"]
        length = await self._submissions.put_content(
            request.params["submission"],
            sha256,
            request.stream(limits.ARTIFACT_BYTES_MAX),
            length=request.body.length,
        )
        return Response.json({"sha256": sha256, "length": length})

    async def commit(self, request: Request) -> Response:
        version = await self._submissions.commit(request.params["submission"])
        return Response.json({"accepted": True, "timestamp_version": version})


def routes(control: AgentControl, submissions: Submissions) -> Router:
    """The whole local API.

    Args:
        control: the agent.
        submissions: where signed metadata and content are handed in.
    """
    made = _Routes(control, submissions)
    router = Router()
    router.add("GET", "/v1/status", made.status)
    router.add("GET", "/v1/overlay", made.overlay)
    router.add("GET", "/v1/peers", made.peers)
    router.add("GET", "/v1/updates", made.updates)
    router.add("GET", "/v1/updates/{deployment}", made.update)
    router.add("DELETE", "/v1/updates/{deployment}", made.remove_update)
    router.add("POST", "/v1/announce", made.announce)
    router.add("GET", "/v1/config", made.config)
    router.add("PATCH", "/v1/config", made.change_config)
    router.add("GET", "/v1/metrics", made.metrics)
    router.add("POST", "/v1/submit", made.submit)
    router.add("GET", "/v1/submit/{submission}", made.submitted)
    router.add("DELETE", "/v1/submit/{submission}", made.abandon)
    router.add("PUT", "/v1/submit/{submission}/files/{name...}", made.submit_file)
    router.add("PUT", "/v1/submit/{submission}/content/{sha256}", made.submit_content)
    router.add("POST", "/v1/submit/{submission}/commit", made.commit)
    return router
