import { assertEquals } from "@std/assert";
import {
  findProgram,
  programSearchDirs,
} from "../../lib/system/find_program.ts";
import { temporaryDir } from "../support/directory.ts";

Deno.test("findProgram() returns the first regular file of that name in the directories of PATH", async () => {
  await using dir = await temporaryDir();
  const dirs = ["missing", "first", "second", "third"]
    .map((name) => `${dir.path}/${name}`);
  const [, first, second, third] = dirs;
  // A directory of that name is not a program.
  await Deno.mkdir(`${first}/tool`, { recursive: true });
  for (const found of [second, third]) {
    await Deno.mkdir(found);
    await Deno.writeTextFile(`${found}/tool`, "");
  }
  const env = new Map([["PATH", dirs.join(":")]]);
  assertEquals(await findProgram("tool", env), `${second}/tool`);
  assertEquals(await findProgram("other", env), undefined);
  // A path is not searched for.
  assertEquals(await findProgram(`${third}/tool`, env), `${third}/tool`);
  assertEquals(await findProgram("second/tool", env), undefined);
});

Deno.test("programSearchDirs() returns an empty name for the current directory", () => {
  const env = new Map([["PATH", "/a::/b:"]]);
  assertEquals(programSearchDirs(env), ["/a", "", "/b", ""]);
});
