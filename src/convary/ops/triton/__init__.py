# SPDX-License-Identifier: Apache-2.0
"""Triton kernels: what all of them share, and a router as one kernel. Knows no op, as ``native`` knows none.

Triton is imported when a kernel is launched, never before: on Windows and beside torch for CPUs there may be none.
"""
