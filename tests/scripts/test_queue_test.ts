import { assertEquals } from "@std/assert";
import { type QueueOptions, runQueue } from "../../scripts/test/queue.ts";

/** Runs fake files that end on command; returns the order of starts. */
async function start(files: string[], options: Partial<QueueOptions> = {}) {
  const started: string[] = [];
  const running = new Map<string, (goOn: boolean) => void>();
  const done = runQueue(files, {
    jobs: 2,
    guests: 2,
    bootsGuest: (file) => file.startsWith("guest"),
    durations: {},
    run: (file) => {
      started.push(file);
      return new Promise((end) => running.set(file, end));
    },
    ...options,
  });
  const end = async (file: string, goOn = true) => {
    running.get(file)!(goOn);
    // The next file starts within the same turn of the event loop.
    await new Promise((turn) => setTimeout(turn));
  };
  await Promise.resolve();
  return { started, end, done };
}

Deno.test("runQueue() starts unknown files first, then those with guests, then the slowest", async () => {
  const durations = { quick: 1, slow: 9 };
  const files = ["quick", "slow", "new", "guest"];
  const { started, end, done } = await start(files, { durations });
  assertEquals(started, ["guest", "new"]);
  await end("guest");
  await end("new");
  assertEquals(started, ["guest", "new", "slow", "quick"]);
  await end("slow");
  await end("quick");
  await done;
});

Deno.test("runQueue() boots no more guests at a time than allowed", async () => {
  const files = ["guest1", "guest2", "guest3", "other"];
  const { started, end, done } = await start(files, { jobs: 3 });
  assertEquals(started, ["guest1", "guest2", "other"]);
  await end("other");
  assertEquals(started.length, 3);
  await end("guest1");
  assertEquals(started.at(-1), "guest3");
  await end("guest2");
  await end("guest3");
  await done;
});

Deno.test("runQueue() starts no further file after one whose result stops the queue", async () => {
  const { started, end, done } = await start(["a", "b", "c"]);
  await end("a", false);
  await end("b");
  await done;
  assertEquals(started, ["a", "b"]);
});
