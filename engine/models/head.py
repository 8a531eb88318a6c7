"""Log-probabilities of labels from last hidden states, without ever holding the (N, V) logits.

The plain way makes logits of all positions, and autograd keeps several tensors of that size: with 2,000 positions and a
vocabulary of 256,000, each is 2 GB in float32. Here logits exist one tile at a time. Statistics of a softmax can be
carried from tile to tile (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"), and so can its gradient:

    d log p(label) / d h = W[label] - sum over v of p(v) W[v]

is found in the same pass, as attention without its scores is (Dao et al. 2022, FlashAttention), so that the backward pass
only scales it. A head that is trained itself needs its own gradient as well: then tiles are computed again.

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

from engine.models.tensors import whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TILE_POSITIONS, TILE_WORDS = 512, 4096
"""8 MB in float32: a few such tiles stay in a processor's cache (bench/head.py)."""

SAME_IN_FLOAT32, SAME_IN_HALF = 1e-3, 0.1
"""Nats per token: in 16 bits a model rounds its logits, which a tile does not."""


@dataclass(frozen=True)
class Head:
    """How a model gets logits of hidden states h: softcap · tanh(scale · (W h + b) / softcap)."""

    weight: Tensor
    """(V, H)."""
    bias: Tensor | None
    """(V,)."""
    scale: float = 1.0
    softcap: float | None = None

    @property
    def trained(self) -> bool:
        return self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)


class Figures(NamedTuple):
    """Per position, each (N,) in float32. Only `logps` has a gradient."""

    logps: Tensor
    """Log-probability of the label, in nats."""
    entropy: Tensor
    """Of the distribution that the label was drawn from, in nats."""
    mean_logits: Tensor
    is_top1: Tensor
    """Bool: whether no word is likelier than the label."""


def head_of(model: PreTrainedModel) -> Head | None:
    """The model's head as it is now (PEFT may have put a trained copy in its place); None if it is not a plain matrix.

    What the forward does to logits beyond `Head` cannot be seen here: compare with the model's own logits before use.
    """
    module = _active(model.get_output_embeddings())
    if type(module) is not nn.Linear:
        return None
    scale, softcap = _of_logits(model.config)
    return Head(whole(module.weight), None if module.bias is None else whole(module.bias), scale, softcap)


def explains_logits(model: PreTrainedModel, call: Callable[..., Any] | None = None) -> bool:
    """Whether `head_of` gives the model's own logits, on a few tokens. A model may do more to them than its head says.

    call   what is called for them, by default the model: of one that is spread over processes, what it was wrapped into
    """
    try:
        head = head_of(model)
        return head is not None and _difference(model, call or model, head) < (
            SAME_IN_FLOAT32 if model.dtype == torch.float32 else SAME_IN_HALF
        )
    except (ValueError, TypeError, RuntimeError, IndexError, AttributeError):
        return False


