"""The pages of a report and one more, on this machine alone: it takes a photograph and tells what fires where on it."""

import asyncio
import errno
import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib import resources
from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from saetool.errors import RequestError, SaetoolError, WorkError, first_line, shown
from saetool.progress import say
from saetool.report.site import POLICY, environment
from saetool.serving.session import Session

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOST = "127.0.0.1"
MOST_BYTES = 64_000_000
"""Of a request: a photograph as cameras write them."""
PAGE, SCRIPT = "photograph.html", "photograph.js"
_HEADERS = ((b"cache-control", b"no-cache"), (b"cross-origin-resource-policy", b"same-origin"))
_NAV = '<nav aria-label="Pages">'


def make_app(
    session: Session, report: Path, facts: dict[str, Any], hosts: tuple[str, ...] = (HOST, "localhost")
) -> "Starlette":
    """Return the site: the report's files as they are, a link to the new page in their navigation, and the page.

    Requests that name another host, or come from another site's page, are refused: what is asked here runs a model.
    """
    try:
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.requests import ClientDisconnect
        from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
        from starlette.routing import Mount, Route
        from starlette.staticfiles import StaticFiles
    except ImportError:
        raise RequestError("saetool serve needs starlette and uvicorn: pip install 'saetool[serve]'") from None

    page = _linked(_page(facts), ' aria-current="page"').encode()
    script = (resources.files("saetool.serving") / "assets" / SCRIPT).read_bytes()

    async def photograph(request: "Request") -> Response:
        return HTMLResponse(page)

    async def code(request: "Request") -> Response:
        return Response(script, media_type="text/javascript")

    async def of_report(request: "Request") -> Response:
        place = report / f"{request.path_params['name']}.html"
        if not isfile(place) or place.is_symlink():
            return Response("no such page", 404)
        return HTMLResponse(_linked(place.read_text("utf-8")))

    def told(work: Callable[[bytes, str], dict[str, Any]]) -> Callable[["Request"], Awaitable[Response]]:
        """Return a handler that answers with what `work` makes of a request's body, or with what was wrong."""

        async def handle(request: "Request") -> Response:
            origin = request.headers.get("origin")
            if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
                return JSONResponse({"error": "asked from another site's page"}, 403)
            body = bytearray()
            try:
                async for part in request.stream():
                    body += part
                    if len(body) > MOST_BYTES:
                        return JSONResponse({"error": f"over {MOST_BYTES // 10**6} MB: give a smaller file"}, 413)
                return JSONResponse(await run_in_threadpool(work, bytes(body), request.query_params.get("name", "")))
            except (ClientDisconnect, asyncio.CancelledError):  # nobody waits for the answer, or Ctrl-C
                return JSONResponse({"error": "the server ended, or the upload did"}, 503)
            except SaetoolError as problem:
                return JSONResponse({"error": str(problem)}, 400 if isinstance(problem, RequestError) else 422)
            except Exception as problem:  # of the model's own code: the page says it, and the server goes on
                say(f"{type(problem).__name__}: {first_line(problem)}")
                return JSONResponse({"error": f"the model failed: {first_line(problem)}"}, 500)

        return handle

    return Starlette(
        routes=[
            Route("/", lambda request: RedirectResponse(PAGE)),
            Route(f"/{PAGE}", photograph),
            Route(f"/assets/{SCRIPT}", code),
            Route("/{name:str}.html", of_report),
            Route(
                "/api/pictures",
                told(lambda body, name: session.look(body, name[:200] or "the picture")),
                methods=["POST"],
            ),
            Route("/api/images", told(lambda body, _: session.look_at(_number(body))), methods=["POST"]),
            Route("/api/answers", told(lambda body, _: session.change(*_parse(body))), methods=["POST"]),
            Mount("/", StaticFiles(directory=report)),
        ],
        middleware=[
            Middleware(_own),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        ],
    )


def _own(app: "ASGIApp") -> "ASGIApp":
    """Return `app` with answers that no other site's page may load, and that no browser takes for a later run's."""

    async def answer(scope: "Scope", receive: "Receive", send: "Send") -> None:
        async def told(message: "Message") -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await app(scope, receive, told)

    return answer


def _linked(page: str, current: str = "") -> str:
    """Return a page with a link to the new one in its navigation."""
    return page.replace(_NAV, f'{_NAV}\n<a href="{PAGE}"{current}>Your photograph</a>', 1)


def _page(facts: dict[str, Any]) -> str:
    folder = resources.files("saetool.serving") / "templates"
    own = jinja2.FunctionLoader(lambda name: (folder / name).read_text("utf-8") if name == PAGE else None)
    pages = environment()
    pages.loader = jinja2.ChoiceLoader([own, *([pages.loader] if pages.loader else [])])
    return pages.get_template(PAGE).render(policy=f"{POLICY}; connect-src 'self'", **facts)


def _parse(body: bytes) -> tuple[str, dict[int, float], list[int] | None]:
    """Return what a request for an answer asks: a picture's key, factors by latent, the patches or None for all."""
    try:
        given = json.loads(body)
        changes = {int(latent): float(factor) for latent, factor in given["changes"].items()}
        patches = given.get("patches")
        return str(given["picture"]), changes, None if patches is None else [int(patch) for patch in patches]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise RequestError(
            'an answer is asked as {"picture": …, "changes": {latent: factor}, "patches": […]}'
        ) from None


def _number(body: bytes) -> int:
    try:
        return int(body)
    except ValueError:
        raise RequestError("an image of the run is asked by its number.") from None


def listen(port: int) -> socket.socket:
    """Return a socket that listens on this machine's own address alone; port 0 takes a free one."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
        found.listen()  # who asks now is answered when the model is there
    except (OSError, OverflowError) as error:
        found.close()
        taken = getattr(error, "errno", None) == errno.EADDRINUSE
        reason = "something else listens there already" if taken else first_line(error)
        raise RequestError(f"--port {shown(port)}: {reason}; give another, or 0 for any that is free.") from None
    return found


def serve(app: "Starlette", place: socket.socket) -> None:
    """Answer requests until Ctrl-C; raises WorkError where the server could not start."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    with suppress(KeyboardInterrupt):
        server.run(sockets=[place])
    if not server.started:
        raise WorkError("the server did not start")
