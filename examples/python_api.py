"""Build through the Python API: the same stages as `penstock build`, with the result as values.

    python python_api.py [FOLDER]       FOLDER is the build folder (default: penstock-out)

Needs the extras `torch` and `demo`: the reference network `zoo:digits` and its data set.
"""

import sys

import penstock


def main(folder: str) -> int:
    """Build, print a line for each deployment, and return 1 where nothing fits the limits."""
    settings = penstock.BuildSettings(
        "zoo:digits",
        backends=("torch", "onnxruntime"),
        bench=penstock.BenchSettings(seconds=0.2, footprint=False),
        select=penstock.SelectSettings(max_drop=1.0),
    )
    try:
        result = penstock.build(settings, folder)
    except penstock.PenstockError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for row in result.rows:
        score = "no accuracy" if row.score is None else f"{100 * row.score:.2f} % of {row.score_samples}"
        latency = "not timed" if row.p50_ms is None else f"{row.p50_ms:.3f} ms"
        refused = "; ".join(verdict.reason for verdict in row.refusals)
        print(f"{row.deployment.name:<20} {score:<18} {latency:<10} {refused}".rstrip())
    print(f"chosen: {result.chosen or 'none; ' + result.nearest_miss}")
    return 0 if result.chosen else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "penstock-out"))
