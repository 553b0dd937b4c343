"""The parts of the benchmarks: records, the rival's loop, ratios, operations, the table."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import machine, timing
from benchmarks.agreement import plain_records
from benchmarks.fit import LocalFit
from benchmarks.flops import _plain_flops, step_flops
from benchmarks.geometry import SMALL, SMOKE, temporary_base
from benchmarks.plain import PlainLoop, batches, load_clip
from benchmarks.records import random_site, random_split, read_site, write_site
from benchmarks.schema import Ratio
from benchmarks.table import TableError, main, markdown, read_reports
from benchmarks.timing import Contender, alone, arm_of, at_least, at_most, ratio


def test_captions_are_distinct_and_as_long_as_the_geometry_says(base):
    texts = random_split(SMOKE, 64, seed=3).texts
    assert len(set(texts)) == 64
    loop = PlainLoop(base, ["q_proj"])
    lengths = {len(ids) for ids in loop._tokenizer(list(texts))["input_ids"]}
    assert min(lengths) >= 6
    assert max(lengths) <= 16
    assert len(lengths) > 5


def test_a_written_site_reads_as_it_was(tmp_path):
    site = random_site(SMOKE, 5, seed=1)
    write_site(tmp_path / site.name, site)
    pictures, texts = read_site(tmp_path / site.name)
    assert tuple(texts) == site.splits["train"].texts
    assert np.array_equal(np.stack([np.asarray(p) for p in pictures]), site.splits["train"].pixels)


def test_the_rivals_two_paddings_are_one_function(base):
    loop = PlainLoop(base, ["q_proj", "v_proj"])
    (records,) = plain_records(loop, [random_site(SMOKE, 6, seed=0)])
    rows = torch.arange(6)
    padded = loop.loss(records, rows).item()
    loop.padding = "longest"
    assert abs(loop.loss(records, rows).item() - padded) < 1e-5


def test_batches_are_whole_and_as_many_as_steps():
    plan = batches(10, LocalFit(batch_size=4, steps=5), seed=0)
    assert [len(rows) for rows in plan] == [4] * 5
    assert len(set(np.concatenate(plan[:2]).tolist())) == 8


def test_a_ratio_is_the_median_of_ratios_within_repeats():
    slow = arm_of(Contender("slow", alone(list), 1), [2.0, 30.0, 4.0], [1.0, 1.0, 4.0])
    fast = arm_of(Contender("fast", alone(list), 1), [1.0, 10.0, 4.0], [1.0, 1.0, 1.0])
    found = ratio("slow / fast", slow, fast, at_least(2.0))
    assert (found.value, found.low, found.high, found.cpu) == (2.0, 1.0, 3.0, 1.0)
    assert found.met
    assert ratio("slow / fast", slow, fast, at_most(1.05)).met is False


def test_arms_take_turns_and_leave_the_threads_as_they_were():
    turns = []
    threads = torch.get_num_threads()
    contenders = [
        Contender(name, alone(lambda name=name: turns.append((name, torch.get_num_threads()))), n)
        for n, name in enumerate("abc", start=1)
    ]
    arms = timing.interleave(contenders, 2, machine.LoadWatch())
    names = "".join(name for name, _ in turns)
    assert sorted(names[:3]) == sorted(names[3:6]) == sorted(names[6:]) == ["a", "b", "c"]
    assert len({names[:3], names[3:6], names[6:]}) == 3
    assert set(turns) == {("a", 1), ("b", 2), ("c", 3)}
    assert len(arms["a"].wall) == 2  # the first turn warms up
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("free", "contended"), [(0.95, False), (0.89, True)])
def test_a_run_that_had_too_little_of_the_machine_says_so(monkeypatch, free, contended):
    monkeypatch.setattr(machine, "spin_probe", lambda: free)
    assert machine.LoadWatch().load().contended is contended


def test_the_spin_probe_is_a_share():
    assert 0 < machine.spin_probe() <= 1


def test_the_operations_leave_out_what_nobody_pools():
    """Against a last layer of transformers' own parts that computes one position only."""
    with temporary_base(SMALL) as base:
        tokens, patches = 20, (64 // 16) ** 2 + 1
        spared = _plain_flops(base, SMALL, tokens) - step_flops(base, SMALL, tokens)
        model = load_clip(base, torch.float32, attention="eager").requires_grad_(False)
    expected = sum(
        _last_layer(tower, length, pooled=False) - _last_layer(tower, length, pooled=True)
        for tower, length in ((model.vision_model, patches), (model.text_model, tokens))
    )
    # Only the low-rank products are not in here.
    assert 1.0 < spared / expected < 1.04


def _last_layer(tower, length, *, pooled):
    """Operations of the last layer and its gradient, for all positions or for the first."""
    layer = tower.encoder.layers[-1]
    attention = layer.self_attn
    hidden = torch.rand(1, length, attention.embed_dim, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        normed = layer.layer_norm1(hidden)
        asked = normed[:, :1] if pooled else normed

        def heads(states):
            return states.view(1, -1, attention.num_heads, attention.head_dim).transpose(1, 2)

        query = heads(attention.q_proj(asked))
        scores = query @ heads(attention.k_proj(normed)).transpose(2, 3)
        mixed = (scores.softmax(-1) @ heads(attention.v_proj(normed))).transpose(1, 2)
        state = (hidden[:, :1] if pooled else hidden) + attention.out_proj(mixed.flatten(2))
        (state + layer.mlp(layer.layer_norm2(state))).sum().backward()
    return counter.get_total_flops()


def test_a_lora_step_is_about_twice_the_forward_pass(base):
    assert step_flops(base, SMOKE, 16) < _plain_flops(base, SMOKE, 16)


def test_the_table_holds_the_ratios_and_goes_between_the_markers(
    session_of, tmp_path, monkeypatch, capsys
):
    from benchmarks.schema import Row

    session = session_of("growth")
    found = Ratio(name="slow / fast", value=2.5, low=2.0, high=3.0, target=at_least(2.0))
    session.add(Row(name="a setting", ratios=[found], numbers={"peak memory, MiB": 12.5}))
    session.leave_out("another", "no CUDA device here")
    session.finish(tmp_path)
    text = markdown(read_reports(tmp_path))
    row = "| a setting | slow / fast | **2.50** | 2.00 to 3.00 |  | ≥ 2: met |"
    assert row in text
    assert "Not measured: another: no CUDA device here." in text
    page = tmp_path / "page.md"
    page.write_text("<!-- results: begin -->\nold figures\n<!-- results: end -->\n")
    monkeypatch.setattr("sys.argv", ["table", "--results", str(tmp_path), "--write", str(page)])
    assert main() == 0
    assert row in page.read_text()
    assert "old figures" not in page.read_text()
    page.write_text("no markers")
    assert main() == 1
    assert "results: begin" in capsys.readouterr().err


def test_a_file_that_is_no_report_is_refused(tmp_path):
    (tmp_path / "growth.json").write_text("{}")
    with pytest.raises(TableError, match=r"growth\.json: not a benchmark's report"):
        read_reports(tmp_path)
