"""The demo's base model, adapter and prompts as repositories of the fake Hub, readable with any token."""

from __future__ import annotations

from engine.demo.preset import ASSETS, demo_defaults
from tests.support.fake_hub import FakeHub

REPOSITORIES = {
    "base_model_id": ("someone/tiny", "base"),
    "adapter_path": ("someone/stage2", "adapter"),
    "dataset": ("someone/prompts", "prompts"),
}


def put_demo_on(hub: FakeHub) -> None:
    for repo, folder in REPOSITORIES.values():
        hub.files[repo] = {path.name: path.read_bytes() for path in (ASSETS / folder).iterdir() if path.is_file()}
        hub.repos[repo] = "members"


def options_from_the_hub() -> dict[str, object]:
    """The demo's options, with Hub ids for models and prompts."""
    return {**demo_defaults(), **{option: repo for option, (repo, _) in REPOSITORIES.items()}}
