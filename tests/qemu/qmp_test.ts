import { assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { connectToQmp, type QmpEvent } from "../../lib/qemu/qmp.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { temporaryDir } from "../support/directory.ts";

const socketsHere = { ignore: Deno.build.os === "windows" };

type Message = Record<string, unknown>;
type Reply = (message: unknown, raw?: string) => Promise<void>;

/** Plays QEMU: the test answers each line. */
async function serving(
  onLine: (message: Message, reply: Reply) => unknown,
  work: (path: string) => Promise<void>,
) {
  await using dir = await temporaryDir();
  const path = join(dir.path, "socket");
  const listener = Deno.listen({ transport: "unix", path });
  const served = (async () => {
    for await (const connection of listener) {
      const write = async (text: string) => {
        await connection.write(new TextEncoder().encode(text));
      };
      await write(HELLO);
      let rest = "";
      const decoder = new TextDecoder();
      for await (const chunk of connection.readable) {
        rest += decoder.decode(chunk, { stream: true });
        const lines = rest.split("\n");
        rest = lines.pop()!;
        for (const line of lines) {
          await onLine(
            JSON.parse(line),
            (message, raw = "") => write(raw + JSON.stringify(message) + "\n"),
          );
        }
      }
    }
  })();
  try {
    await work(path);
  } finally {
    listener.close();
    await served.catch(() => {});
  }
}

const HELLO =
  '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}}}\r\n';

Deno.test({
  name: "QMP execute() matches answers to commands by id, in any order",
  ...socketsHere,
  async fn() {
    const events: QmpEvent[] = [];
    const held: (() => Promise<void>)[] = [];
    await serving(
      async ({ execute, id }, reply) => {
        if (execute === "qmp_capabilities") {
          return await reply({ return: {}, id });
        }
        held.push(() => reply({ return: execute, id }));
        if (held.length < 2) return;
        await held[1]();
        await reply({ event: "STOP", data: { why: 1 } }, "not JSON\n");
        await held[0]();
      },
      async (path) => {
        await using qmp = await connectToQmp(path, {
          onEvent: (event) => events.push(event),
        });
        assertEquals(qmp.version, "7.2.22");
        assertEquals(await qmp.execute(["one"], ["two"]), ["one", "two"]);
        assertEquals(events.map(({ event }) => event), ["STOP"]);
      },
    );
  },
});

Deno.test({
  name:
    "QMP execute() throws QEMU's error message and keeps the connection usable",
  ...socketsHere,
  async fn() {
    await serving(
      ({ execute, id }, reply) =>
        execute === "bad"
          ? reply({
            error: { class: "GenericError", desc: "no such thing" },
            id,
          })
          : reply({ return: execute, id }),
      async (path) => {
        await using qmp = await connectToQmp(path);
        const error = await expectFailure(
          "guest_failed",
          () => qmp.execute(["bad"]),
        );
        assertEquals(error.message, "QEMU refused bad: no such thing");
        assertEquals(await qmp.execute(["good"]), ["good"]);
      },
    );
  },
});

Deno.test({
  name: "QMP execute() waits for all commands when one is refused",
  ...socketsHere,
  async fn() {
    const seen: unknown[] = [];
    const refused = Promise.withResolvers<void>();
    const answers = Promise.withResolvers<void>();
    await serving(
      async ({ execute, id }, reply) => {
        seen.push(execute);
        if (execute === "qmp_capabilities") {
          return await reply({ return: {}, id });
        }
        if (execute === "bad") {
          await reply({ error: {}, id });
          return await reply({ event: "STOP" });
        }
        await answers.promise;
        await reply({ return: {}, id });
      },
      async (path) => {
        await using qmp = await connectToQmp(path, {
          onEvent: () => refused.resolve(),
        });
        let settled = false;
        const asked = expectFailure(
          "guest_failed",
          () => qmp.execute(["bad"], ["a"], ["b"]),
        ).then(() => settled = true);
        // The event follows the refusal.
        await refused.promise;
        await new Promise((done) => setTimeout(done));
        assertEquals(settled, false);
        answers.resolve();
        await asked;
        assertEquals(seen, ["qmp_capabilities", "bad", "a", "b"]);
      },
    );
  },
});

Deno.test({
  name: "QMP execute() fails at once when QEMU has disconnected",
  ...socketsHere,
  async fn() {
    await serving(
      ({ execute, id }, reply) => {
        if (execute === "quit") throw new Error("hangs up");
        return reply({ return: {}, id });
      },
      async (path) => {
        await using qmp = await connectToQmp(path);
        const asked = qmp.execute(["quit"]);
        const closing = qmp[Symbol.asyncDispose]();
        await expectFailure("guest_failed", () => asked);
        await expectFailure("guest_failed", () => qmp.execute(["again"]));
        await closing;
      },
    );
    await assertRejects(
      () => connectToQmp("/nowhere/socket"),
      Deno.errors.NotFound,
    );
  },
});
