"""Is there a way to a server? Asked once and shortly, before a client that tries for long."""

from __future__ import annotations

from fastllm.errors import DownloadError

_TIMEOUT_S = 4.0


def check_reachable(url: str) -> None:
    """Refuse when the server of `url`, or the proxy on the way to it, takes no connection.

    Raises
    ------
    DownloadError
        Its name is unknown here, or nobody answers; the text says which.
    """
    # Here and not above: a start that fetches nothing needs neither, and they take 10 ms.
    import socket
    import urllib.parse
    import urllib.request

    target = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(target.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    host = target.hostname
    try:
        port = target.port or (443 if target.scheme == "https" else 80)
        if not host:
            return  # an unusual setting, which the client may understand
        socket.create_connection((host, port), _TIMEOUT_S).close()
    except ValueError:
        return
    except OSError as error:
        raise DownloadError(
            f"{host} cannot be reached ({error.strerror or error}); check the network and try "
            "again, it resumes"
        ) from error
