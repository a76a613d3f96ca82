"""Forward ONNX graph in, graphs out that train, evaluate and explain it, made of standard operators only.

Why: runtime/decisions/0006-step-graphs-of-our-own.md.
"""
