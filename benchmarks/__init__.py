# SPDX-License-Identifier: Apache-2.0
"""Measures atoll side by side with a C floor and with the peers of its field, in one interleaved run.

What always holds: every figure is a ratio between contenders of the same run; every reply was checked;
percentiles come from sorted samples. See ``benchmarks/README.md`` for how to run it and how to read it.
"""
