"""``model.compile``: the same function, few kernels, and one sentence where it cannot be.

Machines without a C++ compiler check that sentence instead; nothing is skipped.
"""

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from client.training import SiteTask, fresh_adapter, train_shared
from shared.adapter import SharedAdapter
from shared.errors import ConfigError
from shared.model import compiled
from shared.model.encoder import DualEncoder


def compiling(job):
    return job.model_copy(update={"model": job.model.model_copy(update={"compile": True})})


def start_of(encoder):
    """Where no gradient vanishes: there AdamW would move as rounding decides."""
    rng = np.random.default_rng(3)
    return SharedAdapter(
        {
            name: array + 0.05 * rng.standard_normal(array.shape, dtype=np.float32)
            for name, array in fresh_adapter(encoder.layout, 1).factors.items()
        }
    )


def distance(one, two):
    return sum(float(np.square(array - two[name]).sum()) for name, array in one.items()) ** 0.5


def tasks_of(start, site_of, sizes):
    return [
        SiteTask(site_of(f"s{n}", counts=(size, 4, 4), seed=n), start, ("A", "B"), n, 1)
        for n, size in enumerate(sizes)
    ]


def refusal() -> str | None:
    """What this machine says if it cannot compile."""
    try:
        compiled._try_out(torch.device("cpu"))
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.slow
def test_compiled_training_is_the_same_and_does_not_compile_for_ever(small_job, site_of) -> None:
    if (line := refusal()) is not None:
        assert line.startswith("model.compile = true: torch cannot compile here (")
        assert "install a C++ compiler such as g++ and Python's header files" in line
        return
    eager = DualEncoder.load(small_job.model, small_job.lora)
    job = compiling(small_job)
    encoder = DualEncoder.load(job.model, job.lora)
    start, made = start_of(eager), []
    # Other numbers of sites and of records; the texts of every step differ in length anyway.
    for sizes in ((48, 48), (48, 20, 9), (7,), (48, 5, 48, 3), (11, 4), (16,) * 6):
        found = train_shared(encoder, tasks_of(start, site_of, sizes), job)
        wanted = train_shared(eager, tasks_of(start, site_of, sizes), small_job)
        for one, two in zip(found, wanted, strict=True):
            assert one.loss == pytest.approx(two.loss, rel=1e-4)
            assert distance(one.factors, two.factors) <= 2e-3 * distance(two.factors, start.factors)
        made.append(counters["stats"]["unique_graphs"])
    assert made[-1] == made[1] > 0
    with torch.inference_mode():  # as scoring has it
        texts = ["no finding", "there is a large bright square"]
        one, two = (e.encode_texts(e.tokenize(texts)) for e in (encoder, eager))
    assert torch.allclose(one, two, atol=1e-5)


def test_a_machine_that_cannot_compile_is_told_so_in_one_sentence(small_job, monkeypatch) -> None:
    def missing(*_, **__):
        def call(*_):
            raise FileNotFoundError("/home/jane/no such compiler")

        return call

    monkeypatch.setattr(torch, "compile", missing)
    with pytest.raises(ConfigError) as error:
        DualEncoder.load(compiling(small_job).model, small_job.lora)
    (line,) = str(error.value).splitlines()
    assert "torch cannot compile here (FileNotFoundError)" in line
    assert "a C++ compiler such as g++" in line
    assert "jane" not in line


def test_inductor_is_told_of_repeatability_where_it_is_used_though_torch_was_told_without_it(
    small_job, monkeypatch
) -> None:
    def told(*_, **__):
        raise RuntimeError(str(torch._inductor.config.deterministic))

    monkeypatch.setattr(torch, "compile", told)
    before = torch.get_deterministic_debug_mode()
    try:
        for mode, repeatable in (("warn", True), ("default", False)):
            torch.set_deterministic_debug_mode(mode)
            with pytest.raises(ConfigError) as error:
                DualEncoder.load(compiling(small_job).model, small_job.lora)
            assert str(error.value.__context__) == str(repeatable)
            assert torch.get_deterministic_debug_mode() == (1 if repeatable else 0)
    finally:
        torch.set_deterministic_debug_mode(before)


def test_other_families_are_refused_before_anything_is_compiled(
    small_job, siglip_folder, monkeypatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    model = small_job.model.model_copy(update={"base": str(siglip_folder), "compile": True})
    with pytest.raises(ConfigError, match="for plain CLIP models"):
        DualEncoder.load(model, small_job.lora)


def test_it_is_off_unless_asked_for_and_belongs_to_what_decides_the_numbers(
    small_job, monkeypatch
) -> None:
    assert not small_job.model.compile
    assert compiling(small_job).digest() != small_job.digest()
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    DualEncoder.load(small_job.model, small_job.lora)
