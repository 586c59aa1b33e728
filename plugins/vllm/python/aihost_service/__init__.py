"""The base class of model services: health, an orderly end, logging. It knows nothing of models, nor of who asks."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
from typing import Any, Optional

import uvicorn
from fastapi import FastAPI

__all__ = ["BaseService"]
__version__ = "0.1.0"

# How long a service that could not initialize still says why at its health.
FAILURE_GRACE_S = 1.0
# Variables that override the port given in code; the first that is set counts.
PORT_VARIABLES = ("AIHOST_PORT", "PORT")


class BaseService:
    """A model behind HTTP. A subclass loads it in `initialize` and adds routes to `self.app` in `create_app`."""

    # Seconds that running requests have to finish in once the service is told to end.
    shutdown_grace = 8

    def __init__(self, name: str, port: int = 8000, host: str = "127.0.0.1", **app_options: Any) -> None:
        self.name = name
        self.port = _port(port)
        self.host = host
        self.logger = _logger(name)
        self.app = FastAPI(title=name, **app_options)
        self.failure: Optional[str] = None
        self.is_ready = False
        self._has_routes = False
        self._server: Optional[uvicorn.Server] = None

    async def initialize(self) -> None:
        """Loads the model. The service is not healthy before this is done."""

    def create_app(self) -> Any:
        """Adds routes to `self.app`."""

    async def shutdown(self) -> None:
        """Gives back what `initialize` took. Awaited once, when no request runs any more."""

    def run(self) -> None:
        """Serves until SIGTERM or Ctrl-C, then exits with 0; with 1 if it could not be initialized or its port is taken."""
        self._add_routes()
        sys.exit(asyncio.run(self._serve()))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The service as an ASGI application: its health, and its own routes once it is ready."""
        if scope["type"] == "http" and scope["path"] == "/health":
            await self._answer(send, *self._health())
        elif scope["type"] == "lifespan" or self.is_ready:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(send, 503, {"detail": f"{self.name} is not ready yet"})
        else:
            await send({"type": "websocket.close", "code": 1013})

    def _add_routes(self) -> None:
        if self._has_routes:
            return
        self._has_routes = True
        made = self.create_app()
        if made is not None:
            self.app = made

    def _health(self) -> "tuple[int, dict[str, Any]]":
        if self.failure is not None:
            return 500, {"status": "failed", "service": self.name, "detail": self.failure}
        if not self.is_ready:
            return 503, {"status": "starting", "service": self.name}
        return 200, {"status": "healthy", "service": self.name}

    async def _answer(self, send: Any, status: int, body: "dict[str, Any]") -> None:
        payload = json.dumps(body).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(payload)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": payload})

    async def _serve(self) -> int:
        config = uvicorn.Config(
            self,
            host=self.host,
            port=self.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=self.shutdown_grace,
        )
        self._server = server = _Server(config)
        self._heed_signals(server)
        initializing = asyncio.create_task(self._initialize(server))
        try:
            # uvicorn ends the process itself where its port is taken.
            await server.serve()
        except SystemExit:
            return 1
        finally:
            initializing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await initializing
        if self.failure is not None:
            return 1
        await self.shutdown()
        self.logger.info("%s has ended", self.name)
        return 0

    async def _initialize(self, server: uvicorn.Server) -> None:
        # Health says that it is not ready yet, rather than nothing, while a model loads that does not await.
        while not server.started and not server.should_exit:
            await asyncio.sleep(0.01)
        self.logger.info("%s initializes, on port %d", self.name, self.port)
        try:
            await self.initialize()
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            self.logger.exception("%s cannot be initialized", self.name)
            await asyncio.sleep(FAILURE_GRACE_S)
            server.should_exit = True
        else:
            self.is_ready = True
            self.logger.info("%s is ready", self.name)

    def _heed_signals(self, server: uvicorn.Server) -> None:
        if threading.current_thread() is not threading.main_thread():
            return

        def end(number: int, _frame: Any) -> None:
            if not self.is_ready and self.failure is None:
                # No request runs, and a load may not give the loop its turn for minutes.
                self.logger.info("%s ends before it was ready", self.name)
                logging.shutdown()
                os._exit(0)
            self.logger.info("%s ends: no more requests are taken", self.name)
            server.force_exit = server.should_exit and number == signal.SIGINT
            server.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)


class _Server(uvicorn.Server):
    """uvicorn without its own handling of signals, after which it would end by the signal and not with 0."""

    def install_signal_handlers(self) -> None:
        """Of versions before 0.29."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        """Of versions from 0.29 on."""
        yield


class _OneLine(logging.Formatter):
    """A line for each event: a traceback is folded into it."""

    def format(self, record: logging.LogRecord) -> str:
        return " | ".join(line for line in super().format(record).splitlines() if line.strip())


def _logger(name: str) -> logging.Logger:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(handler)
        root.setLevel(logging.INFO)
    return logging.getLogger(name)


def _port(port: int) -> int:
    for name in PORT_VARIABLES:
        text = os.environ.get(name, "")
        if text:
            if not (text.isdigit() and 0 < int(text) < 65536):
                raise SystemExit(f"{name} is {text!r}, which is no port")
            return int(text)
    return port
