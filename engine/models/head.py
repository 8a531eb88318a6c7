"""Log-probabilities of labels from last hidden states, without ever materialising the (N, V) logits.

The usual way computes the logits of all positions, and autograd keeps several tensors of that size: with 2,000 positions and a
vocabulary of 256,000, each takes 2 GB in float32. Here logits exist one tile at a time. The statistics of a softmax can be
carried from tile to tile (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"), and so can its gradient:

    d log p(label) / d h = W[label] - sum over v of p(v) W[v]

is computed in the same pass, as FlashAttention (Dao et al. 2022) computes attention without storing the scores, so that the
backward pass only scales it. If the head itself is trained, it needs its own gradient, and the tiles are computed again.

Letters for shapes: N positions, H hidden size, V vocabulary, n and v the sizes of a tile. Imports torch; import it where it is
used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from engine.models.tensors import full_tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TILE_POSITIONS, TILE_TOKENS = 512, 4096
"""A tile takes 8 MB in float32, so that a few of them fit a processor's cache (bench/head.py)."""

TOLERANCE_FLOAT32, TOLERANCE_HALF = 1e-3, 0.1
"""Nats per token. A model in 16 bits rounds its logits, which a tile does not."""


@dataclass(frozen=True)
class Head:
    """How a model computes logits from hidden states h: softcap · tanh(scale · (W h + b) / softcap)."""

    weight: Tensor
    """(V, H)."""
    bias: Tensor | None
    """(V,)."""
    scale: float = 1.0
    softcap: float | None = None

    @property
    def is_trained(self) -> bool:
        return self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)


class LabelStatistics(NamedTuple):
    """Statistics per position, each (N,), in float32 except for `is_top1`. Only `logps` has a gradient."""

    logps: Tensor
    """Log-probability of the label, in nats."""
    entropy: Tensor
    """Entropy of the distribution over the vocabulary, in nats."""
    mean_logits: Tensor
    is_top1: Tensor
    """Bool: whether no token is likelier than the label."""


def head_of(model: PreTrainedModel) -> Head | None:
    """The model's current head (PEFT may have replaced it with a trained copy); None if it is not a plain linear layer.

    Whether the forward pass changes the logits in other ways than `Head` describes cannot be seen here: check with
    `reproduces_logits` before use.
    """
    module = _active_module(model.get_output_embeddings())
    if type(module) is not nn.Linear:
        return None
    scale, softcap = _logit_scaling(model.config)
    return Head(full_tensor(module.weight), None if module.bias is None else full_tensor(module.bias), scale, softcap)


def reproduces_logits(model: PreTrainedModel, forward: Callable[..., Any] | None = None) -> bool:
    """Whether `head_of` reproduces the model's own logits, on a few tokens. A model may change them after its head.

    forward   computes the logits; by default the model. For a sharded model, the module that wraps it
    """
    try:
        head = head_of(model)
        return head is not None and _difference(model, forward or model, head) < (
            TOLERANCE_FLOAT32 if model.dtype == torch.float32 else TOLERANCE_HALF
        )
    except (ValueError, TypeError, RuntimeError, IndexError, AttributeError):
        return False


