"""How much is worked on at a time: what bounds memory, and what stays in cache."""

__all__ = ["BLOCK", "FAST_COLUMNS", "FAST_ROWS", "NARROWEST", "PANEL", "TILE_N", "TILE_Q"]

BLOCK = {"cpu": 1 << 18, "cuda": 1 << 24}  # float64 values of one block of columns: 2 MB stay in cache on a CPU
NARROWEST = 128  # columns of a block at least, however many rows: reads along a row stay worth their while
PANEL = 1 << 25  # float32 values of unit columns held for one side: 128 MB
TILE_N, TILE_Q = 256, 16384  # scores of one product: 16 MB in long rows, still in cache when clipped or filtered
FAST_COLUMNS, FAST_ROWS = 16384, 64  # losses of one float32 step of per_class; more rows would round more
