"""`/healthz`, `/readyz` and `/metrics`: a node in the eyes of a supervisor, a load balancer and Prometheus.

Source: docs/metrics.md.
"""

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from loremesh.web.report import Figure, Kind, Report

Look = Callable[[], Report]
"""Gives the node as it is now; called for every request that needs it."""

_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
OPERATING_PATHS: Final = ("/healthz", "/readyz", "/metrics")
"""Where it answers."""
_NO_BODY: Final = JSONResponse({"error": "no request body is taken here"}, 413, {**_HEADERS, "connection": "close"})


def operating_app(look: Look) -> ASGIApp:
    """Make the application that answers an operator's machines. It only reads, and takes no request body."""
    registry = CollectorRegistry()
    registry.register(_Figures(look))
    ProcessCollector(registry=registry)

    async def healthz(_: Request) -> Response:
        # That this runs is the proof: the process is there, and its event loop turns.
        return JSONResponse({"alive": True}, headers=_HEADERS)

    async def readyz(_: Request) -> Response:
        reasons = look().reasons
        status = 503 if reasons else 200
        return JSONResponse({"ready": not reasons, "reasons": list(reasons)}, status, _HEADERS)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), headers={**_HEADERS, "content-type": CONTENT_TYPE_PLAIN_0_0_4})

    routes = [Route(path, answer) for path, answer in zip(OPERATING_PATHS, (healthz, readyz, metrics), strict=True)]
    return _WithoutBodies(Starlette(routes=routes))


class _WithoutBodies:
    """Refuses a request that brings a body, before anything reads it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        if b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0":
            await _NO_BODY(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class _Figures(Collector):
    """Puts a report's figures into what prometheus_client writes out."""

    def __init__(self, look: Look) -> None:
        self._look = look

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Give every figure as it is now."""
        for figure in self._look().figures:
            family = _family(figure)
            for labels, value in figure.values.items():
                family.add_metric(labels, value)
            yield family

    def describe(self) -> list[CounterMetricFamily]:
        """Name nothing ahead: the node is not looked at before somebody asks."""
        return []


def _family(figure: Figure) -> CounterMetricFamily | GaugeMetricFamily:
    if figure.kind is Kind.COUNTER:
        return CounterMetricFamily(figure.name, figure.meaning, labels=figure.labels)
    return GaugeMetricFamily(figure.name, figure.meaning, labels=figure.labels)
