from shared.latest import Latest


def test_the_latest_result_is_remembered_and_no_other():
    made = []

    def make():
        made.append(len(made))
        return made[-1]

    latest, one, other = Latest(), [1], [1]
    assert [latest.get((one, 3, "a"), make) for _ in range(3)] == [0, 0, 0]
    assert latest.get((other, 3, "a"), make) == 1, "equal, and not the same"
    assert latest.get((other, int("3"), "".join(["a"])), make) == 1, "numbers and texts by value"
    assert latest.get((other, 4, "a"), make) == 2
    assert latest.get((other, 4), make) == 3
    assert latest.get((one, 3, "a"), make) == 4


def test_a_failure_is_not_remembered():
    latest = Latest()
    key = (object(),)
    for _ in range(2):
        try:
            latest.get(key, lambda: 1 // 0)
        except ZeroDivisionError:
            continue
    assert latest.get(key, lambda: 7) == 7
