"""What the measured nets have in common, as our graphs and as PyTorch modules: sizes, names, the learning rate."""

CLASSES, RATE = 10, 0.01
MLP_SIZES = (784, 200, 200, CLASSES)  # the "2NN" of McMahan et al. 2017
WORDS, STEPS, WIDTH, WIDE, HEADS, LAYERS = 1_000, 32, 128, 512, 4, 2  # of the transformer
STEM, LAST = 16, 256  # channels of the first and the last convolution of the MobileNet-like net
BLOCKS = ((24, 2), (24, 1), (40, 2), (40, 1), (56, 2), (56, 1))  # its inverted residuals: channels, stride
TRANSPOSED = ".transposed"
