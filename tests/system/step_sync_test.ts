import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { fileStepSync, stepSync } from "../../lib/system/step_sync.ts";
import { temporaryDir } from "../support/directory.ts";

const MIB = 1024 * 1024;

/** Syncs that end when they are told to. */
function slowSyncs(from?: number) {
  const ends: (() => void)[] = [];
  const steps = stepSync(() => new Promise((done) => ends.push(done)), from);
  const turn = () => new Promise((done) => setTimeout(done));
  return { ends, steps, turn };
}

Deno.test("a file is synced at every 4 MiB that have come, from what is synced already", async () => {
  const { ends, steps, turn } = slowSyncs(10 * MIB);
  steps.at(14 * MIB - 1);
  assertEquals(ends.length, 0);
  steps.at(14 * MIB);
  assertEquals(ends.length, 1);
  ends[0]();
  await turn();
  steps.at(18 * MIB - 1);
  assertEquals(ends.length, 1);
  steps.at(18 * MIB);
  assertEquals(ends.length, 2);
});

Deno.test("what comes while a sync runs is synced after it, if it is enough", async () => {
  const { ends, steps, turn } = slowSyncs();
  steps.at(4 * MIB);
  steps.at(20 * MIB);
  assertEquals(ends.length, 1, "two at once");
  ends[0]();
  await turn();
  assertEquals(ends.length, 2);
  steps.at(24 * MIB - 1);
  ends[1]();
  await steps.settled();
  assertEquals(ends.length, 2);
});

Deno.test("a sync that fails is reported by whatever is asked next, and none begins after it", async () => {
  let begun = 0;
  const steps = stepSync(() => {
    begun++;
    return Promise.reject(new Error("broken disk"));
  });
  steps.at(4 * MIB);
  await assertRejects(() => steps.settled(), Error, "broken disk");
  assertThrows(() => steps.at(99 * MIB), Error, "broken disk");
  await assertRejects(() => steps.settled(), Error, "broken disk");
  assertEquals(begun, 1);
});

Deno.test("a file that is written elsewhere is opened for its first sync, and closed", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  {
    await using steps = fileStepSync(path);
    steps.at(1);
    await steps.settled();
    await Deno.writeFile(path, new Uint8Array(4 * MIB));
    steps.at(4 * MIB);
    await steps.settled();
    steps.at(8 * MIB);
  }
  {
    await using steps = fileStepSync(`${path}.none`);
    steps.at(4 * MIB);
    await assertRejects(() => steps.settled(), Deno.errors.NotFound);
  }
});