def _difference(model: PreTrainedModel, call: Callable[..., Any], head: Head) -> float:
    """Mean difference in nats per token between our log-probabilities and those of the model's logits."""
    seen: list[Any] = []
    hook = model.base_model.register_forward_hook(lambda _, __, output: seen.append(output.last_hidden_state))
    ids = (torch.arange(1, 9, device=model.device) * 7 % len(head.weight)).unsqueeze(0)
    try:
        with torch.no_grad():
            logits = call(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    labels = ids[0].flip(0)
    theirs = logits[0].float().log_softmax(dim=-1).gather(1, labels.unsqueeze(1)).squeeze(1)
    with torch.no_grad():
        ours = label_figures(head, seen[0][0], labels).logps
    return float((theirs - ours).abs().mean())


def _active(module: Any) -> Any:
    """The module that computes: PEFT's copy of `modules_to_save`, unless adapters are disabled."""
    from peft.utils.other import ModulesToSaveWrapper

    if not isinstance(module, ModulesToSaveWrapper):
        return module
    on = [] if module.disable_adapters else [name for name in module.active_adapters if name in module.modules_to_save]
    return module.modules_to_save[on[0]] if on else module.original_module


def _of_logits(config: Any) -> tuple[float, float | None]:
    """Scale and cap of logits, by the names in transformers' configurations: Gemma 2 caps them; Cohere and Falcon-H1 multiply,
    Granite and MiniCPM 3 divide them.
    """
    text = config.get_text_config()

    def named(name: str) -> float | None:
        value = getattr(text, name, None)
        return float(value) if isinstance(value, (int, float)) else None

    factors = map(named, ("logit_scale", "output_multiplier", "lm_head_multiplier"))
    scale = next((value for value in factors if value is not None), None)
    divisor = named("logits_scaling")
    if scale is None and divisor:
        scale = divisor if text.model_type == "hyperclovax" else 1 / divisor
    return 1.0 if scale is None else scale, named("final_logit_softcapping")


def label_figures(head: Head, hidden: Tensor, labels: Tensor) -> Figures:
    """The figures of `labels` (N,) after `hidden` (N, H), computed in float32. Exact, with the gradient of all that is trained."""
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or head.trained)
    here, there = labels.device, head.weight.device  # of a base on several GPUs the head may be elsewhere
    figures = LabelFigures.apply(  # type: ignore[no-untyped-call]
        hidden.to(there), head.weight, head.bias, labels.to(there), head.scale, head.softcap, wanted
    )
    return Figures(*(figure.to(here) for figure in figures))


