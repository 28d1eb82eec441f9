/** The guest agent's protocol, line by line, over a socket without QEMU. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { type AgentConnection, connectToAgent } from "../../lib/qemu/agent.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { readLine, say } from "../support/fake_machine.ts";
import { replaceMethod } from "../support/replace_method.ts";
import { changeTimerDelays } from "../support/timers.ts";

function test(
  name: string,
  fn: (agent: AgentConnection, guest: Deno.Conn) => Promise<void>,
) {
  Deno.test({
    name,
    ignore: Deno.build.os === "windows",
    async fn() {
      await using dir = await temporaryDir();
      const path = join(dir.path, "agent");
      using listener = Deno.listen({ transport: "unix", path });
      await using agent = await connectToAgent(path);
      const guest = await listener.accept();
      try {
        await fn(agent, guest);
      } finally {
        await agent[Symbol.asyncDispose]();
        try {
          guest.close();
        } catch {
          // The test has closed it already.
        }
      }
    },
  });
}

/** The next command, and whether a flush byte preceded it. */
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
  "agent waitUntilAnswering() repeats guest-sync until the last one is answered",
  async (agent, guest) => {
    const waits: number[] = [];
    let askAgain = () => {};
    const setRepeating = globalThis.setInterval;
    using _set = replaceMethod(globalThis, {
      setInterval(ask: () => void, ms = 0) {
        waits.push(ms);
        askAgain = ask;
        return setRepeating(ask, 60_000);
      },
    });
    let settled = false;
    const synced = agent.waitUntilAnswering().then(() => settled = true);
    // A failed assertion ends the connection, which is not worth a report of its own.
    synced.catch(() => {});
    const first = await next(guest);
    assertEquals([first.execute, first.flushed], ["guest-sync", true]);
    askAgain();
    const second = await next(guest);
    assert(first.arguments.id !== second.arguments.id);
    // Other answers are ignored; after the first one the agent may fall silent. An
    // answer without an id would be taken for that of the command below.
    await answer(guest, { error: { desc: "JSON parse error" }, id: "sync" });
    await answer(guest, { return: "other", id: "sync" });
    await answer(guest, { return: first.arguments.id, id: "sync" });
    const pinged = agent.execute(["guest-ping"]);
    const { id } = await next(guest);
    await answer(guest, { return: {}, id });
    await pinged;
    assertEquals([waits, settled], [[2000, 2000], false]);
    askAgain();
    const third = await next(guest);
    await answer(guest, { return: third.arguments.id });
    await synced;
  },
);

test(
  "agent execute() matches an answer by its id, or takes one without an id",
  async (agent, guest) => {
    const asked = agent.execute(["guest-info", { a: 1 }]);
    const { flushed, execute, arguments: args, id } = await next(guest);
    assertEquals([flushed, execute, args], [false, "guest-info", { a: 1 }]);
    await answer(guest, { return: "another's", id: id + 1 });
    await answer(guest, { return: "mine", id });
    assertEquals(await asked, "mine");
    const older = agent.execute(["guest-ping"]);
    await next(guest);
    await answer(guest, { return: {} });
    assertEquals(await older, {});
  },
);

test(
  "agent execute() throws guest_failed with the agent's error message",
  async (agent, guest) => {
    const asked = expectFailure(
      "guest_failed",
      () => agent.execute(["guest-exec"]),
    );
    await next(guest);
    await answer(guest, { error: { desc: "not allowed" } });
    assertEquals(
      (await asked).message,
      "The guest agent refused guest-exec: not allowed",
    );
  },
);

test("agent execute() times out after 30 s", async (agent) => {
  using _timers = changeTimerDelays((ms) => ms === 30_000 ? 5 : ms);
  const error = await expectFailure(
    "guest_failed",
    () => agent.execute(["guest-info"]),
  );
  assertEquals(
    error.message,
    "The guest agent did not answer guest-info within 30 s",
  );
});

test(
  "agent connection: a closed socket or an abort ends every wait",
  async (agent, guest) => {
    const signal = AbortSignal.abort(new Error("enough"));
    await assertRejects(
      () => agent.waitUntilAnswering(signal),
      Error,
      "enough",
    );
    const send = () => agent.execute(["guest-info"], signal);
    await assertRejects(send, Error, "enough");
    const syncing = agent.waitUntilAnswering();
    guest.close();
    await assertRejects(() => syncing, VmDisconnectedError);
    await assertRejects(
      () => agent.execute(["guest-info"]),
      VmDisconnectedError,
    );
  },
);
