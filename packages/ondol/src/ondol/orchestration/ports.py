"""Ports of the loopback: which is free, and who holds one."""

import ipaddress
import socket
from contextlib import suppress

from ondol.orchestration.guard import free_port
from ondol.orchestration.processes import LOOPBACK, Record, family


def choose_port(wanted: int) -> int:
    """Return `wanted` where nothing listens on it, or else a port that is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except OSError:
            return free_port()
    return wanted


def is_loopback(host: str) -> bool:
    """Return True if `host` is a name or an address that no other machine can reach."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listens(record: Record) -> bool:
    """Tell whether a process of the record holds its port: a stranger may have taken it first."""
    import psutil

    for process in family(record):
        with suppress(psutil.Error, OSError):
            held = process.net_connections("inet")
            if any(one.status == psutil.CONN_LISTEN and one.laddr.port == record.port for one in held):
                return True
    return False


def is_taken(record: Record) -> bool:
    """Tell whether a stranger listens on the port of a record."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        if probe.connect_ex((LOOPBACK, record.port or 0)):
            return False
    return not listens(record)
