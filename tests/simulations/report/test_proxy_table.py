"""What the report says of distillation at the server."""

from shared.results import ProxyStep, RoundCost
from simulations.report import render
from simulations.report.proxy import MOST_ROWS, proxy


def with_steps(results, steps):
    costs = [
        RoundCost(
            round=number, seconds=1.0, bytes_up=1, bytes_down=1, contributors=8, asked=8, proxy=step
        )
        for number, step in enumerate(steps, 1)
    ]
    return results.model_copy(update={"round_costs": costs})


def test_runs_without_it_say_nothing(runs):
    assert proxy(runs["clean"]) is None


def test_every_round_of_it_has_its_row(runs):
    kept = ProxyStep(before=2.0, after=1.875, accepted=True)
    wild = ProxyStep(before=1.5, after=None, accepted=False)
    table = proxy(with_steps(runs["clean"], [kept, None, wild]))
    assert table.words.startswith("After 2 rounds the server distilled")
    assert "kept the result 1 time," in table.words
    assert table.rows == [
        ("1", "2.000", "1.875", "kept"),
        ("3", "1.500", "not finite", "thrown away"),
    ]
    assert not table.thinned


def test_a_long_run_is_thinned_and_keeps_its_last_round(runs):
    step = ProxyStep(before=2.0, after=2.5, accepted=False)
    table = proxy(with_steps(runs["clean"], [step] * 1000))
    assert table.thinned
    assert len(table.rows) <= MOST_ROWS + 1
    assert table.rows[-1][0].endswith("000")


def test_the_page_holds_it_beside_the_course(runs):
    step = ProxyStep(before=2.0, after=1.875, accepted=True)
    page = render(with_steps(runs["clean"], [step] * 3), {})
    course = page.partition('<section id="course"')[2].partition("</section>")[0]
    assert "After 3 rounds the server distilled" in course
    assert course.count("<td>1.875</td>") == 3
    assert "the server distilled" not in render(runs["clean"], {})
