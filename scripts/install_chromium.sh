#!/bin/sh
# Debian's or Ubuntu's Chromium, with which the tests drive the page (tests/test_web_drive.py); nothing where it is there.
# Needs root and apt-get. Ends with 1 where it cannot be had; those tests are then skipped.
set -eu

for name in chromium chromium-browser google-chrome google-chrome-stable; do
  if command -v "$name" >/dev/null 2>&1; then
    exit 0
  fi
done
if ! command -v apt-get >/dev/null 2>&1; then
  echo "no Chromium and no apt-get here; install Chromium, or name one by SHOESTRING_CHROMIUM" >&2
  exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "no Chromium here, and installing it needs root: sudo apt-get install chromium" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -q --no-install-recommends chromium >/dev/null 2>&1 && exit 0
apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends chromium >/dev/null
