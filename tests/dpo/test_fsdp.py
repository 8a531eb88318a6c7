"""Which modules of a sharded model are gathered on their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine.core.errors import PreconditionError
from engine.dpo.training.fsdp import layers_of, shard_model
from tests.support.tiny_models import FAMILIES, base_config, build_tokenizer


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def model_of(family: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(base_config(family, build_tokenizer()))
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("named", [True, False])
def test_each_layer_is_gathered_on_its_own(family: str, named: bool, one_process: None):
    model = model_of(family)
    if not named:  # as for three dozen of transformers' models
        model._no_split_modules = None
    decoder = list(model.get_decoder().layers)
    assert set(layers_of(model)) == set(decoder) and len(decoder) == 2
    shard_model(model, layers_of(model), torch.device("cpu"), 1)
    assert {module for module in model.modules() if isinstance(module, FSDPModule)} == {model, *decoder}


def test_a_model_without_layers_is_refused():
    model = nn.Linear(2, 2)
    model._no_split_modules = None
    with pytest.raises(PreconditionError, match=r"Linear has no list of layers .* --sharding ddp"):
        layers_of(model)  # type: ignore[arg-type]
