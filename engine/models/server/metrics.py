"""The load of a vLLM server, from its /metrics in Prometheus' text format: running and waiting requests, and KV cache usage.

https://docs.vllm.ai/en/latest/usage/metrics/: gauges `vllm:num_requests_running`, `vllm:num_requests_waiting` and
`vllm:kv_cache_usage_perc` (a share, in spite of its name; `vllm:gpu_cache_usage_perc` before version 0.10), one sample for each
engine of a data-parallel server.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_CHARACTERS = 4 << 20
"""A server with many models sends a few hundred thousand characters."""
MAX_REQUESTS = 1e6
"""No server has more concurrent requests; a larger number is ignored."""
_SAMPLE = re.compile(
    r"^(vllm:[a-z_]+)(?:\{[^\n]*\})?[ \t]+([+-]?[0-9.eE+-]{1,32})(?:[ \t]+-?\d+)?[ \t]*\r?$", re.MULTILINE
)
_RUNNING, _WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
_CACHE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")


@dataclass(frozen=True)
class ServerLoad:
    """How busy a server is. A value is None if the server does not report it, or reports an impossible number."""

    running: float | None = None
    waiting: float | None = None
    cache: float | None = None
    """KV cache usage of the fullest engine, 0 to 1."""

    @property
    def is_known(self) -> bool:
        return any(value is not None for value in (self.running, self.waiting, self.cache))


def metrics_url(url: str) -> str:
    """The address of /metrics, which is beside /v1, not under it."""
    return url.removesuffix("/v1") + "/metrics"


def parse_load(text: str) -> ServerLoad:
    """The load from the text of /metrics; unknown if the text is not vLLM's."""
    samples = _samples(text[:MAX_CHARACTERS])
    cache = next((samples[name] for name in _CACHE if name in samples), [])
    return ServerLoad(_sum(samples.get(_RUNNING, ())), _sum(samples.get(_WAITING, ())), _greatest(cache))


def _samples(text: str) -> Mapping[str, list[float]]:
    samples: defaultdict[str, list[float]] = defaultdict(list)
    for name, digits in _SAMPLE.findall(text):
        try:
            samples[name].append(float(digits))
        except ValueError:
            continue  # digits and signs that are not a number
    return samples


def _sum(values: Sequence[float]) -> float | None:
    possible = bool(values) and all(0 <= value <= MAX_REQUESTS for value in values)  # false for NaN
    return math.fsum(values) if possible else None


def _greatest(values: Sequence[float]) -> float | None:
    return max(values) if values and all(0 <= value <= 1 for value in values) else None
