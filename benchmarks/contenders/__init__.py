"""One trainer a file, each run in its own environment: `python -m benchmarks.contenders.X JOB`.

A file reads the job, trains through the public classes of its library, and writes the outcome. It
may import what its library brings and `benchmarks.contenders.job`, which needs nothing.
"""
