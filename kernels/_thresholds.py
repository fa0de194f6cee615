"""Where one way of computing gives over to another: every threshold of dispatch and tiles, and what set it.

None has been measured on a GPU yet: `bench/gpu.sh` times the backends side by side, and its figures replace these.
"""

# Multiplications below which a dozen launches cost more than they save. Estimate: 2^31 take 30 µs at 70 TFLOP/s.
FOURIER_WORK = 1 << 31  # n p d
STATISTICS_WORK = 1 << 31  # n p²

# Columns of V beyond which forming K again for every 64 of them costs more than chunks of K that are stored and
# multiplied once. Estimate: four times.
MOST_COLUMNS = 256

# Columns of X up to which rows count as short (a tile's exponentials cost as much as its product), from which as long
# (the product hides them), and from which Y = X takes half the tiles of a sum. Cost model: 2d operations a pair at
# 267 to 800 TFLOP/s beside one exponential at 3.9e12 a second.
SHORT_ROWS, LONG_ROWS, HALF_TILES = 128, 256, 256
