import { assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { openGuestStore } from "../../scripts/guest/_store.ts";
import { temporaryDir } from "../support/directory.ts";

/** Gets a guest of one file from a store and logs each build. */
async function take(root: string, built: string[]): Promise<string> {
  using store = await openGuestStore("kind", root);
  return await store.directory("kind-1", async (staging) => {
    built.push(...Array.from(Deno.readDirSync(staging), ({ name }) => name));
    built.push("built");
    await Deno.writeTextFile(join(staging, "image"), "whole");
    await Deno.writeTextFile(join(staging, "rest"), "of the way");
  }, ["image"]);
}

const names = (dir: string) =>
  Array.from(Deno.readDirSync(dir), ({ name }) => name).sort();

Deno.test("openGuestStore() builds a guest once for five simultaneous requests", async () => {
  await using dir = await temporaryDir();
  const built: string[] = [];
  const taken = await Promise.all(
    Array.from({ length: 5 }, () => take(dir.path, built)),
  );
  assertEquals(new Set(taken), new Set([join(dir.path, "kind-1")]));
  assertEquals(built, ["built"]);
  assertEquals(names(taken[0]), ["image"]);
});

Deno.test("openGuestStore() removes the files of a failed or killed build", async () => {
  await using dir = await temporaryDir();
  {
    using store = await openGuestStore("kind", dir.path);
    await assertRejects(
      () => store.directory("kind-1", () => Promise.reject(Error("no")), []),
      Error,
      "no",
    );
  }
  assertEquals(names(dir.path), [".kind.lock"]);
  // What a killed build leaves behind.
  await Deno.mkdir(join(dir.path, ".staging-kind-1/half"), { recursive: true });
  const built: string[] = [];
  await take(dir.path, built);
  assertEquals(built, ["built"]);
  assertEquals(names(dir.path), [".kind.lock", "kind-1"]);
});
