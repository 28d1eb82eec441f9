import { assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { openAgent } from "../../lib/qemu/agent.ts";
import { openQmp, type QmpEvent } from "../../lib/qemu/qmp.ts";
import { failure } from "../support/failure.ts";
import { temporaryDir } from "../support/directory.ts";

const socketsHere = { ignore: Deno.build.os === "windows" };

type Message = Record<string, unknown>;
type Reply = (message: unknown, raw?: string) => Promise<void>;

/** Stands for QEMU or an agent: answers each line as the test says. */
async function serving(
  onLine: (message: Message, reply: Reply) => unknown,
  work: (path: string) => Promise<void>,
  greeting = "",
) {
  await using dir = await temporaryDir();
  const path = join(dir.path, "socket");
  const listener = Deno.listen({ transport: "unix", path });
  const served = (async () => {
    for await (const connection of listener) {
      const write = async (text: string) => {
        await connection.write(new TextEncoder().encode(text));
      };
      if (greeting) await write(greeting);
      let rest = "";
      // The byte 0xff, which is no text, comes before a line of the agent.
      const decoder = new TextDecoder("latin1");
      for await (const chunk of connection.readable) {
        rest += decoder.decode(chunk, { stream: true });
        const lines = rest.split("\n");
        rest = lines.pop()!;
        for (const line of lines) {
          await onLine(
            JSON.parse(line.replaceAll("\xff", "")),
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
  name: "answers find their commands, whatever their order, between events",
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
        using qmp = await openQmp(path, {
          onEvent: (event) => events.push(event),
        });
        assertEquals(qmp.version, "7.2.22");
        assertEquals(await qmp.send(["one"], ["two"]), ["one", "two"]);
        assertEquals(events.map(({ event }) => event), ["STOP"]);
        qmp[Symbol.dispose]();
        await qmp.closed;
      },
      HELLO,
    );
  },
});

Deno.test({
  name: "a refusal carries QEMU's words, and the connection stays of use",
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
        using qmp = await openQmp(path);
        const error = await failure("guest_failed", () => qmp.send(["bad"]));
        assertEquals(error.message, "QEMU refused bad: no such thing");
        assertEquals(await qmp.send(["good"]), ["good"]);
        qmp[Symbol.dispose]();
        await qmp.closed;
      },
      HELLO,
    );
  },
});

Deno.test({
  name: "a refusal does not cut off the commands after it",
  ...socketsHere,
  async fn() {
    const seen: unknown[] = [];
    await serving(
      async ({ execute, id }, reply) => {
        seen.push(execute);
        if (execute === "bad") return await reply({ error: {}, id });
        // QEMU takes its time for the others.
        await new Promise((done) => setTimeout(done, 20));
        await reply({ return: {}, id });
      },
      async (path) => {
        using qmp = await openQmp(path);
        await failure("guest_failed", () => qmp.send(["bad"], ["a"], ["b"]));
        assertEquals(seen, ["qmp_capabilities", "bad", "a", "b"]);
        qmp[Symbol.dispose]();
        await qmp.closed;
      },
      HELLO,
    );
  },
});

Deno.test({
  name: "a command is not waited for once QEMU is gone",
  ...socketsHere,
  async fn() {
    await serving(
      ({ execute, id }, reply) => {
        if (execute === "quit") throw new Error("hangs up");
        return reply({ return: {}, id });
      },
      async (path) => {
        using qmp = await openQmp(path);
        const asked = qmp.send(["quit"]);
        qmp[Symbol.dispose]();
        await failure("guest_failed", () => asked);
        await failure("guest_failed", () => qmp.send(["again"]));
        await qmp.closed;
      },
      HELLO,
    );
    await assertRejects(
      () => openQmp("/nowhere/socket"),
      Deno.errors.NotFound,
    );
  },
});

Deno.test({
  name: "what an agent still had to say to others is not taken for an answer",
  ...socketsHere,
  async fn() {
    let syncs = 0;
    await serving(
      async (message, reply) => {
        const { execute, id } = message;
        const asked = message.arguments as { id: number } | undefined;
        if (execute === "guest-sync") {
          if (++syncs === 1) {
            await reply({ error: { desc: "JSON parse error" } });
            await reply({ return: { pid: 1 } });
            await reply({ return: 12345 });
          }
          return await reply({ return: asked!.id });
        }
        await reply({ return: "for somebody else", id: 1 });
        await reply({ return: execute, id });
      },
      async (path) => {
        using agent = await openAgent(path);
        await agent.sync();
        assertEquals(await agent.send(["guest-ping"]), "guest-ping");
        await agent.sync();
        assertEquals(await agent.send(["guest-info"]), "guest-info");
        assertEquals(syncs, 2);
        agent[Symbol.dispose]();
        await agent.closed;
      },
    );
  },
});

Deno.test({
  name: "an agent that does not answer is asked again, until it is enough",
  ...socketsHere,
  async fn() {
    let syncs = 0;
    await serving(
      (message, reply) => {
        const asked = message.arguments as { id: number };
        // The first question got lost.
        if (++syncs === 2) return reply({ return: asked.id });
      },
      async (path) => {
        using agent = await openAgent(path);
        await agent.sync();
        assertEquals(syncs, 2);
        await failure(
          "guest_failed",
          () => agent.send(["guest-ping"], { timeoutMs: 20 }),
        );
        const stop = new AbortController();
        const asking = agent.sync(stop.signal);
        stop.abort(new Error("enough"));
        await assertRejects(() => asking, Error, "enough");
        agent[Symbol.dispose]();
        await agent.closed;
      },
    );
  },
});
