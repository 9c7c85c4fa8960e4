"""The cloud as a host's network reaches it, with observers and random faults."""

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any

from qingcloud_cni.agent.reconcile.startup_comparison import FIRST_CALL
from qingcloud_cni.core.errors import CloudUnreachable
from qingcloud_cni.sim.api.api import Api
from qingcloud_cni.sim.cloud.faults import EFFECTS, WRONG_KEYS, Faults, Strike
from qingcloud_cni.sim.cloud.model import Model, Outcome
from qingcloud_cni.sim.cloud.records import Hour
from qingcloud_cni.sim.memory.local import LocalTransport
from qingcloud_cni.sim.topology import FaultSpec

CODES = (5100, 5000, 2500, 1400, 5200)  # that calls are refused with


class ObservedModel(Model):
    """A simulated cloud that reports the calls it carries out."""

    before_call: Callable[[Mapping[str, str]], None] = staticmethod(lambda _params: None)
    after_call: Callable[[Mapping[str, str], Outcome], None] = staticmethod(lambda _params, _outcome: None)

    def handle(self, params: Mapping[str, str]) -> Outcome:
        self.before_call(params)
        outcome = super().handle(params)
        self.after_call(params, outcome)
        return outcome

    def use(self, faults: Faults) -> None:
        """Replace the faults."""
        self._faults = faults

    def call_without_faults(self, params: Mapping[str, str]) -> dict[str, Any]:
        faults, self._faults = self._faults, Faults((), rng=self.state.rng)
        try:
            return self.call(params)
        finally:
            self._faults = faults

    def use_up(self, access_key_id: str, calls: int) -> None:
        """Begin an hour in which a key has made that many calls."""
        self._hours[access_key_id] = Hour(self.state.now(), calls)


class Cable(LocalTransport):
    """Connects a host with the cloud, unless it is cut."""

    def __init__(self, api: Api) -> None:
        super().__init__(api)
        self.is_cut = False
        self.on_send: Callable[[str], None] = lambda _target: None  # called with the target of each request
        self.tamper: Callable[[bytes], bytes] = lambda body: body  # changes each reply on its way

    async def send(self, method: str, target: str, body: bytes, timeout: float) -> tuple[int, str, bytes]:
        if self.is_cut:
            await asyncio.sleep(1.0)
            raise CloudUnreachable("no route to the cloud", action="")
        self.on_send(target)
        status, content_type, answer = await super().send(method, target, body, timeout)
        return status, content_type, self.tamper(answer)


class RandomFaults(Faults):
    """Strikes each call with probability *rate*, with one of *effects*.

    Wrong keys never strike the first call of a start: an agent without attachments ends then.
    """

    def __init__(
        self, rng: random.Random, rate: float, effects: tuple[str, ...] = ("refuse", "lose-reply", "fail-job")
    ) -> None:
        super().__init__((), rng=rng)
        self.rate = rate
        self.effects = effects
        self.codes: tuple[int, ...] = CODES

    def strike(self, params: Mapping[str, str], now: float) -> tuple[Strike, ...]:
        if self._rng.random() >= self.rate:
            return ()
        action = params["action"]
        code = self._rng.choice(self.codes)
        effects = [e for e in self.effects if not EFFECTS[e] or action in EFFECTS[e]]
        if action == FIRST_CALL:
            effects = [e for e in effects if e != WRONG_KEYS]
        if not effects:
            return ()
        spec = FaultSpec(action, self._rng.choice(effects), code=code, message="InjectedFault")
        return (Strike(spec, self.draw_delay(spec)),)
