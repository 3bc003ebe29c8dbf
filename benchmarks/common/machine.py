"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import psutil
from benchmarks.common.environment import ROOT
from confluent_kafka import libversion

from safekafka.testing.distribution import KAFKA_VERSION


def description() -> dict[str, str]:
    return {
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores",
        "RAM": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "disk": _disk(),
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "confluent-kafka": version("confluent-kafka"),
        "librdkafka": libversion()[0],
        "Apache Kafka": KAFKA_VERSION,
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
    }


def _disk() -> str:
    """What the files of the benchmarks lie on."""
    mounted = [part for part in psutil.disk_partitions(all=True) if ROOT.is_relative_to(part.mountpoint)]
    nearest = max(mounted, key=lambda part: len(part.mountpoint), default=None)
    return f"{nearest.fstype} on {nearest.device}" if nearest else "unknown"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
