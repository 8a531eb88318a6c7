"""The Hugging Face Hub: the token, its account, what it may read, and an error for each kind of rejection.

One subject per file: `tokens` (where a token comes from), `account` (whose it is, and its scope), `access` (what it may
read, and at which commit), `login` (with a browser and a code), `store` (saving a token, on request), `cache` (local
copies), `errors` (from a response), `exception_mapping` (from a library's exception), `requests` and `client` (requests
with time limits).

Error texts come from a response's status and headers, never from the request, so no message, cause or log contains the
token.
"""

from engine.hub.access import check_access, commit_of
from engine.hub.account import Account, Scope, whoami
from engine.hub.cache import cached_snapshot, missing_from, unfinished_bytes
from engine.hub.client import is_offline, limit_requests
from engine.hub.errors import GatedRepository, InvalidToken, invalid_token, offline, with_token_hint
from engine.hub.exception_mapping import as_hub_error
from engine.hub.login import LoginCode, await_token, request_code
from engine.hub.store import store_token
from engine.hub.tokens import TOKEN_VARIABLES, FoundToken, find_token, other_sources, remember
from engine.hub.urls import TOKENS_PAGE, RepoType, page_of

__all__ = [
    "TOKENS_PAGE",
    "TOKEN_VARIABLES",
    "Account",
    "FoundToken",
    "GatedRepository",
    "InvalidToken",
    "LoginCode",
    "RepoType",
    "Scope",
    "as_hub_error",
    "await_token",
    "cached_snapshot",
    "check_access",
    "commit_of",
    "find_token",
    "invalid_token",
    "is_offline",
    "limit_requests",
    "missing_from",
    "offline",
    "other_sources",
    "page_of",
    "remember",
    "request_code",
    "store_token",
    "unfinished_bytes",
    "whoami",
    "with_token_hint",
]
