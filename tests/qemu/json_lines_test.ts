import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { join } from "@std/path";
import fc from "fast-check";
import { ToolsmithError } from "../../lib/errors.ts";
import { type Message, openLines } from "../../lib/qemu/_json_lines.ts";
import { temporaryDir } from "../support/directory.ts";
import { say } from "../support/fake_machine.ts";

const socketsHere = { ignore: Deno.build.os === "windows" };
const MAX_LINE_BYTES = 4 * 1024 * 1024;

/** What is received of these chunks, and why the connection ended. */
async function receive(chunks: Iterable<Uint8Array>) {
  await using dir = await temporaryDir();
  const path = join(dir.path, "socket");
  using listener = Deno.listen({ transport: "unix", path });
  const messages: Message[] = [];
  const opening = openLines(path, (message) => messages.push(message));
  using connection = await listener.accept();
  const lines = await opening;
  try {
    for (const chunk of chunks) await say(connection, chunk);
  } catch {
    // It was closed because of what was sent.
  }
  connection.closeWrite();
  await lines.closed;
  return { messages, reason: lines.ended.reason as Error };
}

function* cut(bytes: Uint8Array, size: number) {
  for (let at = 0; at < bytes.length; at += size) {
    yield bytes.subarray(at, at + size);
  }
}

const encode = (text: string) => new TextEncoder().encode(text);

/** An object whose line has so many bytes. */
function lineOf(bytes: number): Uint8Array {
  const frame = '{"return":""}';
  const text = "x".repeat(bytes - frame.length);
  return encode(`{"return":"${text}"}\n`);
}

Deno.test({
  name:
    "objects arrive whole, however their lines are cut, between other lines",
  ...socketsHere,
  async fn() {
    const object = fc.dictionary(fc.string({ unit: "binary" }), fc.jsonValue());
    const noise = fc.constantFrom("", "null", "7", "[]", "{", "}{", "\ud83d");
    const line = fc.oneof(object, noise);
    await fc.assert(
      fc.asyncProperty(fc.array(line), fc.nat(40), async (sent, size) => {
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
  name: "any bytes at all end as objects, or are dropped",
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
  name: "a line has at most 4 MiB, and takes time in proportion to its length",
  ...socketsHere,
  async fn() {
    const longest = lineOf(MAX_LINE_BYTES);
    const begun = performance.now();
    const whole = await receive(cut(longest, 1024));
    assert(performance.now() - begun < 2_000);
    assertEquals(whole.messages.length, 1);
    const small = encode('{"return":1}\n'.repeat(2));
    const after = await receive([lineOf(MAX_LINE_BYTES + 1), small]);
    assertEquals(after.messages, []);
    assert(after.reason instanceof ToolsmithError);
    assertMatch(after.reason.message, /a line of more than 4194304 bytes$/);
  },
});

Deno.test({
  name: "an answer is not waited for beyond the caller's signal",
  ...socketsHere,
  async fn() {
    await using dir = await temporaryDir();
    const path = join(dir.path, "socket");
    using listener = Deno.listen({ transport: "unix", path });
    const lines = await openLines(path, () => {});
    using _connection = await listener.accept();
    const late = () => new Error("late");
    const never = new Promise<void>(() => {});
    const signal = AbortSignal.abort(new Error("enough"));
    await assertRejects(() => lines.within(never, { ms: 10, late }), "late");
    await assertRejects(
      () => lines.within(never, { ms: 60_000, late, signal }),
      Error,
      "enough",
    );
    const waiting = lines.within(never, { ms: 60_000, late });
    lines.close();
    await assertRejects(() => waiting, Error, "The machine broke off");
    await lines.closed;
  },
});
