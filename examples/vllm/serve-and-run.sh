#!/usr/bin/env bash
# Never run with vLLM: the tests run it with a stand-in for `vllm` that listens on a real port.
#
#   BASE=google/gemma-2b-it ADAPTER=artifacts/stage2_finetuning_artifacts/lora_adapters examples/vllm/serve-and-run.sh
#
# vLLM serves the base model with the Stage 2 adapter and makes the pairs, with one server for each of VLLM_GPUS; the run trains
# on RUN_GPUS. With a single GPU, limit vLLM to a part of it: VLLM_OPTIONS="--gpu-memory-utilization 0.4" RUN_GPUS=0.
set -uo pipefail

base=${BASE:-google/gemma-2b-it}
adapter=${ADAPTER:-artifacts/stage2_finetuning_artifacts/lora_adapters}
port=${PORT:-8000}
rank=${MAX_LORA_RANK:-64} # at least `r` of adapter_config.json
read -ra vllm_options <<<"${VLLM_OPTIONS:-}"
read -ra gpus <<<"${VLLM_GPUS:-0}" # "0 1 2" for three servers
missing=3 # docs/troubleshooting.md: a precondition is missing

# A trapped signal ends `wait` early: wait until the process has ended, and return its exit status.
wait_for_end() {
  while kill -0 "$1" 2>/dev/null; do
    wait "$1"
  done
  wait "$1"
}

end_servers() {
  kill -TERM "${servers[@]}" 2>/dev/null
  for server in "${servers[@]}"; do
    wait_for_end "$server"
  done
}

# Arguments: process id and address of a server.
wait_until_ready() {
  until curl --silent --fail --output /dev/null "$2/health"; do
    if ! kill -0 "$1" 2>/dev/null; then
      wait_for_end "$1"
      echo "vLLM exited with $? before it responded at $2." >&2
      end_servers
      exit "$missing"
    fi
    sleep 1 &
    wait "$!"
  done
}

# bash reads a script as it runs, and the file may change within those hours; a function is read completely.
# shellcheck disable=SC2064  # traps expand now: the current processes
main() {
  local key run code address number options=()
  servers=()
  # Only in the environment of these processes: a command line is visible to every user of the machine.
  key=$(head -c 24 /dev/urandom | base64)

  for number in "${!gpus[@]}"; do
    VLLM_API_KEY=$key CUDA_VISIBLE_DEVICES=${gpus[number]} vllm serve "$base" --host 127.0.0.1 --port $((port + number)) \
      --enable-lora --lora-modules "stage2=$adapter" --max-lora-rank "$rank" "${vllm_options[@]}" &
    servers+=("$!")
  done
  trap "kill -TERM ${servers[*]} 2>/dev/null" TERM
  for number in "${!gpus[@]}"; do
    address=http://127.0.0.1:$((port + number))
    wait_until_ready "${servers[number]}" "$address"
    options+=(--server-url "$address/v1")
  done

  STAGE3_SERVER_TOKEN=$key CUDA_VISIBLE_DEVICES=${RUN_GPUS:-1} stage3-tui --auto --base-model-id "$base" \
    --adapter-path "$adapter" "${options[@]}" --server-model stage2 "$@" &
  run=$!
  trap "kill -TERM $run 2>/dev/null" TERM # the run saves; then the servers are ended
  wait_for_end "$run"
  code=$?
  end_servers
  exit "$code"
}

main "$@"
