"""Proxies that the environment names: nothing that is for this machine goes through one."""

import os

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy")
EXCEPTIONS = ("no_proxy", "NO_PROXY")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
BRACKETS = str.maketrans("", "", "[]")  # of IPv6 addresses: httpx takes them for a part of a name


def keep_loopback_direct() -> None:
    """Let no library, here and in processes started from here, send what is for this machine through a proxy.

    Every server that is started here listens on the loopback. Each library reads the variables in its own way, so both
    spellings of NO_PROXY say the same. A proxy that httpx cannot use (SOCKS without `socksio`, or no address at all)
    would stop Prefect's client even where no request goes through it; httpx alone takes a "*" among other names for
    "no proxies".
    """
    if not any(name.lower() in VARIABLES and value for name, value in os.environ.items()):
        return
    said = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name.strip().translate(BRACKETS) for name in said.split(",") if name.strip()]
    if names != ["*"]:
        names = list(dict.fromkeys([*names, *LOOPBACK]))
    if {os.environ.get(name) for name in EXCEPTIONS} == {",".join(names)}:
        return
    os.environ.update(dict.fromkeys(EXCEPTIONS, ",".join(names)))
    import httpx

    try:
        httpx.Client().close()
    except (ImportError, ValueError, httpx.InvalidURL):
        os.environ.update(dict.fromkeys(EXCEPTIONS, ",".join([*names, "*"])))
