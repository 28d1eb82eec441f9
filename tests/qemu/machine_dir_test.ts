import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  makeMachineDir,
  portName,
  removeMachineDir,
} from "../../lib/qemu/machine_dir.ts";
import { temporaryDir } from "../support/directory.ts";

const names = (dir: string) =>
  Array.from(Deno.readDirSync(dir), ({ name }) => name).sort();

Deno.test("a machine's directory is private, and its sockets can be named", async () => {
  await using dir = await temporaryDir();
  const deep = join(dir.path, "d".repeat(60));
  for (const TMPDIR of [dir.path, deep]) {
    const made = await makeMachineDir(new Map([["TMPDIR", TMPDIR]]));
    assertEquals((await Deno.stat(made)).mode! & 0o777, 0o700);
    assert(join(made, `${portName()}.out`).length < 104);
    await Deno.remove(made);
  }
});

Deno.test("what a machine has left goes, with its directory", async () => {
  await using dir = await temporaryDir();
  const machine = join(dir.path, "toolsmith-a1b2");
  await Deno.mkdir(machine);
  for (const name of ["qmp", "lock", "alone", `${portName()}.err`]) {
    await Deno.writeTextFile(join(machine, name), "");
  }
  await removeMachineDir(machine);
  assertEquals(names(dir.path), []);
  await removeMachineDir(machine);
});

Deno.test("a directory that is no machine's stays, and so do a user's files", async () => {
  await using dir = await temporaryDir();
  for (const name of ["notes", "toolsmith-notes"]) {
    const victim = join(dir.path, name);
    await Deno.mkdir(join(victim, "sub"), { recursive: true });
    await Deno.writeTextFile(join(victim, "lock"), "");
    await Deno.writeTextFile(join(victim, "precious"), "");
    await removeMachineDir(victim);
  }
  assertEquals(names(join(dir.path, "notes")), ["lock", "precious", "sub"]);
  const kept = names(join(dir.path, "toolsmith-notes"));
  assertEquals(kept.filter((name) => name !== "lock"), ["precious", "sub"]);
});
