import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { whyOutside, workspaceRoot } from "../../lib/system/workspace.ts";
import { temporaryDir } from "../support/directory.ts";

Deno.test("workspaceRoot() is the directory with .toolsmith/, or the file's own", () => {
  assertEquals(workspaceRoot("/srv/p/.toolsmith/tools.json"), "/srv/p");
  assertEquals(workspaceRoot("/srv/p/tools.json"), "/srv/p");
});

Deno.test("whyOutside() names a link at .toolsmith/ or in it, and leaves other files to the user", async () => {
  await using dir = await temporaryDir();
  const at = (path: string) => join(dir.path, path);
  await Deno.mkdir(at("real/.toolsmith"), { recursive: true });
  await Deno.mkdir(at("linked"));
  await Deno.symlink("../real/.toolsmith", at("linked/.toolsmith"));
  await Deno.symlink("nowhere", at("real/.toolsmith/cache"));
  await Deno.symlink("real", at("named"));
  const cases: Record<string, string | undefined> = {
    "real/.toolsmith/tools.json": undefined,
    "none/.toolsmith/tools.json": undefined,
    "real/.toolsmith/cache": "real/.toolsmith/cache",
    "linked/.toolsmith/tools.json": "linked/.toolsmith",
    // The user named these ways.
    "named/.toolsmith/tools.json": undefined,
    "named/tools.json": undefined,
    "named": undefined,
  };
  for (const [path, link] of Object.entries(cases)) {
    const why = link && `${at(link)} is a symbolic link`;
    assertEquals(await whyOutside(at(path)), why, path);
  }
});
