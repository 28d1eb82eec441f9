import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { parseExport, planShares } from "../../lib/vm/shares.ts";
import { failure } from "../support/failure.ts";
import { temporaryDir } from "../support/directory.ts";

Deno.test("an export is a directory, and a tag where one is given", () => {
  assertEquals(parseExport("out"), { path: "out" });
  assertEquals(parseExport("out:here"), { path: "out", tag: "here" });
  assertEquals(parseExport("a:b/c"), { path: "a:b/c" });
  assertEquals(parseExport("a:b/c:d"), { path: "a:b/c", tag: "d" });
});

Deno.test("exports that cannot be mounted are refused before a boot", async () => {
  await using dir = await temporaryDir();
  const { path } = dir;
  const file = join(path, "file");
  await Deno.writeTextFile(file, "");
  await Deno.mkdir(join(path, "with space"));
  const plan = (...exports: { path: string; tag?: string }[]) =>
    planShares(path, exports);
  await failure("file_unreadable", () => plan({ path: file }));
  await failure("file_unreadable", () => plan({ path: join(path, "none") }));
  await failure("usage", () => plan({ path, tag: "work" }));
  await failure("usage", () => plan({ path, tag: "a" }, { path, tag: "a" }));
  await failure("usage", () => plan({ path, tag: "../up" }));
  const error = await failure(
    "usage",
    () => plan({ path: join(path, "with space") }),
  );
  assert(error.hint?.includes(":TAG"));
  const many = Array.from({ length: 9 }, (_, n) => ({ path, tag: `t${n}` }));
  await failure("usage", () => plan(...many));
  assertEquals(await plan({ path, tag: "out" }), [
    { path, tag: "work", writable: false },
    { path, tag: "out", writable: true },
  ]);
});
