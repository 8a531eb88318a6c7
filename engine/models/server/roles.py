"""The roles of servers: policy (drafts), critic (critiques and revisions), judge. Each has its own address, model and token; the
judge may share the policy's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.core.config import Stage3Config
from engine.core.errors import ConfigError
from engine.security.secrets import SERVER_TOKEN_VARIABLE

Role = Literal["server", "critic", "judge"]


@dataclass(frozen=True)
class ServerRole:
    urls: tuple[str, ...]
    """One or several addresses, which serve the same model."""
    model: str
    role: Role
    """The option that the address comes from: `--server-url`, `--critic-url` or `--judge-url`."""
    token_variable: str

    @property
    def url_option(self) -> str:
        return f"--{self.role}-url"

    @property
    def model_option(self) -> str:
        return f"--{self.role}-model"


def policy_server(config: Stage3Config) -> ServerRole | None:
    """The policy's server; None if the policy runs locally. Raises ConfigError if the address has no model."""
    return _role("server", config.server_url, config.server_model, SERVER_TOKEN_VARIABLE)


def critic_server(config: Stage3Config) -> ServerRole | None:
    """The critic's server; None if the policy writes critiques and revisions."""
    return _role("critic", config.critic_url, config.critic_model, config.critic_api_key_env)


def judge_server(config: Stage3Config) -> ServerRole | None:
    """The judge's server: `--judge-url` and `--judge-model`, else the policy's; None if neither is given."""
    if config.judge_url is not None:
        return _role("judge", config.judge_url, config.judge_model or config.server_model, config.judge_api_key_env)
    if config.server_url is None and config.judge_model is not None:
        return _role("judge", None, config.judge_model, config.judge_api_key_env)
    return _role("server", config.server_url, config.judge_model or config.server_model, SERVER_TOKEN_VARIABLE)


def _role(role: Role, urls: tuple[str, ...] | None, model: str | None, variable: str) -> ServerRole | None:
    if urls and model:
        return ServerRole(urls, model, role, variable)
    if not urls and (role == "server" or not model):
        return None  # a model name alone is ignored, as --server-model always was
    given, missing = ("url", "model") if urls else ("model", "url")
    raise ConfigError(
        f"--{role}-{given} needs --{role}-{missing}.",
        "A request needs the server's address and the name of a model on it.",
        f"Pass --{role}-{missing}, too.",
    )
