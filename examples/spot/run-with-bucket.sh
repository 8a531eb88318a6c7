#!/usr/bin/env bash
# Tested with a folder as rclone's remote and killed with SIGKILL; never run on a spot machine or with a cloud bucket.
#
#   BUCKET=mybucket:stage3/run-1 examples/spot/run-with-bucket.sh --num-examples 2500
#
# BUCKET is any remote of rclone; with RCLONE_CONFIG_MYBUCKET_TYPE=s3 and RCLONE_CONFIG_MYBUCKET_ENV_AUTH=true it needs no
# key in a file. The run works on the local disk, which appends, syncs and renames as a mounted bucket does not. The
# folder is copied to the bucket every SYNC_SECONDS: a machine that disappears loses at most that much work. An incomplete copy
# does no harm: a checkpoint counts only if its manifest matches, and a record only if its line is complete.
set -uo pipefail

bucket=${BUCKET:?"a remote of rclone, such as mybucket:stage3/run-1"}
work=${WORK:-$HOME/stage3}
seconds=${SYNC_SECONDS:-60}
token=${HF_TOKEN_FILE:-$HOME/.config/stage3/token}
not_found=3  # rclone: the directory does not exist, so this run is new
no_network=5 # docs/troubleshooting.md

# A trapped signal ends `wait` early: wait until the process has ended, and return its exit status.
wait_for_end() {
  while kill -0 "$1" 2>/dev/null; do
    wait "$1"
  done
  wait "$1"
}

upload() {
  # Files grow while they are copied: rclone sends their first part, and must not discard the copy because it is shorter.
  rclone sync --local-no-check-updated --ignore-checksum --ignore-size --exclude '**/logs/lock' "$work" "$bucket" &
  wait_for_end "$!"
}

download() {
  mkdir -p "$work"
  rclone copy "$bucket" "$work"
  local restored=$?
  # Starting over after a failed download would overwrite the bucket.
  if [ "$restored" -ne 0 ] && [ "$restored" -ne "$not_found" ]; then
    echo "Cannot read $bucket (rclone exited with $restored). Nothing was started." >&2
    exit "$no_network"
  fi
}

# bash reads a script as it runs, and the file may change within those hours; a function is read completely.
main() {
  download
  local options=(--auto --output-dir "$work/stage3_constitutional")
  if [ -r "$token" ]; then
    options+=(--token-file "$token")
  fi
  stage3-tui "${options[@]}" "$@" &
  local run=$! last=$SECONDS
  # shellcheck disable=SC2064  # expand now: the current process
  trap "kill -TERM $run 2>/dev/null" TERM

  while kill -0 "$run" 2>/dev/null; do
    sleep 1 &
    wait "$!"
    if [ $((SECONDS - last)) -ge "$seconds" ]; then
      upload
      last=$SECONDS
    fi
  done
  wait_for_end "$run"
  local code=$?
  upload
  exit "$code"
}

main "$@"
