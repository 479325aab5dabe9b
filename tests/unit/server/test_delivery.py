"""Responses: the first at once, then a steady few, and always a last one."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

import pytest

from llmengine_server.delivery import Delivery, Reply, Stream
from llmengine_server.generation import Event, Finish, Generation
from llmengine_server.sampling import Sampling
from llmengine_server.scheduler import Occupancy
from llmengine_server.tokenizer import Detokenizer, StopWords
from tests.models import tiny_tokenizer
from tests.unit.server.tokenizers_for_tests import byte_level

TOKENIZER = byte_level(adds_bos=False)
INTERVAL = 0.02
OCCUPANCY = Occupancy(waiting=1, prefilling=0, decoding=2, slots=4)


@dataclass
class Client:
    replies: list[Reply] = field(default_factory=list)
    gone: bool = False
    broken: bool = False

    def send(self, reply: Reply) -> None:
        if self.broken:
            raise OSError("no such client")
        self.replies.append(reply)

    def cancelled(self) -> bool:
        return self.gone

    @property
    def texts(self) -> list[str]:
        return [reply.text for reply in self.replies]

    @property
    def ends(self) -> list[Finish]:
        return [reply.finish for reply in self.replies if reply.finish]


@dataclass
class Counts:
    first_tokens: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    ends: list[tuple[Finish, int]] = field(default_factory=list)
    reports: list[tuple[Occupancy, int]] = field(default_factory=list)

    def first_token(self, seconds: float) -> None:
        self.first_tokens.append(round(seconds, 6))

    def between_tokens(self, seconds: float) -> None:
        self.between.append(round(seconds, 6))

    def ended(self, finish: Finish, input_tokens: int) -> None:
        self.ends.append((finish, input_tokens))

    def report(self, occupancy: Occupancy, generated: int) -> None:
        self.reports.append((occupancy, generated))


class Desk:
    """A delivery without a thread, one client and a clock."""

    def __init__(self, *stop_words: str, streaming: bool = True) -> None:
        self.counts = Counts()
        self.cancelled: list[int] = []
        self.delivery = Delivery(
            interval=INTERVAL, meter=self.counts, cancel=self.cancelled.append, clock=lambda: 0.0
        )
        self.client = Client()
        self.add(1, self.client, *stop_words, streaming=streaming)

    def add(self, id_: int, client: Client, *stop_words: str, streaming: bool = True) -> None:
        request = Generation(
            id=id_,
            prompt=TOKENIZER.encode("ab"),
            max_tokens=50,
            sampling=Sampling(),
            stop_ids=TOKENIZER.eos_ids,
        )
        stream = Stream(
            request,
            Detokenizer(TOKENIZER, request.prompt),
            StopWords(stop_words),
            streaming,
            client,
            0.0,
        )
        assert self.delivery.open(stream)

    def tokens(self, text: str, at: float, finish: Finish | None = None) -> None:
        ids = TOKENIZER.encode(text)
        for i, token in enumerate(ids):
            last = finish if i == len(ids) - 1 else None
            self.delivery.accept([Event(1, token, last)], at)
        self.delivery.turn(at)


def test_the_first_token_goes_out_at_once_and_further_ones_by_the_interval() -> None:
    desk = Desk()
    for i in range(10):
        desk.tokens("x", at=0.005 * i)
    assert desk.client.texts == ["x", "xxxx", "xxxx"]
    desk.tokens("y", at=0.05, finish=Finish.LENGTH)
    assert desk.client.texts == ["x", "xxxx", "xxxx", "xy"]
    assert desk.client.ends == [Finish.LENGTH]


def test_without_streaming_there_is_one_response() -> None:
    desk = Desk(streaming=False)
    for i in range(5):
        desk.tokens("x", at=float(i))
    assert desk.client.replies == []
    desk.tokens("y", at=6.0, finish=Finish.LENGTH)
    assert desk.client.replies == [Reply("xxxxxy", 2, 6, Finish.LENGTH)]


def test_the_token_that_ends_a_text_is_not_in_it() -> None:
    desk = Desk(streaming=False)
    desk.tokens("x", at=0.0)
    desk.delivery.accept([Event(1, tiny_tokenizer.EOS_ID, Finish.STOP)], 0.0)
    assert desk.client.replies == [Reply("x", 2, 2, Finish.STOP)]


def test_a_stop_word_ends_the_request_here_and_in_the_loop() -> None:
    desk = Desk("END")
    desk.tokens("oneEN", at=0.0)
    assert desk.client.texts == ["one"]
    desk.tokens("D and more", at=0.1)
    assert desk.client.replies[1:] == [Reply("", 2, 6, Finish.STOP)]
    assert desk.cancelled == [1]
    assert desk.delivery.quiet


def test_what_was_held_back_comes_with_the_last_response() -> None:
    desk = Desk("END")
    desk.tokens("oneE", at=0.0, finish=Finish.LENGTH)
    assert "".join(desk.client.texts) == "oneE"


def test_an_unfinished_character_waits_and_is_flushed() -> None:
    desk = Desk()
    first, second = TOKENIZER.encode("é")
    desk.delivery.accept([Event(1, first)], 0.0)
    desk.delivery.turn(0.0)
    assert desk.client.texts == []
    desk.delivery.accept([Event(1, second)], 0.0)
    desk.delivery.turn(0.0)
    assert desk.client.texts == ["é"]
    desk.delivery.accept([Event(1, first, Finish.LENGTH)], 0.0)
    assert desk.client.texts == ["é", "\ufffd"]


def test_a_client_that_left_is_answered_once_and_cancelled() -> None:
    desk = Desk()
    desk.tokens("x", at=0.0)
    desk.client.gone = True
    desk.delivery.turn(1.0)
    assert desk.cancelled == [1]
    assert desk.client.ends == [Finish.CANCELLED]
    desk.tokens("more", at=1.1)
    desk.delivery.accept([Event(1, None, Finish.CANCELLED)], 1.2)
    assert desk.client.ends == [Finish.CANCELLED]
    assert desk.delivery.quiet


@pytest.mark.parametrize("finish", [Finish.FAILED, Finish.REFUSED])
def test_an_end_that_is_an_error_carries_its_sentence(finish: Finish) -> None:
    desk = Desk()
    desk.delivery.accept([Event(1, None, finish, "do this")], 0.0)
    assert [(r.finish, r.message) for r in desk.client.replies] == [(finish, "do this")]


def test_a_client_that_cannot_be_reached_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    other = Client()
    desk.add(2, other)
    desk.client.broken = True
    with caplog.at_level(logging.CRITICAL):
        desk.delivery.accept([Event(1, 70), Event(2, 70)], 0.0)
        desk.delivery.turn(0.0)
    assert desk.cancelled == [1]
    assert other.texts == [TOKENIZER.decode([70])]


def test_closing_answers_whatever_is_open_and_later_requests() -> None:
    desk = Desk()
    desk.tokens("x", at=0.0)
    thread = threading.Thread(target=desk.delivery.run)
    thread.start()
    desk.delivery.close()
    thread.join(5)
    assert desk.client.ends == [Finish.REFUSED]
    late = Client()
    request = Generation(id=9, prompt=(1,), max_tokens=1, sampling=Sampling(), stop_ids=frozenset())
    stream = Stream(request, Detokenizer(TOKENIZER, ()), StopWords(), True, late, 0.0)
    assert not desk.delivery.open(stream)
    assert late.ends == [Finish.REFUSED]
    assert "send the request to another one" in late.replies[0].message


def test_times_are_measured_from_arrival_and_between_tokens() -> None:
    desk = Desk()
    for i in range(6):
        desk.tokens("x", at=0.5 + 0.005 * i)
    desk.tokens("x", at=0.6, finish=Finish.LENGTH)
    assert desk.counts.first_tokens == [0.5]
    # Four tokens within 20 ms, then one 5 ms later and one after a pause.
    assert desk.counts.between == [0.005, 0.04]
    assert desk.counts.ends == [(Finish.LENGTH, 2)]


def test_occupancy_and_tokens_are_reported_four_times_a_second() -> None:
    desk = Desk()
    desk.delivery.occupied(OCCUPANCY)
    for at in (0.0, 0.1, 0.2, 0.26):
        desk.tokens("x", at=at)
    assert desk.counts.reports == [(OCCUPANCY, 1), (OCCUPANCY, 3)]
