"""From the defence graph as a torch module to an ONNX file of stock operators."""
