import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import type { Agent } from "../../lib/qemu/agent.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import { ownMonitor, sharedMonitor } from "../../lib/qemu/monitor.ts";
import type { Command, Qmp } from "../../lib/qemu/qmp.ts";
import { failure } from "../support/failure.ts";
import { fakeMachine } from "../support/fake_machine.ts";
import { hurriedTimers } from "../support/timers.ts";

const socketsHere = { ignore: Deno.build.os === "windows" };

/** Connections that note what goes over them; the agent's answers come later. */
function connections() {
  const done: string[] = [];
  const answers: PromiseWithResolvers<unknown>[] = [];
  const qmp = {
    closed: Promise.resolve(),
    send(...commands: Command[]) {
      done.push(...commands.map(([name]) => name));
      return Promise.resolve(commands.map(() => ({})));
    },
    [Symbol.dispose]: () => void done.push("qmp closed"),
  } as unknown as Qmp;
  const agent: Agent = {
    closed: Promise.resolve(),
    sync: () => Promise.resolve(void done.push("sync")),
    send([name], { signal } = {}) {
      done.push(name);
      const answer = Promise.withResolvers<unknown>();
      signal?.addEventListener("abort", () => answer.reject(signal.reason));
      answers.push(answer);
      return answer.promise;
    },
    [Symbol.dispose]: () => void done.push("agent closed"),
  };
  return { qmp, agent, done, answers };
}

async function turns() {
  for (let turn = 0; turn < 3; turn++) {
    await new Promise((done) => setTimeout(done));
  }
}

Deno.test("the agent is asked for one thing at a time, in order", async () => {
  const { qmp, agent, done, answers } = connections();
  const monitor = ownMonitor("/machine", qmp, agent);
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

Deno.test("an agent that was left in the middle of an answer is brought to order first", async () => {
  const { qmp, agent, done, answers } = connections();
  const monitor = ownMonitor("/machine", qmp, agent);
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
  // What is given up while it waits for its turn is never asked.
  const waiting = monitor.agent(["four"]);
  const late = monitor.agent(["five"], AbortSignal.abort(new Error("late")));
  await assertRejects(() => late, Error, "late");
  await turns();
  answers.at(-1)!.resolve({});
  await waiting;
  await turns();
  assertEquals(done.slice(4), ["four"]);
});

Deno.test("an agent that does not come to order in ten seconds is said to be silent", async () => {
  const { qmp, agent, answers } = connections();
  const never = (signal?: AbortSignal) =>
    new Promise<void>((_, fail) =>
      signal?.addEventListener("abort", () => fail(signal.reason))
    );
  const monitor = ownMonitor("/machine", qmp, { ...agent, sync: never });
  const asked = monitor.agent(["one"]);
  await turns();
  answers[0].reject(new Error("malformed"));
  await assertRejects(() => asked, Error, "malformed");
  {
    using _timers = hurriedTimers((ms) => ms === 10_000 ? 5 : ms);
    const error = await failure("guest_failed", () => monitor.agent(["two"]));
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
  const broken = ownMonitor("/machine", qmp, {
    ...agent,
    sync: () => Promise.reject(new VmDisconnectedError()),
    send: () => Promise.reject(new Error("malformed")),
  });
  await assertRejects(() => broken.agent(["one"]), Error, "malformed");
  await assertRejects(() => broken.agent(["two"]), VmDisconnectedError);
});

Deno.test("a guest without an agent says what its image needs", async () => {
  const { qmp, done } = connections();
  const monitor = ownMonitor("/machine", qmp, undefined);
  const error = await failure("guest_not_ready", () => monitor.agent(["one"]));
  assertEquals(error.message, "The guest has no agent to run commands with");
  assertEquals(
    error.hint,
    "the image needs qemu-guest-agent, started at boot",
  );
  await monitor[Symbol.asyncDispose]();
  assertEquals(done, ["qmp closed"]);
});

Deno.test("a monitor ends when its work in the background has, whatever becomes of that", async () => {
  const { qmp, agent, done } = connections();
  const monitor = ownMonitor("/machine", qmp, agent);
  const held = Promise.withResolvers<void>();
  const mine = monitor.exclusive(() => held.promise);
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

Deno.test({
  name:
    "processes that share a machine talk to it in turns, and leave no connection",
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
    const held = Promise.withResolvers<void>();
    const first = one.exclusive(async () => {
      await held.promise;
      order.push("one");
    });
    await turns();
    const second = two.exclusive(() => Promise.resolve(order.push("two")));
    await turns();
    assertEquals(order, []);
    held.resolve();
    await Promise.all([first, second]);
    assertEquals(order, ["one", "two"]);
    const own = one.exclusive(() => Promise.reject(new Error("its own")));
    await assertRejects(() => own, Error, "its own");
  },
});

Deno.test({
  name: "a shared machine that is gone has broken off, however that shows",
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
    assert(!(await Deno.stat(machine.dir)).isFile);
  },
});
