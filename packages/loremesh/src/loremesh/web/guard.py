"""Who may ask the gateway: whoever has the key, or, where there is none, programs of this machine and no web page.

Without a key the gateway listens on loopback alone. A page in a browser on this machine could reach it there: by its
own requests to 127.0.0.1, and by a name of its own that it lets point there (DNS rebinding). Both give themselves away.
"""

import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Final

import trio
from starlette.types import ASGIApp, Receive, Scope, Send

from loremesh.errors import UsageError
from loremesh.web.answers import Failure

_BEARER: Final = b"bearer "
_OPEN: Final = ("/healthz",)


class Guard:
    """Lets in whom it may, and tells the others what would do."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it before anything of its body is read."""
        if scope["type"] != "http":
            return  # hypercorn answers for us
        headers = dict(scope["headers"])
        failure = self._local_failure(headers) if self._key is None else self._key_failure(scope["path"], headers)
        if failure is None:
            await self._app(scope, receive, send)
        else:
            await refuse(failure, send)

    def _key_failure(self, path: str, headers: Mapping[bytes, bytes]) -> Failure | None:
        value = headers.get(b"authorization", b"")
        given = value[len(_BEARER) :].strip() if value[: len(_BEARER)].lower() == _BEARER else b""
        if path in _OPEN or hmac.compare_digest(given, self._key or b""):
            return None
        message = (
            "this gateway's key is missing: send Authorization: Bearer KEY" if not given else "that is not the key"
        )
        return Failure(401, "authentication_error", "invalid_api_key", message, closes=True)

    @staticmethod
    def _local_failure(headers: Mapping[bytes, bytes]) -> Failure | None:
        if b"origin" in headers:
            message = "web pages are not answered: a page would spend in the name of whoever looks at it"
        elif not _is_local(headers.get(b"host", b"").decode("latin-1")):
            message = "without an API key only requests to 127.0.0.1, [::1] or localhost are answered"
        else:
            return None
        return Failure(403, "permission_error", "not_local", message, closes=True)


async def refuse(failure: Failure, send: Send) -> None:
    """Answer with a failure."""
    body = failure.body
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *failure.headers]
    await send({"type": "http.response.start", "status": failure.status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def check_exposure(listeners: Sequence[trio.SocketListener], key: str | None) -> None:
    """See to it that without a key nobody but this machine is listened to.

    Raises:
        UsageError: One of the sockets can be reached from elsewhere, and there is no key.
    """
    for listener in listeners:
        host = listener.socket.getsockname()[0]
        if key is None and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
            raise UsageError(
                f"--listen on {host} lets others in: set an API key (LOREMESH_API_KEY or --api-key-file), "
                "or listen on 127.0.0.1"
            )


def _is_local(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
