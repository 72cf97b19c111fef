"""TFLite files from ONNX models, without TensorFlow: the flatbuffer, the net that goes into it, a rule per operator."""
