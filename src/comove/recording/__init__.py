"""Recording a trace from any training loop."""

from comove.recording.recorder import Recorder
from comove.recording.statistics import kd, statistics

__all__ = ["Recorder", "kd", "statistics"]
