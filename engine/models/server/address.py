"""The address of a server and its token, checked before anything is sent."""

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
    """Without a trailing slash, and without secrets."""
    token: Secret | None = None
    token_variable: str = SERVER_TOKEN_VARIABLE
    """The environment variable that contains its token."""
    option: str = "--server-url"
    """The option that the address comes from."""

    @property
    def model_option(self) -> str:
        return self.option.removesuffix("-url") + "-model"

    def of(self, path: str) -> str:
        return f"{self.url}/{path}"

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine."""
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
    """The server of `--server-url` (or of `option`), with its token from the environment.

    Raises ConfigError for an invalid address, AccessError for an invalid token, and UnsafeError if the token would be sent
    unencrypted.
    """
    token = _token(os.environ if environment is None else environment, token_variable)
    address = ServerAddress(_checked(url, token_variable, option), token, token_variable, option)
    if address.token and not address.is_loopback and address.url.startswith("http:"):
        raise UnsafeError(
            f"The token in {token_variable} would be sent to {address} in clear text.",
            "http:// is not encrypted, and the server is on another machine: anyone in between can read the token.",
            "Use https://, or a tunnel (ssh -L 8000:localhost:8000 HOST) and http://localhost:8000/v1; "
            f"if the server needs no token, unset {token_variable}.",
        )
    return address


def _checked(url: str, token_variable: str, option: str) -> str:
    url = url.strip()
    shown = visible_line(re.sub(r"[^/@]*@", "***@", re.split("[?#]", url)[0]), 200)
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise _invalid_address(option, shown, f"{error}.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not re.fullmatch(r"[\x21-\x7e]+", url):
        raise _invalid_address(
            option, shown, "An address is http:// or https://, a host, optionally a port, and a path."
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise _invalid_address(
            option,
            shown,
            "A user, password or query in it would end up in run.json and in every log.",
            f"Put the token into the variable {token_variable}, and pass the address without it.",
        )
    return url.rstrip("/").removesuffix("/chat/completions")


def _invalid_address(option: str, shown: str, why: str, what_to_do: str = "") -> ConfigError:
    return ConfigError(
        f"{option} {shown} is not a server address.",
        why,
        what_to_do or "Pass the address that the server printed when it started, such as http://localhost:8000/v1.",
    )


def _token(environment: Mapping[str, str], variable: str) -> Secret | None:
    value = environment.get(variable, "").strip()
    if not value:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", value):  # httpx2 would show all of it in its own error
        raise AccessError(
            f"{variable} does not contain a token.",
            "It has spaces, line breaks or characters outside ASCII.",
            "Copy the token again from its source.",
        )
    return Secret(value)
