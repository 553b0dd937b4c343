"""A site in secure sums: checks first, repeats itself word for word, and sums a change once."""

import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest

import shared.security.secagg as package
from client.secure_sum import SECURE_REFUSALS, Asked, SecureSums
from client.summed_once import SummedOnce
from shared.errors import SecureSumError, StorageError, TrainingError
from shared.fixedpoint import choose_scale
from shared.secure_round import adapter_digest
from shared.security.secagg.coordinator import CoordinatorSum
from shared.security.secagg.messages import Survivors
from shared.security.secagg.session import Demands, Participant
from shared.security.secagg.site import Stage
from shared.security.secagg.vector import Measure, SiteVector, VectorForm
from tests.shared.security.secagg.sums import key_of, names_of, raises_reason, session_of

ADAPTER = adapter_digest({"A": "a" * 64, "B": "b" * 64})
FIRST = "site-00"


def form_of(count):
    return VectorForm((("f", "image", (2, 3)),), (Measure("loss", 2.0**-10, 100.0),), count)


def asked_of(count, **changes):
    fields = {
        "run": "run-1",
        "round": 3,
        "attempt": 1,
        "base": "1" * 64,
        "job": "2" * 64,
        "adapter": ADAPTER,
        "scale": choose_scale(10 * count, 16.0, count),
        "clip_norm": 16.0,
        "form": form_of(count),
        "towers": ("image",),
    }
    return Asked(**{**fields, **changes})


class Federation:
    """Sites with their own disks and memories, and a coordinator, in one process."""

    def __init__(self, folder, count=4):
        self.folder, self.count = folder, count
        self.names = names_of(count)
        self.sites = {name: self.start(name) for name in self.names}
        self.trained = dict.fromkeys(self.names, 0)
        self.weight = dict.fromkeys(self.names, 5)
        self.refused = {}
        self.towers = dict.fromkeys(self.names, ("image",))

    def start(self, name):
        """A site's process; what it knew of a session before is gone."""
        roster = {each: (key_of(each).public,) for each in self.names}
        demands = Demands(name, key_of(name).public, "c" * 32, roster)
        summed = SummedOnce(self.folder / f"{name}.json")
        return SecureSums(key_of(name), lambda: demands, summed)

    def train(self, name):
        self.trained[name] += 1
        number = self.names.index(name)
        change = np.full((2, 3), 100 + number, np.uint32)
        return SiteVector({"f": change}, {"image": self.weight[name]}, {"loss": 0.5})

    def session(self, **changes):
        asked = asked_of(self.count, **changes)
        fields = {f: getattr(asked, f) for f in changes}
        return asked, session_of(
            self.count,
            asked.form.entries,
            form=asked.form.digest,
            adapter=ADAPTER,
            scale=asked.scale,
            total_weight=10 * self.count,
            participants=tuple(
                Participant(name=name, key=key_of(name).public, towers=self.towers[name])
                for name in self.names
            ),
            **fields,
        )

    def ask(self, asked, session, stage, name, question):
        site, digest = self.sites[name], session.digest
        if stage is Stage.ADVERTISE:
            return site.begin(session.encode(), asked)
        if stage is Stage.MASK:
            return site.mask(digest, question, lambda: self.train(name))
        acts = {Stage.SHARE: site.share, Stage.AGREE: site.agree, Stage.REVEAL: site.reveal}
        return acts[stage](digest, question)

    def sum(self, between=lambda stage, name: True, **changes):
        """Carry one session out; ``between`` says whose answer arrives at a stage."""
        asked, session = self.session(**changes)
        server = CoordinatorSum(session)
        questions = dict.fromkeys(self.names, b"")
        self.refused = {}
        while server.stage is not Stage.OVER:
            for name, question in questions.items():
                stage = server.stage
                if not between(stage, name):
                    continue
                try:
                    answer = self.ask(asked, session, stage, name, question)
                    # Messages get lost, so every question comes twice.
                    assert self.ask(asked, session, stage, name, question) == answer
                except SecureSumError as error:
                    self.refused[name] = error.reason
                    continue
                server.take(name, answer)
            questions = server.close()
        return asked.form.read(server.result().total, session.scale), server.result().survivors


