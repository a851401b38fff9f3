"""Simulated links and clocks: what passes a cut one, how long bytes take, what a life's clock shows."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from fedtrain.core import messages as msg
from fedtrain.sim.calls import Envelope, Part, Piece, Request, Response
from fedtrain.sim.chance import Chance
from fedtrain.sim.clock import START_MS, Clock, LifeClock, WallClock
from fedtrain.sim.faults import FaultRates
from fedtrain.sim.network import Blocked, Network
from fedtrain.sim.plan import draw
from fedtrain.sim.process import Process
from fedtrain.sim.scene import Scene

BEAT = Envelope("s", 1, msg.Heartbeat())
OFFER = Request(1, 1, msg.Offer("o", "d", 40))
UP = Request(2, 1, Piece("o", "d", 0, b"0" * 20))
DOWN = Response(3, 1, Part("d", 40, 0, b"0" * 20))


class Listener(Process):
    """Notes what it hears, and when, in milliseconds since the world began."""

    def __init__(self, name: str, scene: Scene) -> None:
        super().__init__(name, scene)
        self.heard: list[tuple[int, object]] = []
        self.start()

    @property
    def kind(self) -> str:
        return self.name

    def begin(self) -> None:
        self.lives = getattr(self, "lives", 0) + 1

    def receive(self, source: str, body: object) -> None:
        self.heard.append((self.scene.clock.now_ms - START_MS, body))

    def lose_power(self, how: random.Random) -> None:
        self.heard.clear()


def world(rate: int = 0, **rates: float) -> tuple[Scene, Network, Listener, Listener]:
    """A coordinator and one site without faults, but for these rates."""
    plan = draw(1)
    site = replace(plan.sites[0], name="site", link_bytes_per_s=rate)
    scene = Scene(
        replace(plan, sites=(site,), rates=FaultRates(**rates), clear_ms=START_MS + 100_000),  # type: ignore[arg-type]
        Chance(1, lambda key: True),
    )
    network = Network(scene)
    coordinator, listener = Listener("coordinator", scene), Listener("site", scene)
    network.connect(coordinator)
    network.connect(listener)
    return scene, network, coordinator, listener


def until(scene: Scene, at_ms: int) -> None:
    """Let time pass until then."""
    done: list[bool] = []
    scene.clock.at(START_MS + at_ms, lambda: done.append(True))
    while not done:
        scene.clock.advance()


@pytest.mark.parametrize(
    ("blocked", "passes"), [(Blocked.ALL, []), (Blocked.DATA, [BEAT, OFFER]), (Blocked.SESSION, [OFFER, UP])]
)
def test_a_cut_stops_what_it_says_in_its_direction(blocked: Blocked, passes: list[object]) -> None:
    """Everything, or tensors only, or the session only; the other direction and later times are free."""
    scene, network, coordinator, site = world()
    network.cut("site", "coordinator", START_MS + 1_000, blocked)
    for body in (BEAT, OFFER, UP):
        network.send("site", "coordinator", body)
    network.send("coordinator", "site", DOWN)
    until(scene, 1_000)
    assert sorted(map(repr, (body for _, body in coordinator.heard))) == sorted(map(repr, passes))
    assert [body for _, body in site.heard] == [DOWN]
    network.send("site", "coordinator", UP)
    until(scene, 2_000)
    assert coordinator.heard[-1][1] == UP


def test_bytes_take_their_time_one_after_the_other() -> None:
    """20 bytes at 10 a second are two seconds, the next 20 arrive two later; words do not wait for them."""
    scene, network, coordinator, _ = world(rate=10)
    for body in (UP, UP, BEAT):
        network.send("site", "coordinator", body)
    until(scene, 10_000)
    (first_ms, _), (second_ms, second), (third_ms, third) = coordinator.heard
    assert 1 <= first_ms <= 40
    assert (second, third) == (UP, UP)
    assert 2_001 <= second_ms <= 2_040 and 4_001 <= third_ms <= 4_040


def test_a_lossy_link_loses_doubles_and_delays() -> None:
    """Of a thousand messages some never come, some come twice, and some are overtaken; faults are counted."""
    scene, network, coordinator, _ = world(lost=0.1, doubled=0.1, slow=0.1)
    for number in range(1_000):
        network.send("site", "coordinator", Request(number, 1, OFFER.body))
    until(scene, 99_000)
    calls = [body.call for _, body in coordinator.heard if isinstance(body, Request)]
    assert 850 < len(set(calls)) < 950 < len(calls) + 100
    assert len(calls) > len(set(calls)) and calls != sorted(calls)
    assert 50 < scene.faults["message lost"] < 150


def test_a_stopped_process_hears_later() -> None:
    """While it is stopped messages and timers wait; then all of them happen, in the same life."""
    scene, network, coordinator, _ = world(stop_gap_ms=100)
    coordinator.threaten(1 << 40)
    until(scene, 900)
    network.send("site", "coordinator", BEAT)
    until(scene, 1_000)
    assert coordinator.heard == []
    assert scene.faults["process stopped"] > 0
    until(scene, 161_000)
    assert [body for _, body in coordinator.heard] == [BEAT]
    assert coordinator.heard[0][0] >= 1_000
    assert coordinator.lives == 1


def test_a_loss_of_power_takes_what_is_not_synced() -> None:
    """The process is told what its disk forgets, and lives again."""
    scene, network, coordinator, _ = world(power_gap_ms=20_000)
    coordinator.threaten(1 << 40)
    network.send("site", "coordinator", BEAT)
    until(scene, 110_000)
    assert coordinator.heard == []
    assert coordinator.lives == 1 + scene.faults["coordinator crashed by a loss of power"] > 1


def test_walls_jump_and_lives_do_not() -> None:
    """A life reads the wall once; the next one reads it again, but never begins before the last event."""
    clock = Clock()
    wall = WallClock(clock, 5_000)
    life = LifeClock(wall, 0)
    wall.offset_ms -= 3_600_000
    clock.at(START_MS + 700, lambda: None)
    clock.advance()
    assert (life.now_ms, life.monotonic_ms) == (START_MS + 5_700, 700)
    assert wall.now_ms == START_MS + 700 + 5_000 - 3_600_000
    assert LifeClock(wall, 0).now_ms == wall.now_ms
    assert LifeClock(wall, life.now_ms).now_ms == life.now_ms


@pytest.mark.parametrize("kind", ["clock jumps", "crash"])
def test_what_recurs_ends_with_the_faults(kind: str) -> None:
    """Nothing of this kind strikes once faults are over."""
    rates: dict[str, float] = {"jump_gap_ms": 3_000} if kind == "clock jumps" else {}
    scene, _, coordinator, _ = world(**rates)
    coordinator.threaten(3_000)
    until(scene, 100_000)
    count = scene.faults[kind]
    assert count > 3
    until(scene, 1_000_000)
    assert scene.faults[kind] == count
    assert coordinator.up
