"""The numerics of quantization: grids, where they are placed, ranges, repair, and what comes out written as a graph.

Nothing here knows a method by name; ``quantizers/`` puts the parts together. Everything works on numpy arrays and
onnx-ir graphs, and reaches a runtime through a backend alone.
"""
