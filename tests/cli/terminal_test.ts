import { assertEquals, assertStringIncludes } from "@std/assert";
import { queuedOutput } from "../../lib/cli/output.ts";
import { sleep } from "../../lib/system/time.ts";
import { consoleOutput } from "../../lib/cli/terminal.ts";

Deno.test("a console that is read slowly fills no memory, and what is left out is said", async () => {
  const read = Promise.withResolvers<void>();
  const written: Uint8Array[] = [];
  const output = queuedOutput({
    async write(bytes) {
      await read.promise;
      written.push(bytes.slice());
      return bytes.length;
    },
  }, "standard output");
  const show = consoleOutput(output);
  const chunk = new Uint8Array(1024 * 1024).fill(120);
  for (let i = 0; i < 100; i++) show(chunk);
  assertEquals(output.waiting(), 5 * chunk.length);
  read.resolve();
  await output.flushed();
  assertEquals(output.waiting(), 0);
  show(new TextEncoder().encode("again"));
  await output.flushed();
  const [note, again] = written.slice(5)
    .map((bytes) => new TextDecoder().decode(bytes));
  assertStringIncludes(note, "95.0 MiB of the console were not read in time");
  assertEquals(again, "again");
});

Deno.test("what follows a write that failed is not written, and each is told why", async () => {
  const written: number[] = [];
  const output = queuedOutput({
    write(bytes) {
      if (written.length === 1) return Promise.reject(new Error("it is gone"));
      written.push(bytes.length);
      return Promise.resolve(bytes.length);
    },
  }, "standard output");
  await output.write("one");
  for (const text of ["two", "three"]) {
    const error = await output.write(text).catch((error) => error);
    assertEquals(error.message, "Cannot write to standard output: it is gone");
    assertEquals(error.code, "failed");
  }
  // Nobody waits for events, and their failure is no crash.
  void output.write("four");
  await sleep(1);
  assertEquals([written, output.waiting()], [[3], 0]);
});
