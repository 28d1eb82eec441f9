import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  createIncrementalSync,
  openIncrementalFileSync,
} from "../../lib/system/incremental_sync.ts";
import { temporaryDir } from "../support/directory.ts";

const MIB = 1024 * 1024;

/** Periodic syncs that the test completes itself. */
function slowSyncs() {
  const ends: (() => void)[] = [];
  const steps = createIncrementalSync(
    () => new Promise((done) => ends.push(done)),
  );
  const turn = () => new Promise((done) => setTimeout(done));
  return { ends, steps, turn };
}

Deno.test("createIncrementalSync() starts a sync after every 4 MiB", async () => {
  const { ends, steps, turn } = slowSyncs();
  steps.reportWritten(4 * MIB - 1);
  assertEquals(ends.length, 0);
  steps.reportWritten(4 * MIB);
  assertEquals(ends.length, 1);
  ends[0]();
  await turn();
  steps.reportWritten(8 * MIB - 1);
  assertEquals(ends.length, 1);
  steps.reportWritten(8 * MIB);
  assertEquals(ends.length, 2);
});

Deno.test("createIncrementalSync() starts the next sync after the running one, if 4 MiB more were written meanwhile", async () => {
  const { ends, steps, turn } = slowSyncs();
  steps.reportWritten(4 * MIB);
  steps.reportWritten(20 * MIB);
  assertEquals(ends.length, 1, "two at once");
  ends[0]();
  await turn();
  assertEquals(ends.length, 2);
  steps.reportWritten(24 * MIB - 1);
  ends[1]();
  await steps.settled();
  assertEquals(ends.length, 2);
});

Deno.test("createIncrementalSync() rethrows a failed sync's error on every later call, and starts no other sync", async () => {
  let begun = 0;
  const steps = createIncrementalSync(() => {
    begun++;
    return Promise.reject(new Error("broken disk"));
  });
  steps.reportWritten(4 * MIB);
  await assertRejects(() => steps.settled(), Error, "broken disk");
  assertThrows(() => steps.reportWritten(99 * MIB), Error, "broken disk");
  await assertRejects(() => steps.settled(), Error, "broken disk");
  assertEquals(begun, 1);
});

Deno.test("openIncrementalFileSync() opens the file at the first sync, and closes it when disposed", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  {
    await using steps = openIncrementalFileSync(path);
    steps.reportWritten(1);
    await steps.settled();
    await Deno.writeFile(path, new Uint8Array(4 * MIB));
    steps.reportWritten(4 * MIB);
    await steps.settled();
    steps.reportWritten(8 * MIB);
  }
  {
    await using steps = openIncrementalFileSync(`${path}.none`);
    steps.reportWritten(4 * MIB);
    await assertRejects(() => steps.settled(), Deno.errors.NotFound);
  }
});
