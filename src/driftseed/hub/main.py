"""Starts and stops a hub's process."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from driftseed.core.addresses import HostPort, format_address, parse_host_port, parse_relay_url
from driftseed.core.errors import DeviceError, Misuse, NotFound, PortTaken
from driftseed.hub.api import OwnerServer, TokenGuard, load_token, token_app
from driftseed.hub.control import Control
from driftseed.hub.daemon import Hub, HubSettings
from driftseed.logs import LogOptions
from driftseed.net.relay import RelayServer
from driftseed.net.stun import StunServer
from driftseed.node.home import Home
from driftseed.node.process import run_alone, until_signalled
from driftseed.node.transfer import ContentSettings
from driftseed.store.files import read_secret
from driftseed.trust.hubkit import parse_hub_kit

SOCKET_NAME = "hub.sock"


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """``driftseed hub run``.

    Args:
        kit: the file that ``fleet hub-kit`` wrote.
        data: the hub's directory.
        listen: ``HOST:PORT``: UDP for devices, TCP for the relay and the API.
        public: where devices reach it, if not at ``listen``.
        relay_url: another relay to be reachable through; None serves its own.
        content: quota and limits.
        json_output: print the address as JSON.
        log: how to log.
    """

    kit: Path
    data: Path
    listen: str
    public: Sequence[str] = ()
    relay_url: str | None = None
    content: ContentSettings = field(default_factory=ContentSettings)
    stun: int | None = None
    """First of two UDP ports at which STUN is answered, for ``driftseed doctor``; None for none."""
    json_output: bool = False
    log: LogOptions = field(default_factory=LogOptions)


def run(options: HubOptions) -> None:
    """Run a hub until SIGTERM or SIGINT; prints its address when it is ready.

    Raises:
        Misuse: the kit is damaged or an address is none.
        PortTaken: the UDP or TCP port is.
        WrongFleet: the directory is another fleet's.
        DriftseedError: it cannot start, for its reason.
    """
    home = Home(options.data)
    home.create()
    run_alone(home, options.log, lambda: _serve(home, options))


async def _serve(home: Home, options: HubOptions) -> None:
    try:
        kit = parse_hub_kit(read_secret(options.kit))
    except NotFound:
        raise NotFound(f"no hub kit at {options.kit}", hint="driftseed fleet hub-kit DIR FILE") from None
    home.check_fleet(kit.fleet_id)
    listen = parse_host_port(options.listen, "an address to listen on")
    ip = await _resolve(listen)
    # TCP first: with port 0 both get the number that it chooses, so that one HOST:PORT names the hub.
    listener = _listen(ip, listen.port)
    port = int(listener.getsockname()[1])
    public = [await _public(text, port) for text in options.public] or [_socket_address(_reachable(ip), port)]
    relay_url = parse_relay_url(options.relay_url) if options.relay_url else f"http://{public[0]}"
    settings = HubSettings(
        bind=_socket_address(ip, port), public=public, relay=relay_url, content=options.content
    )
    try:
        hub = await Hub.open(kit, home, settings)
    except BaseException:
        listener.close()
        raise
    relay, stun = None, None
    app = web.Application()
    if options.relay_url is None:
        relay = RelayServer(
            hub.is_member, guests_reach=[hub.identity.device], expelled=hub.membership.is_revoked
        )
        relay.routes(app)
        hub.on_member = relay.promote
        hub.on_fleet_changed = relay.expel
    control = Control(hub, relay)
    guard = TokenGuard(load_token(home.directory), time.monotonic)
    app.add_subapp("/api/", token_app(control, guard))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    owner = OwnerServer(home.directory / SOCKET_NAME, control)
    try:
        await owner.start()
        await runner.setup()
        await web.SockSite(runner, listener).start()
        stun = StunServer.open(ip, options.stun) if options.stun is not None else None
        hub.start()
        _say_ready(hub, relay_url, json_output=options.json_output)
        await until_signalled(hub.node.failed)
    finally:
        if stun is not None:
            stun.close()
        await owner.close()
        await runner.cleanup()
        await hub.close()
        listener.close()


def _say_ready(hub: Hub, relay_url: str, *, json_output: bool) -> None:
    address = format_address(hub.public_address())
    if json_output:
        said = {"device": hub.identity.device, "address": address, "relay": relay_url, "fleet": hub.kit.fleet}
        sys.stdout.write(json.dumps(said) + "\n")
    else:
        sys.stdout.write(f"hub ready: {address}\n")
    sys.stdout.flush()


def _listen(ip: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((ip, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(
                f"cannot listen on {_socket_address(ip, port)}: the TCP port is taken",
                hint="stop the other process, or choose another port with --listen",
            ) from None
        raise DeviceError(
            f"cannot listen on {_socket_address(ip, port)}: {error.strerror}",
            hint="use an address of this machine",
        ) from None
    listener.setblocking(False)
    return listener


def _socket_address(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _reachable(ip: str) -> str:
    """The address at which a wildcard listener is reached: that of the interface of the default route."""
    if not ipaddress.ip_address(ip).is_unspecified:
        return ip
    family, far = (socket.AF_INET6, "2001:db8::1") if ":" in ip else (socket.AF_INET, "192.0.2.1")
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a UDP socket sends nothing; it only has the kernel choose the way (RFC 5737 address).
            probe.connect((far, 9))
        except OSError:
            return "::1" if ":" in ip else "127.0.0.1"
        return str(probe.getsockname()[0])


async def _public(text: str, port: int) -> str:
    where = parse_host_port(text, "a public address")
    return _socket_address(await _resolve(where), where.port or port)


async def _resolve(where: HostPort) -> str:
    """The IP address of a host. Raises Misuse."""
    try:
        return str(ipaddress.ip_address(where.host))
    except ValueError:
        pass  # a name: asked for below
    try:
        found = await asyncio.get_running_loop().getaddrinfo(where.host, where.port, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise Misuse(f"{where.host} cannot be resolved: {error}", hint="use an IP address") from None
    return str(found[0][4][0])
