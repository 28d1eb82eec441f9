import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { join } from "@std/path";
import fc from "fast-check";
import { ToolsmithError } from "../../lib/errors.ts";
import { connectJsonLines, type JsonPeer } from "../../lib/qemu/_json_lines.ts";
import type { JsonObject } from "../../lib/system/json.ts";
import { temporaryDir } from "../support/directory.ts";
import { cpuMs } from "../support/assert_linear.ts";
import { say } from "../support/fake_machine.ts";

const socketsHere = { ignore: Deno.build.os === "windows" };
const PEER: JsonPeer = {
  ...{
    name: "A peer",
    answerTimeoutMs: 60_000,
    timeoutErrorCode: "guest_failed",
  },
  onUnsolicited: () => {},
};
const MAX_LINE_BYTES = 4 * 1024 * 1024;

/** Sends chunks; returns the received messages and why the connection ended. */
async function receive(chunks: Iterable<Uint8Array>) {
  await using dir = await temporaryDir();
  const path = join(dir.path, "socket");
  using listener = Deno.listen({ transport: "unix", path });
  const messages: JsonObject[] = [];
  const onOther = (message: JsonObject) => messages.push(message);
  const opening = connectJsonLines(path, { ...PEER, onUnsolicited: onOther });
  using connection = await listener.accept();
  const lines = await opening;
  try {
    for (const chunk of chunks) await say(connection, chunk);
  } catch {
    // The receiver has closed the connection.
  }
  connection.closeWrite();
  const { disconnectSignal } = lines;
  if (!disconnectSignal.aborted) {
    await new Promise((ended) =>
      disconnectSignal.addEventListener("abort", ended, { once: true })
    );
  }
  return { messages, reason: disconnectSignal.reason as Error };
}

function* cut(bytes: Uint8Array, size: number) {
  for (let at = 0; at < bytes.length; at += size) {
    yield bytes.subarray(at, at + size);
  }
}

const encode = (text: string) => new TextEncoder().encode(text);

/** A JSON line of the given size. */
function lineOf(bytes: number): Uint8Array {
  const frame = '{"return":""}';
  const text = "x".repeat(bytes - frame.length);
  return encode(`{"return":"${text}"}\n`);
}

Deno.test({
  name:
    "JSON lines: objects arrive whole, however their bytes are split into chunks",
  ...socketsHere,
  async fn() {
    const key = fc.string({ unit: "binary" });
    const object = fc.dictionary(key, fc.jsonValue(), { maxKeys: 4 });
    const noise = fc.constantFrom("", "null", "7", "[]", "{", "}{", "\ud83d");
    const lines = fc.array(fc.oneof(object, noise), { maxLength: 8 });
    await fc.assert(
      fc.asyncProperty(lines, fc.nat(40), async (sent, size) => {
        const text = sent.map((it) =>
          (typeof it === "string" ? it : JSON.stringify(it)) + "\n"
        ).join("");
        const { messages } = await receive(cut(encode(text), size + 1));
        const objects = sent.filter((it) => typeof it !== "string");
        assertEquals(
          messages,
          objects.map((it) => JSON.parse(JSON.stringify(it))),
        );
      }),
      { numRuns: 50 },
    );
  },
});

Deno.test({
  name: "JSON lines: malformed lines are dropped",
  ...socketsHere,
  async fn() {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.uint8Array()), async (chunks) => {
        const { messages } = await receive(chunks);
        for (const message of messages) {
          assert(typeof message === "object" && message !== null);
        }
      }),
      { numRuns: 50 },
    );
  },
});

Deno.test({
  name:
    "JSON lines: a line above 4 MiB ends the connection, and parsing takes linear time",
  ...socketsHere,
  async fn() {
    const reading = (bytes: number) =>
      cpuMs(async () => {
        const { messages } = await receive(cut(lineOf(bytes), 1024));
        assertEquals(messages.length, 1);
      });
    const short = await reading(MAX_LINE_BYTES / 8);
    const longest = await reading(MAX_LINE_BYTES);
    // Quadratic parsing would take 64 times as long.
    assert(longest < 24 * short + 200, `${short} ms, ${longest} ms`);
    const small = encode('{"return":1}\n'.repeat(2));
    const after = await receive([lineOf(MAX_LINE_BYTES + 1), small]);
    assertEquals(after.messages, []);
    assert(after.reason instanceof ToolsmithError);
    assertMatch(after.reason.message, /a line longer than 4194304 characters$/);
  },
});

Deno.test({
  name:
    "JSON lines: waitForAnswer() rejects on timeout, abort and disconnection",
  ...socketsHere,
  async fn() {
    await using dir = await temporaryDir();
    const path = join(dir.path, "socket");
    using listener = Deno.listen({ transport: "unix", path });
    const lines = await connectJsonLines(path, PEER);
    using _connection = await listener.accept();
    const never = new Promise<void>(() => {});
    const signal = AbortSignal.abort(new Error("enough"));
    const hasty = await connectJsonLines(path, {
      ...PEER,
      answerTimeoutMs: 10,
    });
    using _other = await listener.accept();
    const late = () => hasty.waitForAnswer(never, "a");
    await assertRejects(late, ToolsmithError, "A peer did not answer a");
    const cancelled = () => lines.waitForAnswer(never, "a", signal);
    await assertRejects(cancelled, Error, "enough");
    const waiting = lines.waitForAnswer(never, "a");
    const closing = [lines, hasty].map((it) => it[Symbol.asyncDispose]());
    await assertRejects(() => waiting, Error, "Lost the connection to the VM");
    await Promise.all(closing);
  },
});
