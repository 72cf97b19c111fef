"""Settings that make a build quick: what it measures is measured, a little of it."""

BUILD = [
    "--bench-seconds", "0.05", "--oracle-seconds", "0.3", "--no-footprint", "--min-rounds", "3", "--warmup-calls", "3",
]  # fmt: skip