def without(gone, stage):
    return lambda at, name: name != gone or at < stage


def test_a_round_gives_the_sum_and_every_site_trains_once(tmp_path):
    lab = Federation(tmp_path)
    update, survivors = lab.sum()
    assert list(survivors) == lab.names
    assert update.delta["f"].tolist() == [[406] * 3] * 2  # 100 + 101 + 102 + 103
    assert update.weights == {"image": 20}
    assert update.metrics == {"loss": 2.0}
    assert set(lab.trained.values()) == {1}  # although it was asked twice
    update, _ = lab.sum(round=4)
    assert update.weights == {"image": 20}


def test_after_a_drop_out_the_round_is_repeated_with_the_same_bits(tmp_path):
    lab = Federation(tmp_path)
    raises_reason("secure-too-few", lambda: lab.sum(lambda at, name: at < Stage.AGREE))
    first, survivors = lab.sum(without("site-02", Stage.MASK), attempt=2)
    assert "site-02" not in survivors
    again, _ = lab.sum(without("site-02", Stage.MASK), attempt=3)  # the coordinator was restarted
    assert np.array_equal(first.delta["f"], again.delta["f"])


def test_no_difference_of_two_sums_is_ever_unmasked(tmp_path):
    lab = Federation(tmp_path)
    lab.sum()
    # The same round again, but without one site: the difference would be its change.
    for changes in ({"attempt": 2}, {"run": "run-2"}):
        with pytest.raises(SecureSumError) as caught:
            lab.sum(without("site-02", Stage.MASK), **changes)
        assert caught.value.reason == "secure-too-few"
        assert lab.refused == dict.fromkeys(["site-00", "site-01", "site-03"], "secure-other-sum")
    # Another weight for one site, without it and with it in the round.
    lab.weight["site-01"] = 6
    raises_reason("secure-too-few", lambda: lab.sum(attempt=4))
    assert lab.refused == dict.fromkeys(lab.names, "secure-other-sum")
    lab.weight["site-01"] = 5
    lab.sum(attempt=5)  # the very same sum again tells nothing new
    # It holds after a restart too, and does not touch other rounds and jobs.
    lab.sites = {name: lab.start(name) for name in lab.names}
    raises_reason("secure-too-few", lambda: lab.sum(without("site-02", Stage.MASK), attempt=6))
    lab.sum(without("site-02", Stage.MASK), round=4)
    lab.sum(without("site-02", Stage.MASK), job="7" * 64)


def test_a_vector_that_others_unmasked_is_noted_too(tmp_path):
    lab = Federation(tmp_path)
    lab.sum(without("site-02", Stage.AGREE))  # in the sum, and knows nothing of it
    lab.weight["site-02"] = 6
    raises_reason("secure-too-few", lambda: lab.sum(attempt=2))
    assert lab.refused.pop("site-02") == "secure-other-sum"
    lab.weight["site-02"] = 5
    lab.sum(attempt=3)


def test_a_sum_that_nobody_could_unmask_does_not_count(tmp_path):
    lab = Federation(tmp_path)
    raises_reason("secure-too-few", lambda: lab.sum(lambda at, name: at < Stage.REVEAL))
    lab.sum(without("site-02", Stage.MASK), attempt=2)


def test_a_restarted_site_is_out_of_the_session_and_in_the_next_attempt(tmp_path):
    lab = Federation(tmp_path, count=4)

    def restart(at, name):
        if (at, name) == (Stage.AGREE, FIRST):
            lab.sites[FIRST] = lab.start(FIRST)
        return True

    _, survivors = lab.sum(restart)
    assert lab.refused == {FIRST: "secure-lost"}
    assert FIRST in survivors  # its vector had arrived, and the others unmask it
    lab.sum(round=4)
    assert not lab.refused


