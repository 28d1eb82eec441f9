import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  workspaceOf,
  workspaceSymlinkReason,
} from "../../lib/system/ownership.ts";
import { temporaryDir } from "../support/directory.ts";

Deno.test("workspaceOf() returns the parent of .toolsmith/ for a file in .toolsmith/, else the file's directory", () => {
  assertEquals(workspaceOf("/srv/p/.toolsmith/tools.json"), "/srv/p");
  assertEquals(workspaceOf("/srv/p/tools.json"), "/srv/p");
});

Deno.test("workspaceSymlinkReason() reports a symbolic link at or in .toolsmith/, and ignores other files", async () => {
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
    // The user named these paths.
    "named/.toolsmith/tools.json": undefined,
    "named/tools.json": undefined,
    "named": undefined,
  };
  for (const [path, link] of Object.entries(cases)) {
    const why = link && `${at(link)} is a symbolic link`;
    assertEquals(await workspaceSymlinkReason(at(path)), why, path);
  }
});
