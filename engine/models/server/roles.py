"""Who asks a server: the policy (drafts), the critic (critiques and revisions), the judge. Each has its own address, model and
token; the judge may share the policy's.
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
    url: str
    model: str
    role: Role
    """Whose options the address came from: `--server-url`, `--critic-url`, `--judge-url`."""
    token_variable: str

    @property
    def url_option(self) -> str:
        return f"--{self.role}-url"

    @property
    def model_option(self) -> str:
        return f"--{self.role}-model"


def policy_server(config: Stage3Config) -> ServerRole | None:
    """Where the policy drafts; None if it does so here. Raises ConfigError for half a server."""
    return _role("server", config.server_url, config.server_model, SERVER_TOKEN_VARIABLE)


def critic_server(config: Stage3Config) -> ServerRole | None:
    """Where critiques and revisions are written; None if the policy writes them."""
    return _role("critic", config.critic_url, config.critic_model, config.critic_api_key_env)


def judge_server(config: Stage3Config) -> ServerRole | None:
    """The server that judges: of `--judge-url` and `--judge-model`, else the policy's; None if neither is given."""
    if config.judge_url is not None:
        return _role("judge", config.judge_url, config.judge_model or config.server_model, config.judge_api_key_env)
    if config.server_url is None and config.judge_model is not None:
        return _role("judge", None, config.judge_model, config.judge_api_key_env)
    return _role("server", config.server_url, config.judge_model or config.server_model, SERVER_TOKEN_VARIABLE)


def _role(role: Role, url: str | None, model: str | None, variable: str) -> ServerRole | None:
    if url and model:
        return ServerRole(url, model, role, variable)
    if not url and (role == "server" or not model):
        return None  # a model's name alone counts for nothing: --server-model did so before
    given, missing = ("url", "model") if url else ("model", "url")
    raise ConfigError(
        f"--{role}-{given} stands alone.",
        "A server is asked by its address and the model's name on it.",
        f"Give --{role}-{missing} too.",
    )
