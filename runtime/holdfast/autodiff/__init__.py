"""Forward ONNX graph in, graphs out that train, evaluate and explain it, made of standard operators only."""
