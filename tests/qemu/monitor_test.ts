import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import type { AgentConnection } from "../../lib/qemu/agent.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import { sharedMonitor, singleProcessMonitor } from "../../lib/qemu/monitor.ts";
import type { QmpCommand, QmpConnection } from "../../lib/qemu/qmp.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { fakeMachine } from "../support/fake_machine.ts";
import { changeTimerDelays, holdTimers } from "../support/timers.ts";

const socketsHere = { ignore: Deno.build.os === "windows" };

/** Fake connections that record commands; the test resolves the agent's answers. */
function connections() {
  const done: string[] = [];
  const answers: PromiseWithResolvers<unknown>[] = [];
  const qmp = {
    execute(...commands: QmpCommand[]) {
      done.push(...commands.map(([name]) => name));
      return Promise.resolve(commands.map(() => ({})));
    },
    [Symbol.asyncDispose]: () => Promise.resolve(done.push("qmp closed")),
  } as unknown as QmpConnection;
  const agent: AgentConnection = {
    waitUntilAnswering: () => Promise.resolve(void done.push("sync")),
    execute([name], signal) {
      done.push(name);
      const answer = Promise.withResolvers<unknown>();
      signal?.addEventListener("abort", () => answer.reject(signal.reason));
      answers.push(answer);
      return answer.promise;
    },
    [Symbol.asyncDispose]: () =>
      Promise.resolve(void done.push("agent closed")),
  };
  return { qmp, agent, done, answers };
}

async function turns() {
  for (let turn = 0; turn < 3; turn++) {
    await new Promise((done) => setTimeout(done));
  }
}

Deno.test("singleProcessMonitor() sends agent commands one at a time, in order", async () => {
  const { qmp, agent, done, answers } = connections();
  const monitor = singleProcessMonitor("/machine", qmp, agent);
  assertEquals(monitor.dir, "/machine");
  const asked = ["one", "two"].map((name) => monitor.agent([name]));
  await turns();
  assertEquals(done, ["one"]);
  answers[0].resolve(1);
  await turns();
  answers[1].resolve(2);
  assertEquals(await Promise.all(asked), [1, 2]);
  assertEquals(await monitor.qemu([["a"], ["b"]]), [{}, {}]);
  assertEquals(done, ["one", "two", "a", "b"]);
});

Deno.test("singleProcessMonitor() resynchronizes the agent after an aborted command", async () => {
  const { qmp, agent, done, answers } = connections();
  const monitor = singleProcessMonitor("/machine", qmp, agent);
  const stop = new AbortController();
  const first = monitor.agent(["one"], stop.signal);
  await turns();
  stop.abort(new Error("enough"));
  await assertRejects(() => first, Error, "enough");
  for (const name of ["two", "three"]) {
    const asked = monitor.agent([name]);
    await turns();
    answers.at(-1)!.resolve({});
    await asked;
  }
  assertEquals(done, ["one", "sync", "two", "three"]);
  // A command that is aborted while queued is never sent.
  const waiting = monitor.agent(["four"]);
  const late = monitor.agent(["five"], AbortSignal.abort(new Error("late")));
  await assertRejects(() => late, Error, "late");
  await turns();
  answers.at(-1)!.resolve({});
  await waiting;
  await turns();
  assertEquals(done.slice(4), ["four"]);
});

Deno.test("singleProcessMonitor() reports an agent that does not resynchronize within 10 s", async () => {
  const { qmp, agent, answers } = connections();
  const never = (signal?: AbortSignal) =>
    new Promise<void>((_, fail) =>
      signal?.addEventListener("abort", () => fail(signal.reason))
    );
  const monitor = singleProcessMonitor("/machine", qmp, {
    ...agent,
    waitUntilAnswering: never,
  });
  const asked = monitor.agent(["one"]);
  await turns();
  answers[0].reject(new Error("malformed"));
  await assertRejects(() => asked, Error, "malformed");
  {
    using _timers = changeTimerDelays((ms) => ms === 10_000 ? 5 : ms);
    const error = await expectFailure(
      "guest_failed",
      () => monitor.agent(["two"]),
    );
    assertEquals(
      error.message,
      "The guest agent did not answer within 10 s",
    );
  }
  const stop = new AbortController();
  const last = monitor.agent(["three"], stop.signal);
  await turns();
  stop.abort(new Error("enough"));
  await assertRejects(() => last, Error, "enough");
  const broken = singleProcessMonitor("/machine", qmp, {
    ...agent,
    waitUntilAnswering: () => Promise.reject(new VmDisconnectedError()),
    execute: () => Promise.reject(new Error("malformed")),
  });
  await assertRejects(() => broken.agent(["one"]), Error, "malformed");
  await assertRejects(() => broken.agent(["two"]), VmDisconnectedError);
});

Deno.test("singleProcessMonitor() reports a guest without an agent, with a hint about the image", async () => {
  const { qmp, done } = connections();
  const monitor = singleProcessMonitor("/machine", qmp, undefined);
  const error = await expectFailure(
    "guest_not_ready",
    () => monitor.agent(["one"]),
  );
  assertEquals(error.message, "The guest has no agent, so commands cannot run");
  assertEquals(
    error.hint,
    "install qemu-guest-agent in the image",
  );
  await monitor[Symbol.asyncDispose]();
  assertEquals(done, ["qmp closed"]);
});

