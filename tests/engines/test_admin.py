"""An update of the weights: its order, and what a failure at any step leaves behind and says of it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

from tokentrue.engines.admin import DynamoFleet, FixedFleet, HttpAdmin, Target, make_admin
from tokentrue.engines.policy import GivenVersion
from tokentrue.errors import (
    ConfigError,
    ConnectionLostError,
    EngineError,
    EvidenceError,
    RouteMissingError,
    UnsupportedParameterError,
    WeightUpdateError,
)
from tokentrue.transports.admin import PauseMode
from tokentrue.transports.admin_dynamo import DynamoAdminCodec
from tokentrue.transports.admin_sglang import SglangAdminCodec
from tokentrue.transports.admin_vllm import VllmAdminCodec
from tokentrue.transports.transport import HttpReply

STEPS = {
    "pause": "/pause",
    "load": "/collective_rpc",
    "set_version": "/update_weight_version",
    "reset_prefix_cache": "/reset_prefix_cache",
    "resume": "/resume",
}


@dataclass
class FakeVllm:
    """A vLLM's control state, behind replies of its shapes; fails at one path, by status or without a reply."""

    label: str = "default"
    weights: str = "first"
    paused: bool = False
    cache: str = "warm"
    fails_at: str | None = None
    how: int | str = 500
    seen: list[str] = field(default_factory=list)
    closed: int = 0

    async def exchange(self, call, read, headers=None):
        await asyncio.sleep(0)
        path = urlsplit(call.path).path
        self.seen.append(path)
        if path == self.fails_at:
            if self.how == "lost":
                raise ConnectionLostError("reset by peer")
            return read(HttpReply(self.how, {}, b'{"error":{"message":"boom"}}'))
        return read(HttpReply(200, {}, json.dumps(self._do(path, call)).encode()))

    def _do(self, path, call):
        body = json.loads(call.body) if call.body else {}
        if path == "/pause":
            self.paused = True
            return {"status": "paused"}
        if path == "/resume":
            self.paused = False
            return {"status": "resumed"}
        if path == "/collective_rpc":
            assert self.paused, "weights were loaded under a running engine"
            self.weights, self.cache = body["kwargs"]["weights_path"], "stale"
            return {"results": [None]}
        if path == "/update_weight_version":
            self.label = body["new_version"]
            return {"success": True, "new_version": self.label}
        if path == "/reset_prefix_cache":
            self.cache = "empty"
            return {"success": True}
        return {"weight_version": self.label}

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed += 1


def admin_of(*engines, codec=None) -> HttpAdmin:
    targets = [Target(f"engine {at}", engine) for at, engine in enumerate(engines)]
    return HttpAdmin(codec or VllmAdminCodec(), FixedFleet(targets))


def test_an_update_is_pause_load_label_reset_resume() -> None:
    engine = FakeVllm()
    asyncio.run(admin_of(engine).update_weights("second", "step-1"))
    assert engine.seen == list(STEPS.values())
    assert (engine.weights, engine.label, engine.cache, engine.paused) == ("second", "step-1", "empty", False)


@pytest.mark.parametrize("how", [500, 400, 404, "lost"])
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_at_any_step_says_what_state_it_left(step, how) -> None:
    """What the error says is what the engine is.

    And never does it sample with weights that are not its label's.
    """
    engine = FakeVllm(fails_at=STEPS[step], how=how)
    with pytest.raises(WeightUpdateError) as raised:
        asyncio.run(admin_of(engine).update_weights("second", "step-1"))
    error = raised.value
    assert error.step == step
    assert isinstance(error.__cause__, (EngineError, ConnectionLostError))
    if error.state != "unknown":
        assert (error.state == "paused") is engine.paused
    if error.weights != "unknown":
        assert (error.weights == "new") is (engine.weights == "second")
    if not engine.paused:
        assert (engine.weights, engine.label) in {("first", "default"), ("second", "step-1")}
    assert error.state == {
        "pause": "running",
        "resume": "unknown" if how == "lost" else "paused",
    }.get(step, "paused")


@pytest.mark.parametrize("step", STEPS)
def test_an_update_that_stopped_can_be_done_again(step) -> None:
    engine = FakeVllm(fails_at=STEPS[step])
    with pytest.raises(WeightUpdateError):
        asyncio.run(admin_of(engine).update_weights("second", "step-1"))
    engine.fails_at = None
    asyncio.run(admin_of(engine).update_weights("second", "step-1"))
    assert (engine.weights, engine.label, engine.cache, engine.paused) == ("second", "step-1", "empty", False)


