"""The 16-bit floats fp16 and bf16: which nodes may compute in one, found by looking, and the model that comes of it.

``types`` says what the two hold, ``binding`` what ONNX allows, ``operators`` what is known by name. ``seen`` looks at
the values that pass by, ``sums`` at what is added up on the way, ``rounding`` at what a rounded input does to a
result, and ``chains`` at how far back that reaches; ``reasons`` puts these together. ``placing`` keeps the Casts few,
``emitting`` writes the model, ``running`` asks runtimes what they make of it, ``attempt`` tries again where one
refuses, and ``convert`` is all of it.
"""
