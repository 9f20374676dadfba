# SPDX-License-Identifier: Apache-2.0
"""The study behind docs/evidence.md: what is trained (blocks), how it is run (run) and the page made of it (page)."""
