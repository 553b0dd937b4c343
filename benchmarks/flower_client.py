"""The ClientApp that a researcher would write for the same job: peft in a Flower client.

Model and records are kept in the actor from its first message on, which is the best a client can
do; many examples build both anew for every message.
"""

from functools import cache, lru_cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.fit import ATTENTION, LocalFit
from benchmarks.plain import PlainLoop, PlainRecords
from benchmarks.records import read_site, site_name

app = ClientApp()


@lru_cache(maxsize=1)
def _loop(base: str) -> PlainLoop:
    torch.set_num_threads(1)  # an actor has one CPU
    return PlainLoop(Path(base), ATTENTION)


@cache
def _records(base: str, folder: str) -> PlainRecords:
    return _loop(base).prepare(*read_site(Path(folder)))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received adapter on this client's pairs."""
    config = message.content["config"]
    arrays = message.content["arrays"]
    if not isinstance(config, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise TypeError("expected an adapter and a configuration")
    base, data = str(config["base"]), Path(str(config["data"]))
    partition = int(str(context.node_config["partition-id"]))
    records = _records(base, str(data / site_name(partition)))
    fit = LocalFit(int(str(config["batch"])), int(str(config["steps"])))
    start = arrays.to_torch_state_dict()
    state = _loop(base).train_client(records, start, fit, seed=partition)
    content = RecordDict(
        {
            "arrays": ArrayRecord(state),
            "metrics": MetricRecord({"num-examples": len(records.ids)}),
        }
    )
    return Message(content, reply_to=message)
