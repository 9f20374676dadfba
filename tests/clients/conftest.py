# SPDX-License-Identifier: Apache-2.0
"""The programs under field/ run as processes of their own; importing them would run them here."""

collect_ignore_glob = ["field/*"]
