import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  hasVmDirToken,
  makeVmDir,
  newPortName,
  removeVmDir,
  writeVmDirToken,
} from "../../lib/qemu/vm_dir.ts";
import { sha256OfText } from "../../lib/system/digest.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";

const names = (dir: string) =>
  Array.from(Deno.readDirSync(dir), ({ name }) => name).sort();

Deno.test("makeVmDir() makes a private directory with a path short enough for sockets", async () => {
  await using dir = await temporaryDir();
  const deep = join(dir.path, "d".repeat(60));
  for (const TMPDIR of [dir.path, deep]) {
    const made = await makeVmDir(new Map([["TMPDIR", TMPDIR]]));
    assertEquals((await Deno.stat(made)).mode! & 0o777, 0o700);
    assert(join(made, `${newPortName()}.out`).length < 104);
    await Deno.remove(made);
  }
});

Deno.test("makeVmDir() reports TMPDIR when no directory can be made in it", async () => {
  await using dir = await temporaryDir();
  const file = join(dir.path, "file");
  await Deno.writeTextFile(file, "");
  const cases = [
    [join(dir.path, "none"), "no such file or directory"],
    [file, "not a directory"],
  ];
  for (const [TMPDIR, reason] of cases) {
    const env = new Map([["TMPDIR", TMPDIR]]);
    const { message, hint } = await expectFailure(
      "usage",
      () => makeVmDir(env),
    );
    const what = `Cannot create a temporary directory in ${TMPDIR}`;
    assertEquals(message, `${what}: ${reason}`);
    assertEquals(
      hint,
      "set TMPDIR to a directory that exists and is writable",
    );
  }
});

/** A directory with the file names of a VM's. */
async function fill(path: string): Promise<string[]> {
  const files = ["alone", "lock", "qmp", `${newPortName()}.err`];
  await Deno.mkdir(path, { recursive: true });
  for (const name of files) await Deno.writeTextFile(join(path, name), "");
  return files.sort();
}

Deno.test("removeVmDir() removes the directory and all files in it", async () => {
  await using dir = await temporaryDir();
  const machine = join(dir.path, "toolsmith-a1b2");
  await fill(machine);
  const token = await writeVmDirToken(machine);
  const { mode } = await Deno.stat(join(machine, "token"));
  assertEquals([mode! & 0o777, await hasVmDirToken(machine, token)], [
    0o600,
    true,
  ]);
  await removeVmDir(machine);
  assertEquals(names(dir.path), []);
  assertEquals(await hasVmDirToken(machine, token), false);
});

Deno.test("hasVmDirToken() rejects a directory with a missing, copied or linked token", async () => {
  await using dir = await temporaryDir();
  const [machine, victim] = ["toolsmith-machine", "toolsmith-notes"]
    .map((name) => join(dir.path, name));
  await fill(machine);
  await fill(victim);
  const digest = await writeVmDirToken(machine);
  const [token, planted] = [machine, victim].map((it) => join(it, "token"));
  const text = await Deno.readTextFile(token);
  assertEquals(await hasVmDirToken(victim, undefined), false);
  assertEquals(await hasVmDirToken(victim, digest), false);
  await Deno.writeTextFile(planted, text, { mode: 0o600 });
  assertEquals(await hasVmDirToken(victim, digest), false);
  assertEquals(await hasVmDirToken(victim, await sha256OfText(text)), false);
  await Deno.remove(planted);
  await Deno.symlink(token, planted);
  assertEquals(await hasVmDirToken(victim, digest), false);
  await Deno.remove(planted);
  await writeVmDirToken(victim);
  assertEquals(await hasVmDirToken(victim, digest), false);
});
