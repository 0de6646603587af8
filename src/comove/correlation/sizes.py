"""How much is worked on at a time: what bounds memory, and what stays in cache."""

__all__ = ["BLOCK", "FAST_COLUMNS", "FAST_ROWS", "FAST_SPAN", "NARROWEST", "PANEL", "TILE"]

BLOCK = {"cpu": 1 << 18, "cuda": 1 << 24}  # float64 values of one block of columns: 2 MB stay in cache on a CPU
NARROWEST = 128  # columns of a block at least, however many rows: reads along a row stay worth their while
PANEL = 1 << 25  # float32 values of unit columns held for one side: 128 MB
# Training examples and queries of one product: on a CPU 2 MB of scores, still in cache when clipped or filtered.
TILE = {"cpu": (1024, 512), "cuda": (1024, 16384)}
FAST_SPAN, FAST_COLUMNS = 1 << 17, 1 << 14  # columns of per_class that one thread takes, and of them at a time
FAST_ROWS = 45  # differences summed in float32; more would round more
