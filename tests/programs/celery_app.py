"""A Celery application whose task sends and waits for nothing. Its worker's main process sends before it forks."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

from safekafka import SafeProducer

TOPIC = os.environ["SAFEKAFKA_TEST_TOPIC"]
FOLDER = Path(os.environ["SAFEKAFKA_TEST_FOLDER"])

app = Celery("celery_app", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": str(FOLDER / "queue"),
        "data_folder_out": str(FOLDER / "queue"),
        "control_folder": str(FOLDER / "control"),
    },
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=False,
    task_ignore_result=True,
)

producer = SafeProducer({"bootstrap.servers": os.environ["SAFEKAFKA_TEST_SERVERS"], "linger.ms": 60_000})
for number in range(int(os.environ["SAFEKAFKA_TEST_MASTER"])):
    producer.send(TOPIC, f"master {number}", partition=0)


@app.task(name="send")
def send(number: int) -> None:
    producer.send(TOPIC, str(number), partition=0)
    with (FOLDER / "done.txt").open("a") as done:
        done.write(f"{number} {os.getpid()}\n")
