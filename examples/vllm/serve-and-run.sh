#!/usr/bin/env bash
# Not run with vLLM: the tests run it with a stand-in for `vllm` that answers on a real port.
#
#   BASE=google/gemma-2b-it ADAPTER=artifacts/stage2_finetuning_artifacts/lora_adapters examples/vllm/serve-and-run.sh
#
# vLLM serves the base model with the Stage 2 adapter on one GPU and makes the pairs; the run trains on another one. With a
# single GPU give vLLM a part of it: VLLM_OPTIONS="--gpu-memory-utilization 0.4".
set -uo pipefail

base=${BASE:-google/gemma-2b-it}
adapter=${ADAPTER:-artifacts/stage2_finetuning_artifacts/lora_adapters}
port=${PORT:-8000}
rank=${MAX_LORA_RANK:-64} # at least `r` of adapter_config.json
read -ra more <<<"${VLLM_OPTIONS:-}"

# In the environment of these two processes only: a command line is visible to every user of the machine.
key=$(head -c 24 /dev/urandom | base64)

VLLM_API_KEY=$key CUDA_VISIBLE_DEVICES=${VLLM_GPUS:-0} vllm serve "$base" --host 127.0.0.1 --port "$port" \
  --enable-lora --lora-modules "stage2=$adapter" --max-lora-rank "$rank" "${more[@]}" &
server=$!
run=
end_server() {
  kill -TERM "$server" 2>/dev/null
  wait "$server"
}
# shellcheck disable=SC2329  # the trap calls it
stop() {
  if [ -n "$run" ]; then kill -TERM "$run" 2>/dev/null; else kill -TERM "$server" 2>/dev/null; fi
}
trap stop TERM

until curl --silent --fail --output /dev/null "http://127.0.0.1:$port/health"; do
  if ! kill -0 "$server" 2>/dev/null; then
    wait "$server"
    code=$?
    echo "vLLM ended with $code before it answered." >&2
    exit 3 # docs/troubleshooting.md: a precondition is missing
  fi
  sleep 1 &
  wait "$!"
done

STAGE3_SERVER_TOKEN=$key CUDA_VISIBLE_DEVICES=${RUN_GPUS:-1} stage3-tui --auto --base-model-id "$base" \
  --adapter-path "$adapter" --server-url "http://127.0.0.1:$port/v1" --server-model stage2 "$@" &
run=$!
while kill -0 "$run" 2>/dev/null; do # a trapped signal ends `wait` early
  wait "$run"
done
wait "$run"
code=$?
end_server
exit "$code"
