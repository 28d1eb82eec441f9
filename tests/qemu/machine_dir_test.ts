import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  isMachineDir,
  makeMachineDir,
  markMachineDir,
  portName,
  removeMachineDir,
} from "../../lib/qemu/machine_dir.ts";
import { sha256OfText } from "../../lib/system/digest.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";

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

Deno.test("makeMachineDir() names TMPDIR where no directory can be made there", async () => {
  await using dir = await temporaryDir();
  const file = join(dir.path, "file");
  await Deno.writeTextFile(file, "");
  const cases = [
    [join(dir.path, "none"), "no such file or directory"],
    [file, "not a directory"],
  ];
  for (const [TMPDIR, reason] of cases) {
    const env = new Map([["TMPDIR", TMPDIR]]);
    const { message, hint } = await failure("usage", () => makeMachineDir(env));
    const what = `Cannot make a temporary directory in ${TMPDIR}`;
    assertEquals(message, `${what}: ${reason}`);
    assertEquals(
      hint,
      "set TMPDIR to a directory that exists and can be written",
    );
  }
});

/** A directory with files that are called as a machine's. */
async function fill(path: string): Promise<string[]> {
  const files = ["alone", "lock", "qmp", `${portName()}.err`];
  await Deno.mkdir(path, { recursive: true });
  for (const name of files) await Deno.writeTextFile(join(path, name), "");
  return files.sort();
}

Deno.test("removeMachineDir() removes a directory, whatever of it is left", async () => {
  await using dir = await temporaryDir();
  const machine = join(dir.path, "toolsmith-a1b2");
  await fill(machine);
  const token = await markMachineDir(machine);
  const { mode } = await Deno.stat(join(machine, "token"));
  assertEquals([mode! & 0o777, await isMachineDir(machine, token)], [
    0o600,
    true,
  ]);
  await removeMachineDir(machine);
  assertEquals(names(dir.path), []);
  assertEquals(await isMachineDir(machine, token), false);
});

Deno.test("isMachineDir() believes no directory without the token, or with a copy of it", async () => {
  await using dir = await temporaryDir();
  const [machine, victim] = ["toolsmith-machine", "toolsmith-notes"]
    .map((name) => join(dir.path, name));
  await fill(machine);
  await fill(victim);
  const digest = await markMachineDir(machine);
  const [token, planted] = [machine, victim].map((it) => join(it, "token"));
  const text = await Deno.readTextFile(token);
  assertEquals(await isMachineDir(victim, undefined), false);
  assertEquals(await isMachineDir(victim, digest), false);
  await Deno.writeTextFile(planted, text, { mode: 0o600 });
  assertEquals(await isMachineDir(victim, digest), false);
  assertEquals(await isMachineDir(victim, await sha256OfText(text)), false);
  await Deno.remove(planted);
  await Deno.symlink(token, planted);
  assertEquals(await isMachineDir(victim, digest), false);
  await Deno.remove(planted);
  await markMachineDir(victim);
  assertEquals(await isMachineDir(victim, digest), false);
});
