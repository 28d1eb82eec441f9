/** How the guest agent is asked, line by line: a socket stands in for QEMU. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { type Agent, openAgent } from "../../lib/qemu/agent.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { readLine, say } from "../support/fake_machine.ts";
import { hurriedTimers } from "../support/timers.ts";

function test(
  name: string,
  fn: (agent: Agent, guest: Deno.Conn) => Promise<void>,
) {
  Deno.test({
    name,
    ignore: Deno.build.os === "windows",
    async fn() {
      await using dir = await temporaryDir();
      const path = join(dir.path, "agent");
      using listener = Deno.listen({ transport: "unix", path });
      using agent = await openAgent(path);
      const guest = await listener.accept();
      try {
        await fn(agent, guest);
      } finally {
        agent[Symbol.dispose]();
        await agent.closed;
        try {
          guest.close();
        } catch {
          // The test has hung up.
        }
      }
    },
  });
}

/** The next command, and whether the agent was made to forget what came before. */
async function next(guest: Deno.Conn) {
  const line = await readLine(guest);
  return {
    flushed: line.startsWith("\xff"),
    ...JSON.parse(line.replace("\xff", "")),
  };
}

const answer = (guest: Deno.Conn, message: unknown) =>
  say(guest, JSON.stringify(message) + "\n");

test(
  "an agent is asked whether it is there, until it answers the last question",
  async (agent, guest) => {
    const waits: number[] = [];
    let askAgain = () => {};
    const setRepeating = globalThis.setInterval;
    globalThis.setInterval = ((ask: () => void, ms = 0) => {
      waits.push(ms);
      askAgain = ask;
      return setRepeating(ask, 60_000);
    }) as typeof setInterval;
    let settled = false;
    const synced = agent.sync().then(() => settled = true);
    globalThis.setInterval = setRepeating;
    const first = await next(guest);
    assertEquals([first.execute, first.flushed], ["guest-sync", true]);
    askAgain();
    const second = await next(guest);
    assert(first.arguments.id !== second.arguments.id);
    assertEquals(waits, [2000]);
    // What it said to others is no answer, and what it answers first is not all.
    await answer(guest, { return: "other" });
    await answer(guest, { return: first.arguments.id });
    await new Promise((done) => setTimeout(done, 30));
    assertEquals(settled, false);
    await answer(guest, { return: second.arguments.id });
    await synced;
  },
);

test(
  "a command's answer is what has its number, or none at all",
  async (agent, guest) => {
    const asked = agent.send(["guest-info", { a: 1 }]);
    const { flushed, execute, arguments: args, id } = await next(guest);
    assertEquals([flushed, execute, args], [false, "guest-info", { a: 1 }]);
    await answer(guest, { return: "another's", id: id + 1 });
    await answer(guest, { return: "mine", id });
    assertEquals(await asked, "mine");
    const older = agent.send(["guest-ping"]);
    await next(guest);
    await answer(guest, { return: {} });
    assertEquals(await older, {});
  },
);

test("a refusal is the agent's, in its words", async (agent, guest) => {
  const asked = failure("guest_failed", () => agent.send(["guest-exec"]));
  await next(guest);
  await answer(guest, { error: { desc: "not allowed" } });
  assertEquals(
    (await asked).message,
    "The guest agent refused guest-exec: not allowed",
  );
});

test("an agent has half a minute to answer", async (agent) => {
  using _timers = hurriedTimers((ms) => ms === 30_000 ? 5 : ms);
  const error = await failure(
    "guest_failed",
    () => agent.send(["guest-info"]),
  );
  assertEquals(error.message, "The guest agent did not answer to guest-info");
});

test(
  "a machine that hangs up, and a cancel, end the wait",
  async (agent, guest) => {
    const signal = AbortSignal.abort(new Error("enough"));
    await assertRejects(() => agent.sync(signal), Error, "enough");
    const send = () => agent.send(["guest-info"], { signal });
    await assertRejects(send, Error, "enough");
    const syncing = agent.sync();
    guest.close();
    await assertRejects(() => syncing, VmDisconnectedError);
    await assertRejects(() => agent.send(["guest-info"]), VmDisconnectedError);
    await agent.closed;
  },
);
