# SPDX-License-Identifier: Apache-2.0
"""One file per contender: how to start its far side and make the one call of ``benchmarks.workload`` through
its public interface. What a peer module consists of is written at the top of ``benchmarks/host_process.py``.
"""
