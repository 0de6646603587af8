"""The losses of a training run, example by example: the trace, and recorders for any training loop."""

from comove.trace.recorder import Recorder
from comove.trace.statistics import kd, statistics
from comove.trace.trace import FIELDS, Row, Trace

__all__ = ["FIELDS", "Recorder", "Row", "Trace", "kd", "statistics"]
