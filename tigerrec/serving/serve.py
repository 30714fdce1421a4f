"""The server as a process: where it listens, and how it ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tigerrec import TigerrecError

if TYPE_CHECKING:
    import socket

    from tigerrec.search.options import Scores

SECONDS_TO_FINISH = 30


def serve(
    model: Path, host: str = "127.0.0.1", port: int = 8000, token: str | None = None, device: str = "auto",
    most_waiting: int = 1024, scores: Scores | None = None,
) -> None:  # fmt: skip
    """Serve a train stage or an export over HTTP until SIGTERM or Ctrl-C, which let requests end; prints the address
    once it answers.

    Args:
        port: up to 65535; 0 takes a free one.
        token: what requests have to bring; needed where others than this machine can reach the server.
        most_waiting: how many requests may wait, one at least; more are answered with 503.
        scores: as in `Recommender.from_pretrained`.

    Raises:
        TigerrecError: the packages are missing, a number is out of range, the model cannot be read, the address is
            taken, or it is open to others without a token.
    """
    for option, value, least, most in (("port", port, 0, 65_535), ("waiting", most_waiting, 1, None)):
        if value < least or (most is not None and value > most):
            allowed = f"{least} or more" if most is None else f"from {least} to {most}"
            raise TigerrecError(f"--{option} {value} must be {allowed}; give `--{option} <number>`.")
    try:
        import uvicorn

        from tigerrec.serving.guard import is_local
        from tigerrec.serving.server import make_app
    except ModuleNotFoundError as error:
        raise TigerrecError(f'Serving needs the package {error.name}; run `pip install "tigerrec[serve]"`.') from None
    if token is not None and not token.strip():
        raise TigerrecError("The token is empty; give one, or leave `--token` out to serve this machine alone.")
    if token is None and not is_local(host):
        raise TigerrecError(
            f"Others can reach a server at {host}; give it a token by `--token <token>` or in TIGERREC_TOKEN, "
            "or leave `--host` out."
        )

    class Announcing(uvicorn.Server):
        """A server that prints its address when it answers."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                address = self.servers[0].sockets[0].getsockname()
                print(f"http://{host if ':' not in host else f'[{host}]'}:{address[1]}", flush=True)

    app: Any = make_app(model, device, token, most_waiting, scores)
    config = uvicorn.Config(
        app, host, port, log_level="warning", access_log=False, timeout_graceful_shutdown=SECONDS_TO_FINISH, ws="none"
    )
    server = Announcing(config)
    try:
        server.run()
    except SystemExit:  # what uvicorn logged
        raise TigerrecError(f"Cannot listen at {host}:{port}; choose another port by `--port <port>`.") from None
