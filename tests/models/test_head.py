"""Log-probabilities and gradients from tiles equal those from full logits, and no tensor has the size of the logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.models import head as head_module
from engine.models.head import Head, LabelStatistics, label_statistics

POSITIONS, HIDDEN, VOCABULARY = 37, 16, 501


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tile sizes that do not divide the dimensions, so that the last tiles are narrower."""
    monkeypatch.setattr(head_module, "TILE_POSITIONS", 10)
    monkeypatch.setattr(head_module, "TILE_TOKENS", 64)


def draw(*, trained: bool, bias: bool, **more: Any) -> tuple[Head, torch.Tensor, torch.Tensor]:
    """A head, hidden states and labels. The first labels are the likeliest tokens."""
    torch.manual_seed(4)
    weight, row = torch.randn(VOCABULARY, HIDDEN, requires_grad=trained), torch.randn(VOCABULARY, requires_grad=trained)
    head = Head(weight, row if bias else None, **more)
    hidden = torch.randn(POSITIONS, HIDDEN, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (POSITIONS,))
    labels[:9] = logits_of(head, hidden)[:9].argmax(dim=1)
    return head, hidden, labels


def logits_of(head: Head, hidden: torch.Tensor) -> torch.Tensor:
    logits = head.scale * (hidden @ head.weight.T + (0 if head.bias is None else head.bias))
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def by_definition(head: Head, hidden: torch.Tensor, labels: torch.Tensor) -> LabelStatistics:
    logits = logits_of(head, hidden)
    return LabelStatistics(
        logits.log_softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1),
        torch.distributions.Categorical(logits=logits).entropy(),
        logits.mean(dim=1),
        logits.argmax(dim=1) == labels,
    )


def gradients(figures: LabelStatistics, *leaves: torch.Tensor | None) -> list[torch.Tensor]:
    weights = torch.linspace(-2, 3, POSITIONS)  # no two positions have the same weight
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    return list(torch.autograd.grad((figures.logps * weights).sum(), wanted))


@pytest.mark.parametrize("more", [{}, {"scale": 0.7}, {"softcap": 3.0}, {"scale": 0.7, "softcap": 3.0}], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_statistics_and_gradients_match_the_definition(trained: bool, bias: bool, more: dict[str, float]):
    head, hidden, labels = draw(trained=trained, bias=bias, **more)
    expected, found = by_definition(head, hidden, labels), label_statistics(head, hidden, labels)
    assert expected.is_top1[:9].all() and not expected.is_top1.all()
    for name in LabelStatistics._fields:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=1e-5)
    leaves = (hidden, head.weight, head.bias)
    pairs = list(zip(gradients(found, *leaves), gradients(expected, *leaves), strict=True))
    assert len(pairs) == 1 + trained + (trained and bias)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_hidden_states_in_sixteen_bits_are_scored_in_float32_even_under_autocast():
    head, hidden, labels = draw(trained=False, bias=False)
    half = Head(head.weight.bfloat16(), None)
    states = hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = label_statistics(half, states, labels)
    exact = by_definition(Head(half.weight.float(), None), states.detach().float(), labels)
    torch.testing.assert_close(found.logps, exact.logps, atol=1e-5, rtol=1e-5)
    (grad,) = gradients(found, states)
    assert grad.dtype == torch.bfloat16


def test_a_batch_without_labels_works():
    head, hidden, labels = draw(trained=False, bias=False)
    found = label_statistics(head, hidden[:0], labels[:0])
    found.logps.sum().backward()
    assert found.logps.shape == (0,) and hidden.grad is not None and not hidden.grad.any()


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returned."""

    size = 0

    def __torch_dispatch__(self, operation: Any, _: Any, given: Any = (), named: Any = None) -> Any:
        result = operation(*given, **(named or {}))
        self.size = max([self.size, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))])
        return result


@pytest.mark.parametrize("trained", [False, True])
def test_no_tensor_has_the_size_of_the_logits(trained: bool):
    head, hidden, labels = draw(trained=trained, bias=False)
    with Largest() as ours:
        gradients(label_statistics(head, hidden, labels), hidden)
    with Largest() as full:
        gradients(by_definition(head, hidden, labels), hidden)
    # The weight itself is the largest, and its gradient if it is trained.
    assert ours.size <= VOCABULARY * HIDDEN < POSITIONS * VOCABULARY <= full.size
