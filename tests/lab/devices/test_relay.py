"""Relays pass bytes on, and report the end of the connection to another process."""

import queue
import socket

import pytest

from bulk_sgd.lab.devices.relay import Relay, relayed


@pytest.mark.parametrize("far", [True, False])
@pytest.mark.parametrize("armed", [True, False])
def test_only_the_end_of_another_process_is_a_loss(far, armed):
    lost = queue.Queue()
    server = socket.create_server(("127.0.0.1", 0))
    listener = socket.create_server(("127.0.0.1", 0))
    relay = Relay(listener, server.getsockname(), far, lost.put)
    relay.armed = armed
    for remote_ends in False, True:
        near = socket.create_connection(listener.getsockname(), timeout=5)
        distant, _ = server.accept()
        for one, other in (near, distant), (distant, near):
            one.sendall(b"heart" + b"beat" * 10_000)
            assert other.recv(40_005, socket.MSG_WAITALL).endswith(b"beatbeat")
        gone, stays = (distant, near) if far == remote_ends else (near, distant)
        gone.close()
        assert stays.recv(1) == b""  # closed
        stays.close()
        if armed and remote_ends:
            assert lost.get(timeout=5) == "127.0.0.1"
    assert lost.empty()


def test_process_0_that_is_not_there_yet_is_tried_again():
    server = socket.create_server(("127.0.0.1", 0))
    address = server.getsockname()
    server.close()
    listener = socket.create_server(("127.0.0.1", 0))
    Relay(listener, address, True, pytest.fail).armed = True
    early = socket.create_connection(listener.getsockname(), timeout=5)
    assert early.recv(1) == b""
    server = socket.create_server(address)
    socket.create_connection(listener.getsockname(), timeout=5).sendall(b"now")
    assert server.accept()[0].recv(3) == b"now"


def test_other_inner_functions_of_jax_are_left_alone(monkeypatch):
    monkeypatch.delattr("jax._src.distributed._jax")
    with relayed(pytest.fail) as relays:
        pass
    assert relays == []