def _difference(model: PreTrainedModel, forward: Callable[..., Any], head: Head) -> float:
    """Mean difference in nats per token between our log-probabilities and those of the model's logits."""
    hidden_states: list[Any] = []
    hook = model.base_model.register_forward_hook(lambda _, __, output: hidden_states.append(output.last_hidden_state))
    ids = (torch.arange(1, 9, device=model.device) * 7 % len(head.weight)).unsqueeze(0)
    try:
        with torch.no_grad():
            logits = forward(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    labels = ids[0].flip(0)
    theirs = logits[0].float().log_softmax(dim=-1).gather(1, labels.unsqueeze(1)).squeeze(1)
    with torch.no_grad():
        ours = label_statistics(head, hidden_states[0][0], labels).logps
    return float((theirs - ours).abs().mean())


def _active_module(module: Any) -> Any:
    """The module in use: PEFT's copy from `modules_to_save`, unless adapters are disabled."""
    from peft.utils.other import ModulesToSaveWrapper

    if not isinstance(module, ModulesToSaveWrapper):
        return module
    on = [] if module.disable_adapters else [name for name in module.active_adapters if name in module.modules_to_save]
    return module.modules_to_save[on[0]] if on else module.original_module


def _logit_scaling(config: Any) -> tuple[float, float | None]:
    """Scale and softcap of the logits, by their names in transformers' configurations: Gemma 2 caps the logits; Cohere and
    Falcon-H1 multiply them, Granite and MiniCPM 3 divide them.
    """
    text = config.get_text_config()

    def number(name: str) -> float | None:
        value = getattr(text, name, None)
        return float(value) if isinstance(value, (int, float)) else None

    factors = map(number, ("logit_scale", "output_multiplier", "lm_head_multiplier"))
    scale = next((value for value in factors if value is not None), None)
    divisor = number("logits_scaling")
    if scale is None and divisor:
        scale = divisor if text.model_type == "hyperclovax" else 1 / divisor
    return 1.0 if scale is None else scale, number("final_logit_softcapping")


def label_statistics(head: Head, hidden: Tensor, labels: Tensor) -> LabelStatistics:
    """The statistics of `labels` (N,) after `hidden` (N, H), computed in float32. They are exact, with gradients for `hidden` and,
    if it is trained, for the head."""
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or head.is_trained)
    # With a base model on several GPUs, the head may be on another one.
    label_device, head_device = labels.device, head.weight.device
    statistics = LabelStatisticsFunction.apply(  # type: ignore[no-untyped-call]
        hidden.to(head_device), head.weight, head.bias, labels.to(head_device), head.scale, head.softcap, needs_grad
    )
    return LabelStatistics(*(figure.to(label_device) for figure in statistics))


class LabelStatisticsFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
        scale: float, softcap: float | None, needs_grad: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        head = Head(weight, bias, scale, softcap)
        single_pass = needs_grad and not any(ctx.needs_input_grad[1:3])
        with torch.autocast(hidden.device.type, enabled=False):
            pass_ = _Pass(head, hidden.float(), labels, gradient=single_pass)
            pass_.run()
            statistics = pass_.statistics()
            ctx.head, ctx.single_pass = (scale, softcap), single_pass
            if single_pass:
                ctx.dtype = hidden.dtype
                ctx.save_for_backward(pass_.hidden_grad())
            elif needs_grad:
                ctx.save_for_backward(hidden, weight, bias, labels, pass_.log_sum)
        ctx.mark_non_differentiable(*statistics[1:])
        return tuple(statistics)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        if ctx.single_pass:
            (hidden_grad,) = ctx.saved_tensors
            return (hidden_grad.mul(grad.unsqueeze(1)).to(ctx.dtype), *(None,) * 6)
        hidden, weight, bias, labels, log_sum = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            grads = _gradients(Head(weight, bias, *ctx.head), hidden, labels, log_sum, grad.float())
        return (*grads, None, None, None, None)


class _Pass:
    """One pass over all tiles. Holds the running statistics of each position over the part of the vocabulary processed so far.

    Below, z are the logits of a position, and max is the largest of them so far.
    """

    def __init__(self, head: Head, hidden: Tensor, labels: Tensor, *, gradient: bool) -> None:
        self.head, self.hidden, self.labels = head, hidden, labels
        zeros = hidden.new_zeros(len(hidden))
        self.max_logit = torch.full_like(zeros, -torch.inf)
        self.exp_sum, self.exp_logit_sum, self.logit_sum, self.label_logit = (zeros.clone() for _ in range(4))
        """Sums over the vocabulary of exp(z - max), of exp(z - max) · z, and of z; and the label's z. All (N,)."""
        self.weighted_rows = torch.zeros_like(hidden) if gradient else None
        """(N, H): the sum over the vocabulary of exp(z - max) · dz/d(W h) · W[v]."""

    def run(self) -> None:
        for vocab_slice in _slices(len(self.head.weight), TILE_TOKENS):
            weight = self.head.weight[vocab_slice].float()  # (v, H)
            for rows in _slices(len(self.hidden), TILE_POSITIONS):
                self._fold(rows, vocab_slice.start, _logits(self.head, self.hidden[rows], weight, vocab_slice), weight)

    def _fold(self, rows: slice, offset: int, logits: Tensor, weight: Tensor) -> None:
        """Add one tile of logits, (n, v), whose first token is `offset`; `weight` is its part of the head, (v, H)."""
        max_logit = torch.maximum(self.max_logit[rows], logits.amax(dim=1))
        rescale = (self.max_logit[rows] - max_logit).exp_()
        exp_logits = (logits - max_logit.unsqueeze(1)).exp_()  # (n, v)
        self.max_logit[rows] = max_logit
        self.exp_sum[rows] = self.exp_sum[rows] * rescale + exp_logits.sum(dim=1)
        self.exp_logit_sum[rows] = self.exp_logit_sum[rows] * rescale + torch.linalg.vecdot(exp_logits, logits)
        self.logit_sum[rows] += logits.sum(dim=1)
        _store_label_logits(self.label_logit[rows], logits, self.labels[rows] - offset)
        if self.weighted_rows is not None:
            if self.head.softcap is not None:
                exp_logits *= _softcap_grad(logits, self.head.softcap)
            self.weighted_rows[rows].mul_(rescale.unsqueeze(1)).addmm_(exp_logits, weight)

    @property
    def log_sum(self) -> Tensor:
        return self.max_logit + self.exp_sum.log()

    def statistics(self) -> LabelStatistics:
        return LabelStatistics(
            self.label_logit - self.log_sum,
            self.log_sum - self.exp_logit_sum / self.exp_sum,
            self.logit_sum / len(self.head.weight),
            self.label_logit >= self.max_logit,
        )

    def hidden_grad(self) -> Tensor:
        """The gradient of the log-probabilities with respect to the hidden states, (N, H)."""
        assert self.weighted_rows is not None
        own = self.head.weight[self.labels].float()
        if self.head.softcap is not None:
            own = own * _softcap_grad(self.label_logit, self.head.softcap).unsqueeze(1)
        return own.sub_(self.weighted_rows.div_(self.exp_sum.unsqueeze(1))).mul_(self.head.scale)


