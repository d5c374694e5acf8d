"""Sizes of the tiles of the Triton execution. ``triton_kernels`` says why."""

#: Elements of a tile, and pieces of a long row at most.
BLOCK, MOST = 2048, 1024
#: Columns that a tile of whole rows holds, by shape. The last is for aligned layers only and has twice the elements.
WIDTHS = (64, 256, 1024, 2048, 4096)
#: Elements that the rows of an aligned layer are a multiple of: 16 bytes in every dtype.
ALIGNMENT = 16