Deno.test("monitor: disposing waits for background work, even if the work fails", async () => {
  const { qmp, agent, done } = connections();
  const monitor = singleProcessMonitor("/machine", qmp, agent);
  const held = Promise.withResolvers<void>();
  const mine = monitor.runExclusively(() => held.promise);
  monitor.runInBackground(async () => {
    await turns();
    done.push("first");
    throw new Error("it fails");
  });
  monitor.runInBackground((signal) => {
    done.push(`second ${signal.aborted}`);
    return Promise.resolve();
  });
  const ended = monitor[Symbol.asyncDispose]();
  await turns();
  assertEquals(done, []);
  held.resolve();
  await mine;
  await ended;
  assertEquals(done, [
    ...["first", "second false", "qmp closed", "agent closed"],
  ]);
});

Deno.test("disposing a monitor waits for exclusive work, and refuses later work", async () => {
  const { qmp, agent, done } = connections();
  const monitor = singleProcessMonitor("/machine", qmp, agent);
  const busy = Promise.withResolvers<void>();
  const running = monitor.runExclusively(async () => {
    await busy.promise;
    await turns();
    done.push("ran");
  });
  const ended = monitor[Symbol.asyncDispose]();
  const late = () =>
    monitor.runExclusively(() => Promise.resolve(void done.push("late")));
  const refused = assertRejects(late, VmDisconnectedError);
  busy.resolve();
  await ended;
  await running;
  await refused;
  assertEquals(done, ["ran", "qmp closed", "agent closed"]);
});

Deno.test("runInBackground() disposes its resource when the work never gets the lock", async () => {
  using timers = holdTimers(120_000);
  const { qmp, agent, done } = connections();
  const monitor = singleProcessMonitor("/machine", qmp, agent);
  const busy = Promise.withResolvers<void>();
  const other = monitor.runExclusively(() => busy.promise);
  const released = Promise.withResolvers<void>();
  monitor.runInBackground(() => Promise.resolve(void done.push("ran")), {
    [Symbol.dispose]: released.resolve,
  });
  timers.expire();
  await released.promise;
  busy.resolve();
  await other;
  await monitor[Symbol.asyncDispose]();
  assertEquals(done, ["qmp closed", "agent closed"]);
});

Deno.test("disposing a monitor waits for running clean-up when later clean-up is skipped", async () => {
  using timers = holdTimers(120_000);
  const { qmp, agent, done } = connections();
  const monitor = singleProcessMonitor("/machine", qmp, agent);
  const busy = Promise.withResolvers<void>();
  monitor.runInBackground(async () => {
    await busy.promise;
    done.push("first");
  });
  monitor.runInBackground(() => Promise.resolve(void done.push("second")));
  await turns();
  timers.expire();
  const ended = monitor[Symbol.asyncDispose]();
  await turns();
  await turns();
  assertEquals(done, []);
  busy.resolve();
  await ended;
  assertEquals(done, ["first", "qmp closed", "agent closed"]);
});

Deno.test({
  name:
    "sharedMonitor() connects per command and takes turns with other processes",
  ...socketsHere,
  async fn() {
    const asked: string[] = [];
    await using machine = await fakeMachine({
      agent({ execute }) {
        asked.push(execute);
        return { said: execute };
      },
    });
    await using one = sharedMonitor(machine.dir);
    await using two = sharedMonitor(machine.dir);
    const both = await Promise.all([one.agent(["a"]), two.agent(["b"])]);
    assertEquals(both, [{ said: "a" }, { said: "b" }]);
    assertEquals(await one.qemu([["query-status"]]), [{}]);
    const order: string[] = [];
    const [locked, held] = [0, 0].map(() => Promise.withResolvers<void>());
    const first = one.runExclusively(async () => {
      locked.resolve();
      await held.promise;
      order.push("one");
    });
    await locked.promise;
    const second = two.runExclusively(() => Promise.resolve(order.push("two")));
    await turns();
    assertEquals(order, []);
    held.resolve();
    await Promise.all([first, second]);
    assertEquals(order, ["one", "two"]);
    const own = one.runExclusively(() => Promise.reject(new Error("its own")));
    await assertRejects(() => own, Error, "its own");
  },
});

Deno.test({
  name: "sharedMonitor() throws VmDisconnectedError when the VM is gone",
  ...socketsHere,
  async fn() {
    await using machine = await fakeMachine();
    const gone = sharedMonitor(join(machine.dir, "none"));
    await assertRejects(() => gone.qemu([["stop"]]), VmDisconnectedError);
    const monitor = sharedMonitor(machine.dir);
    await Deno.remove(join(machine.dir, "agent"));
    await assertRejects(() => monitor.agent(["a"]), VmDisconnectedError);
    const refused = join(machine.dir, "qmp");
    await Deno.remove(refused);
    Deno.listen({ transport: "unix", path: refused }).close();
    await assertRejects(() => monitor.qemu([["a"]]), VmDisconnectedError);
    const reset = () => Promise.reject(new Deno.errors.ConnectionReset());
    await assertRejects(
      () => monitor.runExclusively(reset),
      VmDisconnectedError,
    );
    assert(!(await Deno.stat(machine.dir)).isFile);
  },
});