@pytest.mark.parametrize("stage", [Stage.MASK, Stage.REVEAL])
def test_nothing_leaves_that_cannot_be_noted(tmp_path, monkeypatch, stage):
    lab = Federation(tmp_path)

    def full(*_, **__):
        raise StorageError("no space left")

    def fill_up(at, name):
        if at is stage:
            monkeypatch.setattr("client.summed_once.write_atomic", full)
        return True

    with pytest.raises(StorageError):
        lab.sum(fill_up)
    raises_reason("secure-lost", lambda: lab.sites[FIRST].reveal(lab.session()[1].digest, b""))


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "run-2"},
        {"round": 4},
        {"attempt": 2},
        {"base": "9" * 64},
        {"job": "9" * 64},
        {"adapter": "9" * 64},
        {"scale": 2.0},
        {"clip_norm": 8.0},
        {"form": VectorForm((("f", "image", (3, 2)),), form_of(4).measures, 4)},
        {"form": VectorForm((("f", "text", (2, 3)),), form_of(4).measures, 4)},
        {"form": form_of(5)},
    ],
)
def test_a_session_that_is_not_the_requests_is_refused_before_any_training(tmp_path, changes):
    lab = Federation(tmp_path)
    asked, session = lab.session()
    other = dataclasses.replace(asked, **changes)
    raises_reason("secure-session", lambda: lab.sites[FIRST].begin(session.encode(), other))
    assert lab.trained[FIRST] == 0


def test_a_site_that_would_be_nearly_alone_with_a_tower_takes_no_part(tmp_path):
    lab = Federation(tmp_path)
    lab.towers |= {"site-02": ("text",), "site-03": ("text",)}
    asked, session = lab.session()
    raises_reason("secure-tower", lambda: lab.sites[FIRST].begin(session.encode(), asked))
    # What the session says of the site itself must be what it is asked for.
    other = dataclasses.replace(asked, towers=("image", "text"))
    session = Federation(tmp_path).session()[1]
    raises_reason("secure-session", lambda: lab.sites[FIRST].begin(session.encode(), other))


def test_a_site_looks_at_the_towers_of_all_others_too(tmp_path):
    """Without the two whose tower it is, the others might be enough to unmask the sum."""
    lab = Federation(tmp_path, count=7)
    lab.towers |= {"site-05": ("image", "text"), "site-06": ("image", "text")}
    asked, session = lab.session()
    raises_reason("secure-tower", lambda: lab.sites[FIRST].begin(session.encode(), asked))


@pytest.mark.parametrize(
    ("text", "shares", "taken"), [(0, 4, True), (0, 5, False), (3, 1, True), (3, 2, False)]
)
def test_noise_must_be_enough_in_each_of_a_sites_towers_whoever_drops_out(
    tmp_path, text, shares, taken
):
    """Of seven five answer; of those that lack the tower none may be among the lost."""
    lab = Federation(tmp_path, count=7)
    lab.towers |= dict.fromkeys(lab.names[7 - text :], ("text",))
    asked, session = lab.session()
    assert session.threshold == 5
    asked = dataclasses.replace(asked, noise_shares=shares)
    if taken:
        lab.sites[FIRST].begin(session.encode(), asked)
    else:
        raises_reason("secure-noise", lambda: lab.sites[FIRST].begin(session.encode(), asked))


def test_a_sum_in_which_too_few_are_left_with_a_tower_is_not_unmasked(tmp_path):
    lab = Federation(tmp_path, count=6)
    lab.towers |= dict.fromkeys(lab.names[3:], ("text",))
    asked, session = lab.session()
    site = lab.sites[FIRST]
    server, questions = CoordinatorSum(session), dict.fromkeys(lab.names, b"")
    text = dataclasses.replace(asked, towers=("text",))
    works = lab.train
    lab.train = lambda name: (
        works(name) if lab.towers[name] == ("image",) else SiteVector({}, {}, {"loss": 0.5})
    )
    for stage in (Stage.ADVERTISE, Stage.SHARE, Stage.MASK):
        for name in lab.names:
            if (stage, name) == (Stage.MASK, "site-01"):
                continue  # two with an image tower are left
            of_site = asked if lab.towers[name] == ("image",) else text
            try:
                server.take(name, lab.ask(of_site, session, stage, name, questions[name]))
            except SecureSumError as error:
                lab.refused[name] = error.reason
                break
        if lab.refused:
            break
        questions = server.close()
    # A site that trained other towers than the session says masks nothing.
    assert lab.refused == {"site-03": "secure-form"}
    survivors = Survivors((0, 2, 3, 4, 5)).encode(session)
    raises_reason("secure-tower", lambda: site.agree(session.digest, survivors))


