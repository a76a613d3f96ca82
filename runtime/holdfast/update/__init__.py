"""What a round moves: one flat array of weights, the codecs that carry a change of it, and the bounds it must keep."""
