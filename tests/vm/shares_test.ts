import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  assertSafeExports,
  type HostFiles,
  parseExport,
  planShares,
} from "../../lib/vm/shares.ts";
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

/** A host's files in one directory, and what becomes of an export there. */
async function host() {
  const dir = await temporaryDir();
  const at = (name: string) => join(dir.path, name);
  const dirs = ["work/.toolsmith/cache/a", "out/deep", "tmp", "mf", "bin"];
  for (const name of [...dirs, "snapshots"]) {
    await Deno.mkdir(at(name), { recursive: true });
  }
  await Deno.writeTextFile(at("bin/qemu"), "", { mode: 0o755 });
  await Deno.writeTextFile(at("bin/oras"), "", { mode: 0o755 });
  const env = new Map([
    ["TMPDIR", at("tmp")],
    ["TOOLSMITH_QEMU", at("bin/qemu")],
    ["TOOLSMITH_ORAS", at("bin/oras")],
  ]);
  const image = at("work/.toolsmith/cache/a/image.qcow2");
  const usual: HostFiles = { image, workspace: at("work"), env };
  return {
    at,
    async refuses(name: string, held: string, files: Partial<HostFiles> = {}) {
      const path = at(name);
      const shares = await planShares(undefined, [{ path, tag: "out" }]);
      const { message } = await failure(
        "usage",
        () => assertSafeExports(shares, { ...usual, ...files }),
      );
      assertEquals(
        message,
        `An export would let the guest write to ${at(held)}: ${path}`,
      );
    },
    async allows(name: string, files: Partial<HostFiles> = {}) {
      const exports = [{ path: at(name), tag: "out" }];
      const shares = await planShares(undefined, exports);
      await assertSafeExports(shares, { ...usual, ...files });
    },
    [Symbol.asyncDispose]: () => dir[Symbol.asyncDispose](),
  };
}

Deno.test("an export for results alone is fine, in a temporary directory too", async () => {
  await using at = await host();
  await Deno.mkdir(at.at("tmp/results"));
  await Deno.mkdir(at.at("work/.toolsmithy"));
  for (const name of ["out", "out/deep", "tmp/results", "work/.toolsmithy"]) {
    await at.allows(name);
  }
});

Deno.test("an export that holds a file of the host, or lies in its directory, is refused", async () => {
  await using on = await host();
  const { at } = on;
  const image = "work/.toolsmith/cache/a/image.qcow2";
  await on.refuses("work/.toolsmith/cache", image);
  await on.refuses("work/.toolsmith", image);
  await on.refuses("bin", "bin/qemu");
  await on.refuses("bin", "bin/oras", {
    env: new Map([["TOOLSMITH_ORAS", at("bin/oras")], ["PATH", "/none"]]),
  });
  const manifest = { hostOnly: [at("mf/tools.json")] };
  await on.refuses("mf", "mf/tools.json", manifest);
  const overlay = { overlay: at("out/new.qcow2") };
  await on.refuses("out", "out/new.qcow2", overlay);
  const snapshots = { snapshots: { dir: at("snapshots") } };
  await on.refuses("snapshots", "snapshots", snapshots);
  await Deno.mkdir(at("snapshots/deep"));
  await on.refuses("snapshots/deep", "snapshots", snapshots);
  // Other machines have their sockets there.
  await on.refuses("tmp", "tmp");
});

Deno.test("a link that leads to a file of the host is not for a guest either", async () => {
  await using on = await host();
  const { at } = on;
  await Deno.mkdir(at("linked"));
  await Deno.symlink("../work/.toolsmith", at("linked/.toolsmith"));
  const linked = { image: at("mf/image.qcow2"), workspace: at("linked") };
  // Both the link, which the guest could replace, and what it leads to.
  await on.refuses("linked", "linked/.toolsmith", linked);
  await on.refuses("work", "work/.toolsmith", linked);
  await Deno.symlink(at("mf"), at("out/link"));
  const manifest = { hostOnly: [at("out/link/tools.json")] };
  await on.refuses("out", "out/link", manifest);
  await on.refuses("mf", "mf/tools.json", manifest);
});

Deno.test("a machine has room for seven directories, and says what is wrong with one", async () => {
  await using dir = await temporaryDir();
  const { path } = dir;
  const exports = (count: number) =>
    Array.from({ length: count }, (_, n) => ({ path, tag: `t${n}` }));
  assertEquals((await planShares(undefined, exports(7))).length, 7);
  assertEquals((await planShares(path, exports(6))).length, 7);
  const many = await failure("usage", () => planShares(path, exports(7)));
  assertEquals(many.message, "Too many exports: 7");
  const said = async (tags: string[], code: "usage" = "usage") => {
    const asked = tags.map((tag) => ({ path, tag }));
    const { message, hint } = await failure(
      code,
      () => planShares(undefined, asked),
    );
    return [message, hint];
  };
  const hint = `--export ${path}:TAG`;
  assertEquals(await said(["a b"]), [
    ...[
      "Not a usable tag: a b",
      `give one of letters, digits, - and _: ${hint}`,
    ],
  ]);
  assertEquals(await said(["a", "a"]), [
    ...["Two directories have the tag a", `give each its own: ${hint}`],
  ]);
  const none = join(path, "none");
  const gone = await failure("file_unreadable", () => planShares(none, []));
  assertEquals(gone.message, `Not a directory: ${none}`);
  // A name of its own has what is given without one, by its real path.
  await Deno.mkdir(join(path, "results"));
  await Deno.symlink("results", join(path, "link"));
  const [named] = await planShares(undefined, [{ path: join(path, "link") }]);
  assertEquals(named, {
    ...{ path: join(path, "results"), tag: "results", writable: true },
  });
  assertEquals(parseExport(":tag"), { path: ":tag" });
  assertEquals(parseExport("a:"), { path: "a:" });
});

Deno.test("links in a circle hold nothing up, and a workspace is nobody's to write", async () => {
  await using on = await host();
  const { at } = on;
  await Deno.symlink(at("out/b"), at("out/a"));
  await Deno.symlink(at("out/a"), at("out/b"));
  await on.refuses("out", "out/a", { hostOnly: [at("out/a/file")] });
  await on.allows("bin/../out/deep", { hostOnly: [at("mf")] });
  const shares = await planShares(at("work"), []);
  await assertSafeExports(shares, { image: at("work/a"), env: new Map() });
  // One that is there for all of them, whatever else is exported.
  const both = await planShares(undefined, [
    { path: at("out"), tag: "a" },
    { path: at("mf"), tag: "b" },
  ]);
  const files = { image: at("mf/image"), env: new Map([["PATH", "/none"]]) };
  const error = await failure("usage", () => assertSafeExports(both, files));
  assertEquals(error.hint, "export a directory that holds nothing but results");
});
