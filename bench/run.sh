#!/usr/bin/env bash
# `make bench`: builds with optimisation, measures, prints the table. Words choose parts: accept reads start services.
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/common.sh"

exec cargo bench --locked --quiet --bench broker -- "$@"