def test_a_session_of_unknown_sites_is_refused_before_any_training(tmp_path):
    lab = Federation(tmp_path)
    asked, session = lab.session()
    lab.names = [*lab.names[:3]]  # the roster of a site that does not know the fourth
    raises_reason("secure-roster", lambda: lab.start(FIRST).begin(session.encode(), asked))
    raises_reason("secure-session", lambda: lab.sites[FIRST].begin(b"{}", asked))


def test_a_weight_above_that_of_all_sites_is_never_masked(tmp_path):
    lab = Federation(tmp_path)
    lab.weight[FIRST] = 41
    lab.sum()
    assert lab.refused == {FIRST: "secure-range"}


def test_what_goes_wrong_in_training_ends_the_sites_part(tmp_path):
    lab = Federation(tmp_path)
    works = lab.train

    def train(name):
        if name == FIRST:
            raise TrainingError("loss-not-finite", "")
        return works(name)

    lab.train = train
    seen = []

    def between(at, name):
        if (at, name) == (Stage.MASK, FIRST):
            seen.append(lab.sites[FIRST])
            return False
        return True

    _, survivors = lab.sum(between)
    assert FIRST not in survivors
    asked, session = lab.session(round=9)
    server = CoordinatorSum(session)
    questions = dict.fromkeys(lab.names, b"")
    for stage in (Stage.ADVERTISE, Stage.SHARE):
        for name in lab.names:
            server.take(name, lab.ask(asked, session, stage, name, questions[name]))
        questions = server.close()
    with pytest.raises(TrainingError):
        lab.ask(asked, session, Stage.MASK, FIRST, questions[FIRST])
    raises_reason(
        "secure-lost", lambda: lab.ask(asked, session, Stage.MASK, FIRST, questions[FIRST])
    )


def test_another_question_at_an_answered_stage_ends_the_session(tmp_path):
    lab = Federation(tmp_path)
    asked, session = lab.session()
    server, questions = CoordinatorSum(session), dict.fromkeys(lab.names, b"")
    for stage in (Stage.ADVERTISE, Stage.SHARE, Stage.MASK):
        for name in lab.names:
            server.take(name, lab.ask(asked, session, stage, name, questions[name]))
        questions = server.close()
    site = lab.sites[FIRST]
    agreed = site.agree(session.digest, questions[FIRST])
    assert site.agree(session.digest, questions[FIRST]) == agreed
    other = Survivors((0, 1, 2)).encode(session)
    raises_reason("secure-stage", lambda: site.agree(session.digest, other))
    raises_reason("secure-lost", lambda: site.agree(session.digest, questions[FIRST]))


def test_a_damaged_record_of_sums_stops_the_site(tmp_path):
    Federation(tmp_path).sum()
    path = tmp_path / f"{FIRST}.json"
    assert path.stat().st_mode & 0o777 == 0o600
    for content in (path.read_bytes()[:-3], b"[]", b'{"x": "y"}', b""):
        path.write_bytes(content)
        with pytest.raises(StorageError, match="summed a second time"):
            SummedOnce(path)


def test_every_reason_has_a_sentence_that_may_leave():
    sources = [*Path(package.__file__).parent.glob("*.py")]
    client = Path(package.__file__).parents[3] / "client"
    sources += [client / "secure_sum.py", client / "summed_once.py"]
    found = {
        node.args[0].value
        for source in sources
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "SecureSumError"
    }
    assert len(sources) > 8
    assert found == set(SECURE_REFUSALS)