class LabelFigures(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
        scale: float, softcap: float | None, wanted: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        head = Head(weight, bias, scale, softcap)
        once = wanted and not any(ctx.needs_input_grad[1:3])
        with torch.autocast(hidden.device.type, enabled=False):
            pass_ = _Pass(head, hidden.float(), labels, gradient=once)
            pass_.read()
            figures = pass_.figures()
            ctx.head, ctx.once = (scale, softcap), once
            if once:
                ctx.dtype = hidden.dtype
                ctx.save_for_backward(pass_.slope_of_hidden())
            elif wanted:
                ctx.save_for_backward(hidden, weight, bias, labels, pass_.log_sum)
        ctx.mark_non_differentiable(*figures[1:])
        return tuple(figures)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, slope: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        if ctx.once:
            (slope_of_hidden,) = ctx.saved_tensors
            return (slope_of_hidden.mul(slope.unsqueeze(1)).to(ctx.dtype), *(None,) * 6)
        hidden, weight, bias, labels, log_sum = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            found = _slopes(Head(weight, bias, *ctx.head), hidden, labels, log_sum, slope.float())
        return (*found, None, None, None, None)


class _Pass:
    """One pass over all tiles: what is known of each position after the words that were read so far."""

    def __init__(self, head: Head, hidden: Tensor, labels: Tensor, *, gradient: bool) -> None:
        self.head, self.hidden, self.labels = head, hidden, labels
        zeros = hidden.new_zeros(len(hidden))
        self.highest = torch.full_like(zeros, -torch.inf)
        self.sum, self.weighted, self.total, self.of_label = zeros, zeros.clone(), zeros.clone(), zeros.clone()
        """Sums over words of exp(z - highest), of that times z, and of z; z of the label. All (N,)."""
        self.mean_row = torch.zeros_like(hidden) if gradient else None
        """(N, H): the sum over words of exp(z - highest) · dz/d(W h) · W[v]."""

    def read(self) -> None:
        for words in _slices(len(self.head.weight), TILE_WORDS):
            weight = self.head.weight[words].float()  # (v, H)
            for rows in _slices(len(self.hidden), TILE_POSITIONS):
                self._fold(rows, words.start, _logits(self.head, self.hidden[rows], weight, words), weight)

    def _fold(self, rows: slice, first: int, logits: Tensor, weight: Tensor) -> None:
        highest = torch.maximum(self.highest[rows], logits.amax(dim=1))
        shrink = (self.highest[rows] - highest).exp_()
        shares = (logits - highest.unsqueeze(1)).exp_()  # (n, v)
        self.highest[rows] = highest
        self.sum[rows] = self.sum[rows] * shrink + shares.sum(dim=1)
        self.weighted[rows] = self.weighted[rows] * shrink + torch.linalg.vecdot(shares, logits)
        self.total[rows] += logits.sum(dim=1)
        _put_label_logits(self.of_label[rows], logits, self.labels[rows] - first)
        if self.mean_row is not None:
            if self.head.softcap is not None:
                shares *= _capping(logits, self.head.softcap)
            self.mean_row[rows].mul_(shrink.unsqueeze(1)).addmm_(shares, weight)

    @property
    def log_sum(self) -> Tensor:
        return self.highest + self.sum.log()

    def figures(self) -> Figures:
        return Figures(
            self.of_label - self.log_sum,
            self.log_sum - self.weighted / self.sum,
            self.total / len(self.head.weight),
            self.of_label >= self.highest,
        )

    def slope_of_hidden(self) -> Tensor:
        """(N, H): d logp / d h."""
        assert self.mean_row is not None
        own = self.head.weight[self.labels].float()
        if self.head.softcap is not None:
            own = own * _capping(self.of_label, self.head.softcap).unsqueeze(1)
        return own.sub_(self.mean_row.div_(self.sum.unsqueeze(1))).mul_(self.head.scale)


def _slopes(
    head: Head, hidden: Tensor, labels: Tensor, log_sum: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients for hidden states, weight and bias, from `slope` (N,), that of the log-probabilities."""
    states = hidden.float()
    of_hidden = torch.zeros_like(states)
    of_weight = torch.zeros(head.weight.shape, dtype=torch.float32, device=hidden.device)
    of_bias = None if head.bias is None else torch.zeros(len(head.bias), device=hidden.device)
    for words in _slices(len(head.weight), TILE_WORDS):
        weight = head.weight[words].float()
        for rows in _slices(len(hidden), TILE_POSITIONS):
            logits = _logits(head, states[rows], weight, words)
            here = slope[rows].unsqueeze(1)
            slopes = (logits - log_sum[rows].unsqueeze(1)).exp_().mul_(-here)  # (n, v), of the logits
            _add_at_labels(slopes, labels[rows] - words.start, slope[rows])
            if head.softcap is not None:
                slopes *= _capping(logits, head.softcap)
            slopes *= head.scale
            of_hidden[rows].addmm_(slopes, weight)
            of_weight[words].addmm_(slopes.T, states[rows])
            if of_bias is not None:
                of_bias[words] += slopes.sum(dim=0)
    return (
        of_hidden.to(hidden.dtype),
        of_weight.to(head.weight.dtype),
        None if of_bias is None or head.bias is None else of_bias.to(head.bias.dtype),
    )


def _logits(head: Head, hidden: Tensor, weight: Tensor, words: slice) -> Tensor:
    """One tile, (n, v), in float32."""
    logits = hidden @ weight.T
    if head.bias is not None:
        logits += head.bias[words].float()
    if head.softcap is not None:
        return logits.mul_(head.scale / head.softcap).tanh_().mul_(head.softcap)
    return logits if head.scale == 1.0 else logits.mul_(head.scale)


def _capping(logits: Tensor, softcap: float) -> Tensor:
    """The slope of the cap where it gave these logits: 1 - tanh²."""
    return 1 - (logits / softcap).square_()


def _put_label_logits(into: Tensor, logits: Tensor, columns: Tensor) -> None:
    """Where a label is a word of this tile, its logit."""
    within = (columns >= 0) & (columns < logits.shape[1])
    into[within] = logits[within, columns[within]]


def _add_at_labels(slopes: Tensor, columns: Tensor, slope: Tensor) -> None:
    within = (columns >= 0) & (columns < slopes.shape[1])
    slopes[within, columns[within]] += slope[within]


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
