# SPDX-License-Identifier: Apache-2.0
"""Measuring speed and memory: only ratios of calls that follow each other, and only of results that are right."""
