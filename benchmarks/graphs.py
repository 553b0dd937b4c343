"""The plain loop with its step as a CUDA graph: what a rival gains who launches kernels at once."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.fit import LocalFit
from benchmarks.plain import BETAS, PlainLoop, PlainRecords, State, batches

_WARM_UPS = 3


class GraphedLoop:
    """One step, captured once and replayed for every batch of every client."""

    def __init__(self, loop: PlainLoop, records: PlainRecords, fit: LocalFit) -> None:
        """Capture the step.

        Args:
            loop: On a CUDA device.
            records: Any client's, for the shape of a batch.
            fit: Batch size and learning rate of every step.

        Raises:
            RuntimeError: If the model does something that cannot be captured.
        """
        self._loop = loop
        self._batch = PlainRecords(
            records.pixels[: fit.batch_size].clone(), records.ids[: fit.batch_size].clone()
        )
        self._rows = torch.arange(fit.batch_size, device=loop.device)
        self._factors = {
            name.replace(".default", ""): parameter
            for name, parameter in loop.model.named_parameters()
            if parameter.requires_grad
        }
        self._optimizer = torch.optim.AdamW(
            self._factors.values(),
            lr=fit.learning_rate,
            betas=BETAS,
            weight_decay=0.0,
            fused=True,
            capturable=True,
        )
        self._graph = self._capture()

    def train_round(
        self, clients: Sequence[PlainRecords], start: Mapping[str, Tensor], fit: LocalFit
    ) -> list[State]:
        """Train all clients, one after the other."""
        return [
            self._train_client(records, start, fit, seed) for seed, records in enumerate(clients)
        ]

    def _train_client(
        self, records: PlainRecords, start: Mapping[str, Tensor], fit: LocalFit, seed: int
    ) -> State:
        with torch.no_grad():
            for name, value in start.items():
                self._factors[name].copy_(value)
            for moments in self._optimizer.state.values():
                for value in moments.values():
                    value.zero_()
        for rows in batches(len(records.ids), fit, seed):
            chosen = torch.from_numpy(rows).to(self._loop.device)
            self._batch.pixels.copy_(records.pixels[chosen])
            self._batch.ids.copy_(records.ids[chosen])
            self._graph.replay()
        return {name: value.detach().clone() for name, value in self._factors.items()}

    def _step(self) -> None:
        self._loop.loss(self._batch, self._rows).backward()
        self._optimizer.step()

    def _capture(self) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._step()
                self._optimizer.zero_grad()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Gradients do not exist now, so the graph makes them anew at every replay.
        with torch.cuda.graph(graph):
            self._step()
        return graph
