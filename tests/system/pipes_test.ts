/**
 * What a program reads, and what it prints.
 */
import { assert, assertEquals } from "@std/assert";
import { capture } from "../../lib/system/_pipes.ts";
import { run, spawn } from "../../lib/system/process.ts";
import { sleep } from "../../lib/system/time.ts";
import { failure } from "../support/failure.ts";
import { listener } from "../support/listener.ts";

/** Longer than any test may take: who waits for it has failed. */
const FOREVER = "600";

const sh = (script: string, ...args: string[]) => ["-c", script, "sh", ...args];

Deno.test("text, bytes and a stream reach standard input whole", async () => {
  const text = "ä".repeat(300_000);
  const bytes = new TextEncoder().encode(text);
  const inputs = [text, { bytes }, { stream: new Blob([bytes]).stream() }];
  for (const input of inputs) {
    const { stdout } = await run("cat", { input });
    assert(stdout === text);
  }
  assertEquals((await run("cat")).stdout, "");
});

Deno.test("a program that does not read its input is no failure", async () => {
  const bytes = new Uint8Array(4 * 1024 * 1024);
  let cancelled = false;
  const stream = new ReadableStream<Uint8Array>({
    pull: (controller) => controller.enqueue(bytes.subarray(0, 65536)),
    cancel: () => void (cancelled = true),
  });
  for (const input of [{ bytes }, { stream }]) {
    const { code } = await run("sh", { args: sh("exit 5"), input });
    assertEquals(code, 5);
  }
  assert(cancelled, "the stream is still open");
});

Deno.test("held input stays open until the program is stopped", async () => {
  const heard = listener();
  const child = spawn("sh", {
    args: sh("echo ready; cat > /dev/null; echo closed"),
    input: "held",
    stdout: heard.sink,
  });
  await heard.until("ready");
  const { signal } = await child.stop();
  assertEquals(signal, "SIGTERM");
  assertEquals(heard.said(), "ready\n");
});

Deno.test("10 MB on both streams at once arrive without a deadlock", async () => {
  const script =
    "head -c 10000000 /dev/zero >&2 & head -c 10000000 /dev/zero; wait";
  const { stdout, stderr } = await run("sh", { args: sh(script) });
  assertEquals([stdout.length, stderr.length], [10_000_000, 10_000_000]);
});

Deno.test("output without end is an error, and stops the program", async () => {
  for (const stream of ["1", "2"]) {
    const args = sh(`exec cat /dev/zero >&${stream}`);
    const error = await failure("failed", () => run("sh", { args }));
    assertEquals(error.message, "sh printed over 32 MiB");
  }
});

Deno.test("output is seen before the program ends", async () => {
  const heard = listener();
  await using _child = spawn("sh", {
    args: sh(`echo first; exec sleep ${FOREVER}`),
    stdout: heard.sink,
  });
  await heard.until("first\n");
});

Deno.test("standard error is seen as it comes, and returned too", async () => {
  const heard = listener();
  const args = sh("echo oops >&2");
  const { stderr } = await run("sh", { args, onStderr: heard.sink });
  assertEquals([heard.said(), stderr], ["oops\n", "oops\n"]);
});

Deno.test("what a program's helper prints after it is still read", async () => {
  const script = "(sleep 0.2; echo late) & echo early";
  const { stdout } = await run("sh", { args: sh(script) });
  assertEquals(stdout, "early\nlate\n");
});

Deno.test("input that never comes keeps no program from ending, and is let go of", async () => {
  let cancelled = false;
  const stream = new ReadableStream<Uint8Array>({
    pull: () => new Promise(() => {}),
    cancel: () => void (cancelled = true),
  });
  const { code } = await run("sh", { args: sh("exit 5"), input: { stream } });
  assertEquals([code, cancelled], [5, true]);
});

Deno.test("a program waits while its output is dealt with", async () => {
  let [busy, most, bytes] = [0, 0, 0];
  const child = spawn("sh", {
    args: sh("head -c 2000000 /dev/zero"),
    async stdout(chunk) {
      most = Math.max(most, ++busy);
      await sleep(1);
      bytes += chunk.length;
      busy--;
    },
  });
  await child.ended;
  assertEquals([most, bytes], [1, 2_000_000]);
});

Deno.test("32 MiB of output are kept, and not a byte more", () => {
  let full = 0;
  const { add, bytes } = capture(() => full++);
  const half = new Uint8Array(16 * 1024 * 1024).fill(7);
  for (const chunk of [half, half, new Uint8Array()]) add(chunk);
  assertEquals(full, 0);
  add(new Uint8Array(1));
  assertEquals(full, 1);
  const kept = bytes();
  assertEquals(kept.length, 2 * half.length);
  assertEquals([kept[0], kept.at(-1)], [7, 7]);
});
