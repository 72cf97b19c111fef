"""Conformance: the standard's own node tests on every backend that takes ONNX, and what came of them, kept as data.

``suite`` has the tests and the judgement, ``measuring`` runs them on a backend, ``measured`` reads what was measured.
"""