@pytest.mark.parametrize("step", STEPS)
def test_no_replica_goes_on_alone(step) -> None:
    """Each step is done on all before the next begins; one that fails holds all of them."""
    good, bad = FakeVllm(), FakeVllm(fails_at=STEPS[step])
    with pytest.raises(WeightUpdateError) as raised:
        asyncio.run(admin_of(good, bad).update_weights("second", "step-1"))
    assert len(good.seen) - len(bad.seen) == 0
    if step == "pause":
        assert raised.value.state == "running"
        assert (good.paused, bad.paused) == (False, False)
    elif step == "resume":
        assert raised.value.state == "unknown"  # one goes on, one does not
    else:
        assert (good.paused, bad.paused) == (True, True)


def test_a_server_without_control_routes_names_the_switch() -> None:
    engine = FakeVllm(fails_at="/pause", how=404)
    with pytest.raises(RouteMissingError, match="VLLM_SERVER_DEV_MODE=1"):
        asyncio.run(admin_of(engine).pause())
    with pytest.raises(WeightUpdateError, match="VLLM_SERVER_DEV_MODE=1"):
        asyncio.run(admin_of(engine).update_weights("second", "step-1"))


def test_replicas_that_differ_have_no_version() -> None:
    one, two = FakeVllm(label="step-1"), FakeVllm(label="step-2")
    with pytest.raises(EvidenceError, match="engine 0 has 'step-1', engine 1 has 'step-2'"):
        asyncio.run(admin_of(one, two).version())
    two.label = "step-1"
    assert asyncio.run(admin_of(one, two).version()) == "step-1"


def test_the_label_that_an_engine_is_born_with_is_no_version() -> None:
    assert asyncio.run(admin_of(FakeVllm(), FakeVllm()).version()) is None
    with pytest.raises(EvidenceError, match="engine 0 has 'default', engine 1 has 'step-1'"):
        asyncio.run(admin_of(FakeVllm(), FakeVllm(label="step-1")).version())


def test_no_weights_can_be_given_that_label() -> None:
    engine = FakeVllm()
    with pytest.raises(ConfigError, match="the label of an engine that was never told a version"):
        asyncio.run(admin_of(engine).update_weights("second", "default"))
    assert engine.seen == []
    for version in ("", "default"):
        with pytest.raises(ConfigError, match=f"such as 'step-12', and not '{version}'"):
            GivenVersion(version)


def test_two_admins_of_one_engine_wait_for_each_other() -> None:
    """Each update is whole: no engine has the weights of one and the label of the other, at any step."""
    one, two = FakeVllm(), FakeVllm()

    async def both() -> None:
        # The second knows them in the other order: taking one and waiting for the other would never end.
        forth = HttpAdmin(VllmAdminCodec(), FixedFleet([Target("a", one, "http://one"), Target("b", two)]))
        back = HttpAdmin(VllmAdminCodec(), FixedFleet([Target("b", two), Target("c", one, "http://one")]))
        updates = [
            admin.update_weights(f"weights {at}", f"step-{at}") for at, admin in enumerate([forth, back] * 3)
        ]
        async with asyncio.timeout(10):
            await asyncio.gather(*updates)

    asyncio.run(both())
    for engine in (one, two):
        assert engine.seen == list(STEPS.values()) * 6
        assert engine.weights.removeprefix("weights ") == engine.label.removeprefix("step-")
        assert not engine.paused


def test_admins_of_other_engines_do_not_wait() -> None:
    slow, quick = FakeVllm(), FakeVllm()
    held = asyncio.Event()

    async def pause_for_ever(call, read, headers=None):
        held.set()
        await asyncio.Event().wait()

    slow.exchange = pause_for_ever

    async def both() -> None:
        waiting = asyncio.create_task(admin_of(slow).pause())
        await held.wait()
        other = HttpAdmin(VllmAdminCodec(), FixedFleet([Target("engine 1", quick)]))
        async with asyncio.timeout(10):
            await other.update_weights("second", "step-1")
        waiting.cancel()

    asyncio.run(both())
    assert quick.label == "step-1"


def test_a_mode_that_the_engine_lacks_is_refused_before_anything_is_done() -> None:
    engine = FakeVllm()
    with pytest.raises(UnsupportedParameterError, match="wait"):
        asyncio.run(admin_of(engine, codec=SglangAdminCodec()).update_weights("second", "v", PauseMode.WAIT))
    assert engine.seen == []


@pytest.mark.parametrize(("path", "version"), [("", "v"), ("p", "")])
def test_an_update_needs_a_path_and_a_version(path, version) -> None:
    engine = FakeVllm()
    with pytest.raises(ConfigError, match="needs a path and a version"):
        asyncio.run(admin_of(engine).update_weights(path, version))
    assert engine.seen == []


