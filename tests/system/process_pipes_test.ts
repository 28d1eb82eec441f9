/**
 * Input and output of child processes.
 */
import { assert, assertEquals } from "@std/assert";
import { runProcess, spawnProcess } from "../../lib/system/process.ts";
import { sleep } from "../../lib/system/time.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { waitingTextSink } from "../support/text_sink.ts";

/** Longer than any test may take, in seconds. */
const FOREVER = "600";

const sh = (script: string, ...args: string[]) => ["-c", script, "sh", ...args];

Deno.test("runProcess() passes text, bytes and a stream to standard input completely", async () => {
  const text = "ä".repeat(300_000);
  const bytes = new TextEncoder().encode(text);
  const inputs = [text, { bytes }, { stream: new Blob([bytes]).stream() }];
  for (const input of inputs) {
    const { stdout } = await runProcess("cat", { input });
    assert(stdout === text);
  }
  assertEquals((await runProcess("cat")).stdout, "");
});

Deno.test("runProcess() succeeds when the program does not read its input", async () => {
  const bytes = new Uint8Array(4 * 1024 * 1024);
  let cancelled = false;
  const stream = new ReadableStream<Uint8Array>({
    pull: (controller) => controller.enqueue(bytes.subarray(0, 65536)),
    cancel: () => void (cancelled = true),
  });
  for (const input of [{ bytes }, { stream }]) {
    const { code } = await runProcess("sh", { args: sh("exit 5"), input });
    assertEquals(code, 5);
  }
  assert(cancelled, "the stream is still open");
});

Deno.test("spawnProcess() with held input keeps standard input open until the program is stopped", async () => {
  const heard = waitingTextSink();
  const child = spawnProcess("sh", {
    args: sh("echo ready; cat > /dev/null; echo closed"),
    input: "held",
    stdout: heard.sink,
  });
  await heard.until("ready");
  const { signal } = await child.stop();
  assertEquals(signal, "SIGTERM");
  assertEquals(heard.said(), "ready\n");
});

Deno.test("runProcess() reads 10 MB from both output streams at once without a deadlock", async () => {
  const script =
    "head -c 10000000 /dev/zero >&2 & head -c 10000000 /dev/zero; wait";
  const { stdout, stderr } = await runProcess("sh", { args: sh(script) });
  assertEquals([stdout.length, stderr.length], [10_000_000, 10_000_000]);
});

Deno.test("runProcess() stops a program that prints more than 32 MiB", async () => {
  for (const stream of ["1", "2"]) {
    const args = sh(`exec cat /dev/zero >&${stream}`);
    const error = await expectFailure(
      "failed",
      () => runProcess("sh", { args }),
    );
    assertEquals(error.message, "sh printed more than 32 MiB");
  }
});

Deno.test("spawnProcess() delivers output before the program ends", async () => {
  const heard = waitingTextSink();
  await using _child = spawnProcess("sh", {
    args: sh(`echo first; exec sleep ${FOREVER}`),
    stdout: heard.sink,
  });
  await heard.until("first\n");
});

Deno.test("runProcess() reads the output of a child process that outlives the program", async () => {
  // The child process reads a line that is only written when the program has ended.
  const script = "exec 3<&0; (read -r line <&3; echo late) & echo early";
  const args = sh(script);
  const { stdout } = await runProcess("sh", { args, input: "held" });
  assertEquals(stdout, "early\nlate\n");
});

Deno.test("runProcess() returns when the program ends before its input stream does, and cancels the stream", async () => {
  let cancelled = false;
  const stream = new ReadableStream<Uint8Array>({
    pull: () => new Promise(() => {}),
    cancel: () => void (cancelled = true),
  });
  const { code } = await runProcess("sh", {
    args: sh("exit 5"),
    input: { stream },
  });
  assertEquals([code, cancelled], [5, true]);
});

Deno.test("spawnProcess() applies backpressure while an output callback is pending", async () => {
  let [busy, most, bytes] = [0, 0, 0];
  const child = spawnProcess("sh", {
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

Deno.test("runProcess() returns up to exactly 32 MiB of output", async () => {
  const bytes = 32 * 1024 * 1024;
  const args = sh(`exec head -c ${bytes} /dev/zero`);
  const { stdoutBytes } = await runProcess("sh", { args });
  assertEquals(stdoutBytes.length, bytes);
  const error = await expectFailure(
    "failed",
    () => runProcess("sh", { args: sh(`exec head -c ${bytes + 1} /dev/zero`) }),
  );
  assertEquals(error.message, "sh printed more than 32 MiB");
});
