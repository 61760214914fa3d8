"""``esper serve`` and ``esper key``: histories behind a service, and who may use it."""

# ruff: noqa: PLC0415 (imports inside commands: --help must not wait for them)

from contextlib import suppress
from ipaddress import ip_address
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from esper.contracts.errors import ConfigError

_FILES = 65_536
"""Open files that a service asks for, where the system allows so many."""

Keys = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File of API keys, which esper key makes; see there."),
]


def serve(  # noqa: PLR0913, PLR0917 (one for each option)
    store: Annotated[
        list[str],
        typer.Argument(
            metavar="[PROJECT=]STORE...",
            help="Store of each project, as letter=sqlite:///letter.db; project main if none is "
            "named.",
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0 for a free one.")] = 8000,
    keys: Keys = None,
    open_to_all: Annotated[
        bool, typer.Option("--open", help="Listen beyond this machine without keys.")
    ] = False,
    strategy: Annotated[
        str, typer.Option(metavar="NAME", help="Strategy for those who ask for choices.")
    ] = "auto",
    apprentice: Annotated[
        bool, typer.Option("--apprentice", help="Rank: answer the first action, and learn.")
    ] = False,
    wait: Annotated[
        float, typer.Option(min=0.1, help="Rank: seconds after which an event earns 0.")
    ] = 600.0,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate, for TLS.")
    ] = None,
    private_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its private key, for TLS.")
    ] = None,
    rate: Annotated[float, typer.Option(min=1, help="Requests a second of one key.")] = 1000.0,
) -> None:
    """Serve histories over HTTP: trainers share them, others ask for choices.

    Trainers: esper train --store http://:KEY@host:8000/PROJECT. The schema of all requests is at
    /openapi.json, a page to try them at /docs; /healthz, /readyz and /metrics tell how it is.
    """
    from esper.integrations.requirements import require

    for name in ("fastapi", "uvicorn", "prometheus_client"):
        require(name, "0", extra="serve")
    projects = dict(_project(one) for one in store)
    if len(projects) < len(store):
        raise ConfigError(f"a project is named twice: {', '.join(store)}; name each once")
    if keys is None and not open_to_all and not _is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from other machines, and without keys everybody may write; "
            "make keys (esper key NAME --keys FILE) and give --keys FILE, or say --open"
        )
    for option, value in (("--wait", wait), ("--rate", rate)):
        if not isfinite(value):
            raise ConfigError(f"{option} is {value}; it must be a number")
    for path in (certificate, private_key):
        if path is not None and not path.is_file():
            raise ConfigError(f"there is no file {path}")
    from esper.server.app import make_app
    from esper.server.gate import Limits
    from esper.server.keys import Keys as Book
    from esper.server.ranks import Settings

    limits = Limits(per_second=rate)
    settings = Settings(strategy=strategy, apprentice=apprentice, wait_s=wait)
    _allow_files()
    app = make_app(projects, keys=Book(keys), settings=settings, limits=limits)
    _run(app, host, port, certificate, private_key)


def key(
    name: Annotated[str, typer.Argument(help="Whose it is, for the logs of the service.")],
    keys: Annotated[Path, typer.Option(metavar="FILE", help="File that gets its hash.")],
    right: Annotated[str, typer.Option(metavar="RIGHT", help="read or write.")] = "write",
    project: Annotated[str, typer.Option(metavar="NAME", help="Project, or * for all.")] = "*",
) -> None:
    """Make an API key for esper serve, and print it, once.

    The file gets one line for it, with its hash; take the line out to revoke the key, which needs
    no restart. Clients take it from $ESPER_STORE_PASSWORD, or as http://:KEY@host.
    """
    from esper.server.keys import add_key

    typer.echo(add_key(keys, name, right, project))


def _project(text: str) -> tuple[str, str]:
    name, equals, url = text.partition("=")
    if not equals or ":" in name:  # a URL whose query has a "="
        name, url = "main", text
    if not name.isidentifier():
        raise ConfigError(f"project {name!r}: its name may have letters, digits and _ only")
    return name, url


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _run(app: Any, host: str, port: int, certificate: Path | None, key: Path | None) -> None:
    import uvicorn

    from esper.server.logs import LOGS

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=LOGS,
        access_log=False,
        timeout_graceful_shutdown=10,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    uvicorn.Server(config).run()


def _allow_files() -> None:
    """Raise the soft limit of open files: each client and scope has some."""
    with suppress(ImportError, OSError, ValueError):  # no such limit here, or none to be raised
        import resource

        kind = resource.RLIMIT_NOFILE
        soft, hard = resource.getrlimit(kind)
        most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
        if soft < most:
            resource.setrlimit(kind, (most, hard))
