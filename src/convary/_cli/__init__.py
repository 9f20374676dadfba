# SPDX-License-Identifier: Apache-2.0
"""The commands of the ``convary`` program, one module each: ``run(argv)`` acts, prints and returns the exit code."""