def _gradients(
    head: Head, hidden: Tensor, labels: Tensor, log_sum: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of hidden states (N, H), weight (V, H) and bias (V,), from `grad` (N,), the gradient of the log-probabilities."""
    hidden_float = hidden.float()
    hidden_grads = torch.zeros_like(hidden_float)
    weight_grads = torch.zeros(head.weight.shape, dtype=torch.float32, device=hidden.device)
    bias_grads = None if head.bias is None else torch.zeros(len(head.bias), device=hidden.device)
    for vocab_slice in _slices(len(head.weight), TILE_TOKENS):
        weight = head.weight[vocab_slice].float()
        for rows in _slices(len(hidden), TILE_POSITIONS):
            logits = _logits(head, hidden_float[rows], weight, vocab_slice)
            row_grads = grad[rows].unsqueeze(1)
            logit_grads = (logits - log_sum[rows].unsqueeze(1)).exp_().mul_(-row_grads)  # (n, v)
            _add_label_grads(logit_grads, labels[rows] - vocab_slice.start, grad[rows])
            if head.softcap is not None:
                logit_grads *= _softcap_grad(logits, head.softcap)
            logit_grads *= head.scale
            hidden_grads[rows].addmm_(logit_grads, weight)
            weight_grads[vocab_slice].addmm_(logit_grads.T, hidden_float[rows])
            if bias_grads is not None:
                bias_grads[vocab_slice] += logit_grads.sum(dim=0)
    return (
        hidden_grads.to(hidden.dtype),
        weight_grads.to(head.weight.dtype),
        None if bias_grads is None or head.bias is None else bias_grads.to(head.bias.dtype),
    )


def _logits(head: Head, hidden: Tensor, weight: Tensor, vocab_slice: slice) -> Tensor:
    """One tile of logits, (n, v), in float32."""
    logits = hidden @ weight.T
    if head.bias is not None:
        logits += head.bias[vocab_slice].float()
    if head.softcap is not None:
        return logits.mul_(head.scale / head.softcap).tanh_().mul_(head.softcap)
    return logits if head.scale == 1.0 else logits.mul_(head.scale)


def _softcap_grad(logits: Tensor, softcap: float) -> Tensor:
    """The derivative of the softcap, from the logits that it returned: 1 - tanh²."""
    return 1 - (logits / softcap).square_()


def _store_label_logits(into: Tensor, logits: Tensor, columns: Tensor) -> None:
    """Store the logits of the labels that are in this tile; `columns` are the labels' columns, which may lie outside of it."""
    within = (columns >= 0) & (columns < logits.shape[1])
    into[within] = logits[within, columns[within]]


def _add_label_grads(logit_grads: Tensor, columns: Tensor, grad: Tensor) -> None:
    """Add the gradients of the labels' own logits, for the labels that are in this tile."""
    within = (columns >= 0) & (columns < logit_grads.shape[1])
    logit_grads[within, columns[within]] += grad[within]


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
