import { assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { openStore } from "../../scripts/guest/_store.ts";
import { temporaryDir } from "../support/directory.ts";

/** Takes a guest of one file from a store, and counts what was built. */
async function take(root: string, built: string[]): Promise<string> {
  using store = await openStore("kind", root);
  return await store.directory("kind-1", async (staging) => {
    built.push(...Array.from(Deno.readDirSync(staging), ({ name }) => name));
    built.push("built");
    await Deno.writeTextFile(join(staging, "image"), "whole");
    await Deno.writeTextFile(join(staging, "rest"), "of the way");
  }, ["image"]);
}

const names = (dir: string) =>
  Array.from(Deno.readDirSync(dir), ({ name }) => name).sort();

Deno.test("a guest asked for five times at once is built once", async () => {
  await using dir = await temporaryDir();
  const built: string[] = [];
  const taken = await Promise.all(
    Array.from({ length: 5 }, () => take(dir.path, built)),
  );
  assertEquals(new Set(taken), new Set([join(dir.path, "kind-1")]));
  assertEquals(built, ["built"]);
  assertEquals(names(taken[0]), ["image"]);
});

Deno.test("a build that failed, or was cut off, leaves nothing", async () => {
  await using dir = await temporaryDir();
  {
    using store = await openStore("kind", dir.path);
    await assertRejects(
      () => store.directory("kind-1", () => Promise.reject(Error("no")), []),
      Error,
      "no",
    );
  }
  assertEquals(names(dir.path), [".kind.lock"]);
  // What SIGKILL leaves.
  await Deno.mkdir(join(dir.path, ".staging-kind-1/half"), { recursive: true });
  const built: string[] = [];
  await take(dir.path, built);
  assertEquals(built, ["built"]);
  assertEquals(names(dir.path), [".kind.lock", "kind-1"]);
});
