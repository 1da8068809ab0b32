"""The wires of a job, held by this process: it sees first when one of them breaks.

JAX connects all processes of a job to a service in process 0. Where such a connection
breaks, its runtime aborts the process on the spot, with a dump and without a word to
Python. Where a process other than 0 is killed outside of a collective, it says so only
after missing its heartbeats for 100 seconds. So both ends of each connection pass
through a thread of their own process. It notices at once that the other end is gone,
and tells Python, while JAX still takes the connection to be open.
"""

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable

import jax

# After these seconds and probes, or milliseconds with data under way, a host that
# vanished counts as gone.
_KEEPALIVE = {
    "TCP_KEEPIDLE": 4,
    "TCP_KEEPINTVL": 2,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 10_000,
}


class Relay(threading.Thread):
    """Passes on what comes to a socket that listens, to another address and back.

    One of the two ends is on another host, that of the `address` where it is `far`.
    Once the relay is `armed`, it reports that this end is gone: `lost(host)`.
    """

    def __init__(self, listener: socket.socket, address: tuple, far: bool, lost):
        super().__init__(daemon=True)
        self.armed = False
        self._listener, self._address = listener, address
        self._far, self._lost = far, lost
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self.start()

    def run(self):
        """Serves all connections until the process ends."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj.fileno() >= 0:  # not closed in this round
                    self._pass_on(key.fileobj, *key.data)

    def _accept(self):
        near, (host, *_) = self._listener.accept()
        try:
            far = socket.create_connection(self._address, timeout=10)
        except OSError:  # process 0 is not there yet, and JAX tries again
            near.close()
            return
        # Whom the end of each is the loss of, if of anyone.
        ends = (near, far, None if self._far else host), (
            far, near, self._address[0] if self._far else None
        )  # fmt: skip
        far.settimeout(None)
        for one, other, host in ends:
            _keep_alive(one)
            self._selector.register(one, selectors.EVENT_READ, (other, host))

    def _pass_on(self, one, other, host):
        try:
            data = one.recv(2**16)
        except OSError:  # reset
            data = b""
        if data:
            with contextlib.suppress(OSError):  # `other` will say so itself
                other.sendall(data)
            return
        if self.armed and host:
            self._lost(host.removeprefix("::ffff:"))
        for end in one, other:
            self._selector.unregister(end)
            end.close()


@contextlib.contextmanager
def relayed(lost: Callable):
    """Lets `jax.distributed.initialize` in its body connect through relays.

    They report what breaks after the body. Yields the list of them, none where JAX has
    other inner functions than we know.
    """
    runtime = getattr(jax._src.distributed, "_jax", None)
    names = "get_distributed_runtime_service", "get_distributed_runtime_client"
    relays, known = [], [getattr(runtime, name, None) for name in names]
    if None in known:
        yield relays
        return
    make_service, make_client = known
    inner = []  # where the service of this process listens, if it has one

    def service(address, *args, **options):
        inner.append(_free_address())
        relays.append(Relay(_listen(address), inner[0], False, lost))
        return make_service(_text(inner[0]), *args, **options)

    def client(address, *args, **options):
        if not inner:
            near = socket.create_server(("127.0.0.1", 0))
            relays.append(Relay(near, _parsed(address), True, lost))
            inner.append(near.getsockname())
        return make_client(_text(inner[0]), *args, **options)

    try:
        for name, ours in zip(names, (service, client)):
            setattr(runtime, name, ours)
        yield relays
    finally:
        for name, theirs in zip(names, known):
            setattr(runtime, name, theirs)
    for relay in relays:
        relay.armed = True


def _listen(address: str) -> socket.socket:
    host, port = _parsed(address)
    if host in ("::", "0.0.0.0") and socket.has_dualstack_ipv6():
        family = socket.AF_INET6
        return socket.create_server(("", port), family=family, dualstack_ipv6=True)
    return socket.create_server(("" if host == "::" else host, port))


def _free_address() -> tuple:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _text(address: tuple) -> str:
    return f"{address[0]}:{address[1]}"


def _keep_alive(connection: socket.socket):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
