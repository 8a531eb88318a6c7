"""Where a server is, and the token for it: checked before anything is sent."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from engine.core.errors import AccessError, ConfigError, UnsafeError
from engine.security.sanitize import visible_line
from engine.security.secrets import SERVER_TOKEN_VARIABLE, Secret


@dataclass(frozen=True)
class ServerAddress:
    url: str
    """Without a slash at its end, and without anything secret in it."""
    token: Secret | None = None
    token_variable: str = SERVER_TOKEN_VARIABLE
    """Where its token is looked for."""
    option: str = "--server-url"
    """What it was given by."""

    @property
    def model_option(self) -> str:
        return self.option.removesuffix("-url") + "-model"

    def of(self, path: str) -> str:
        return f"{self.url}/{path}"

    @property
    def is_loopback(self) -> bool:
        """Whether nothing that is sent there leaves this machine."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def __str__(self) -> str:
        return self.url


def server_address(
    url: str,
    environment: Mapping[str, str] | None = None,
    *,
    token_variable: str = SERVER_TOKEN_VARIABLE,
    option: str = "--server-url",
) -> ServerAddress:
    """The server of `--server-url` (of `option`), with the token of the environment.

    Raises ConfigError for what is no such address, AccessError for what cannot be a token, and UnsafeError if the token
    would travel unencrypted.
    """
    token = _token(os.environ if environment is None else environment, token_variable)
    address = ServerAddress(_checked(url, token_variable, option), token, token_variable, option)
    if address.token and not address.is_loopback and address.url.startswith("http:"):
        raise UnsafeError(
            f"The token in {token_variable} would be sent to {address} in clear text.",
            "http:// is not encrypted, and the server is on another machine: whoever is between can read the token.",
            "Use https://, or a tunnel (ssh -L 8000:localhost:8000 HOST) and http://localhost:8000/v1; "
            f"a server that asks for no token needs none: unset {token_variable}.",
        )
    return address


def _checked(url: str, token_variable: str, option: str) -> str:
    url = url.strip()
    shown = visible_line(re.sub(r"[^/@]*@", "***@", re.split("[?#]", url)[0]), 200)
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise _no_address(option, shown, f"{error}.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not re.fullmatch(r"[\x21-\x7e]+", url):
        raise _no_address(option, shown, "An address is http:// or https://, a host, perhaps a port, and a path.")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise _no_address(
            option,
            shown,
            "A user, a password or a query in it would stand in run.json and in every log.",
            f"Give the token in the variable {token_variable}, and the address without it.",
        )
    return url.rstrip("/").removesuffix("/chat/completions")


def _no_address(option: str, shown: str, why: str, what_to_do: str = "") -> ConfigError:
    return ConfigError(
        f"{option} {shown} is no address of a server.",
        why,
        what_to_do or "Give the one that the server printed when it started, like http://localhost:8000/v1.",
    )


def _token(environment: Mapping[str, str], variable: str) -> Secret | None:
    value = environment.get(variable, "").strip()
    if not value:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", value):  # httpx2 would show it whole in its own error
        raise AccessError(
            f"{variable} holds no token.",
            "There are spaces, line breaks or characters outside ASCII in it.",
            "Copy it again from where it was made.",
        )
    return Secret(value)
