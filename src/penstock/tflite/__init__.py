"""TFLite files from ONNX models, without TensorFlow: the flatbuffer, the net that goes into it, a rule per operator."""

# the operators that multiply what they read by weights, the second of their inputs
WEIGHTED = frozenset({"BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})
