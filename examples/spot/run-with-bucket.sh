#!/usr/bin/env bash
# Run with a folder as rclone's remote and killed with SIGKILL, not on a spot machine, not with a cloud's bucket.
#
#   BUCKET=mybucket:stage3/run-1 examples/spot/run-with-bucket.sh --num-examples 2500
#
# BUCKET is any remote of rclone; with RCLONE_CONFIG_MYBUCKET_TYPE=s3 and RCLONE_CONFIG_MYBUCKET_ENV_AUTH=true it needs no
# key in a file. The run works on the local disk, which appends, syncs and renames as a mounted bucket does not. Every
# SYNC_SECONDS the folder is copied to the bucket: a machine that disappears loses at most that much work. A torn copy
# does no harm: a checkpoint counts only if its manifest matches, and a record only if its line is whole.
set -uo pipefail

bucket=${BUCKET:?"a remote of rclone, such as mybucket:stage3/run-1"}
work=${WORK:-$HOME/stage3}
seconds=${SYNC_SECONDS:-60}
token=${HF_TOKEN_FILE:-$HOME/.config/stage3/token}
not_found=3  # rclone: there is no such directory, so this run is new
no_network=5 # docs/troubleshooting.md

# A trapped signal ends `wait` early: wait until the process is gone, and return its exit status.
gone() {
  while kill -0 "$1" 2>/dev/null; do
    wait "$1"
  done
  wait "$1"
}

upload() {
  # Files grow while they are copied: rclone sends what they had at first, and must not throw the copy away for being shorter.
  rclone sync --local-no-check-updated --ignore-checksum --ignore-size --exclude '**/logs/lock' "$work" "$bucket" &
  gone "$!"
}

download() {
  mkdir -p "$work"
  rclone copy "$bucket" "$work"
  local restored=$?
  # Starting afresh after a failed download would overwrite what the bucket has.
  if [ "$restored" -ne 0 ] && [ "$restored" -ne "$not_found" ]; then
    echo "Cannot read $bucket (rclone ended with $restored); nothing was started." >&2
    exit "$no_network"
  fi
}

# A function is read as a whole: bash reads a script as it goes, and somebody may change the file within those hours.
main() {
  download
  local options=(--auto --output-dir "$work/stage3_constitutional")
  if [ -r "$token" ]; then
    options+=(--token-file "$token")
  fi
  stage3-tui "${options[@]}" "$@" &
  local run=$! last=$SECONDS
  # shellcheck disable=SC2064  # the process that there is now
  trap "kill -TERM $run 2>/dev/null" TERM

  while kill -0 "$run" 2>/dev/null; do
    sleep 1 &
    wait "$!"
    if [ $((SECONDS - last)) -ge "$seconds" ]; then
      upload
      last=$SECONDS
    fi
  done
  gone "$run"
  local code=$?
  upload
  exit "$code"
}

main "$@"