@dataclass
class FakeFrontend:
    """A Dynamo frontend's RL port: says which workers there are now."""

    workers: list[dict]

    async def exchange(self, call, read, headers=None):
        await asyncio.sleep(0)
        return read(HttpReply(200, {}, json.dumps({"workers": self.workers}).encode()))

    async def close(self) -> None:
        await asyncio.sleep(0)


@dataclass
class FakeWorker:
    seen: list[str] = field(default_factory=list)

    async def exchange(self, call, read, headers=None):
        await asyncio.sleep(0)
        self.seen.append(call.path)
        return read(HttpReply(200, {}, b'{"status":"ok","version":"v7"}'))

    async def close(self) -> None:
        await asyncio.sleep(0)


def test_the_workers_of_dynamo_are_asked_for_anew_every_time() -> None:
    workers: dict[str, FakeWorker] = {}
    told = [{"instance_id": 1, "system_url": "http://a", "model": "m", "routes": []}]
    fleet = DynamoFleet(FakeFrontend(told), lambda url: workers.setdefault(url, FakeWorker()))
    admin = HttpAdmin(DynamoAdminCodec(), fleet)
    assert asyncio.run(admin.version()) == "v7"
    told.append({"instance_id": 2, "system_url": "http://b", "model": "m", "routes": []})
    asyncio.run(admin.update_weights("/w", "v8"))
    assert workers["http://a"].seen[1:] == workers["http://b"].seen
    assert workers["http://b"].seen == [
        f"/engine/{name}"
        for name in (
            "pause_generation",
            "update_weights_from_disk",
            "set_weight_version",
            "flush_cache",
            "resume_generation",
        )
    ]


@pytest.mark.parametrize(
    ("models", "wanted", "error", "words"),
    [
        (["a", "b"], None, ConfigError, "workers of a, b"),
        (["a"], "c", EngineError, "no worker of 'c' to control; the frontend tells of a"),
        ([], None, EngineError, "none at all"),
    ],
)
def test_which_workers_are_meant_must_be_clear(models, wanted, error, words) -> None:
    told = [{"instance_id": 1, "system_url": "http://a", "model": model, "routes": []} for model in models]
    admin = HttpAdmin(DynamoAdminCodec(), DynamoFleet(FakeFrontend(told), lambda _: FakeWorker(), wanted))
    with pytest.raises(error, match=words):
        asyncio.run(admin.pause())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("trtllm", "http://a"), "'trtllm'"), (("vllm",), "0 URLs"), (("dynamo", "http://a", "http://b"), "2 URLs")],
)
def test_an_admin_is_made_of_a_transport_and_urls(arguments, words) -> None:
    with pytest.raises(ConfigError, match=words):
        make_admin(*arguments)


def test_two_updates_at_once_are_one_after_the_other() -> None:
    """Else the weights of one would be sampled with under the version of the other."""

    @dataclass
    class Slow(FakeVllm):
        sampled: list[tuple[str, str]] = field(default_factory=list)

        async def exchange(self, call, read, headers=None):
            if urlsplit(call.path).path == "/collective_rpc":
                # the first to load is the last to label: the interleaving that mislabels
                await asyncio.sleep(0.03 if b"second" in call.body else 0.01)
            answer = await super().exchange(call, read, headers)
            if urlsplit(call.path).path == "/resume":
                self.sampled.append((self.weights, self.label))
            return answer

    engine = Slow()
    admin = admin_of(engine)

    async def both():
        await asyncio.gather(admin.update_weights("second", "step-2"), admin.update_weights("third", "step-3"))

    asyncio.run(both())
    assert engine.sampled == [("second", "step-2"), ("third", "step-3")]
    assert engine.seen == list(STEPS.values()) * 2
    asyncio.run(both())  # in another loop
    assert engine.seen == list(STEPS.values()) * 4


def test_a_resumption_waits_for_the_update_that_goes_on() -> None:
    engine = FakeVllm()
    admin = admin_of(engine)

    async def both():
        await asyncio.gather(admin.update_weights("second", "step-2"), admin.resume(), admin.pause())

    asyncio.run(both())
    assert engine.seen == [*STEPS.values(), "/resume", "/pause"]


def test_an_update_that_fails_or_is_cancelled_lets_the_next_one_go_on() -> None:
    engine = FakeVllm(fails_at=STEPS["load"])
    admin = admin_of(engine)

    async def run():
        with pytest.raises(WeightUpdateError):
            await admin.update_weights("second", "step-2")
        cancelled = asyncio.create_task(admin.update_weights("second", "step-2"))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        engine.fails_at = None
        await admin.update_weights("second", "step-2")

    asyncio.run(asyncio.wait_for(run(), 5))
    assert (engine.weights, engine.label, engine.paused) == ("second", "step-2", False)
