import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { dirname, join, resolve } from "@std/path";
import {
  assertSafeExports,
  makeExportDirs,
  parseExport,
  resolveShares,
} from "../../lib/vm/shares.ts";
import type { ProtectedPathsOptions } from "../../lib/vm/_protected_paths.ts";
import { processEnvironment } from "../../lib/environment.ts";
import { PROJECT_ROOT } from "../../scripts/deno.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { runProcess } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { asRoot } from "../support/users.ts";
import { replaceMethod } from "../support/replace_method.ts";

Deno.test("parseExport() splits DIR:tag and accepts DIR alone", () => {
  assertEquals(parseExport("out"), { path: "out" });
  assertEquals(parseExport("out:here"), { path: "out", tag: "here" });
  assertEquals(parseExport("a:b/c"), { path: "a:b/c" });
  assertEquals(parseExport("a:b/c:d"), { path: "a:b/c", tag: "d" });
});

Deno.test("resolveShares() rejects files, invalid or duplicate tags and too many exports", async () => {
  await using dir = await temporaryDir();
  const { path } = dir;
  const file = join(path, "file");
  await Deno.writeTextFile(file, "");
  await Deno.mkdir(join(path, "with space"));
  const plan = (...exports: { path: string; tag?: string }[]) =>
    resolveShares(path, exports);
  await expectFailure("file_unreadable", () => plan({ path: file }));
  await expectFailure(
    "file_unreadable",
    () => plan({ path: join(file, "none") }),
  );
  await expectFailure("usage", () => plan({ path, tag: "work" }));
  await expectFailure(
    "usage",
    () => plan({ path, tag: "a" }, { path, tag: "a" }),
  );
  await expectFailure("usage", () => plan({ path, tag: "../up" }));
  const error = await expectFailure(
    "usage",
    () => plan({ path: join(path, "with space") }),
  );
  assert(error.hint?.includes(":TAG"));
  const many = Array.from({ length: 9 }, (_, n) => ({ path, tag: `t${n}` }));
  await expectFailure("usage", () => plan(...many));
  assertEquals(await plan({ path, tag: "out" }), [
    { path, tag: "work", writable: false },
    { path, tag: "out", writable: true },
  ]);
});

Deno.test("resolveShares() rejects a workspace that does not exist", async () => {
  await using dir = await temporaryDir();
  const none = join(dir.path, "none");
  const { message, hint } = await expectFailure(
    "file_unreadable",
    () => resolveShares(none, []),
  );
  assertEquals(message, `Not a directory: ${none}`);
  assert(hint);
});

Deno.test("makeExportDirs() creates a missing export directory with its parents", async () => {
  await using on = await host();
  const { at } = on;
  await Deno.symlink(at("out"), at("link"));
  for (const [name, real] of [["out/a/b", "out/a/b"], ["link/c", "out/c"]]) {
    const shares = await resolveShares(at("work"), [{ path: at(name) }]);
    assertEquals(shares[1].path, at(real));
    await assertSafeExports(shares, { image: at("work/x"), env: new Map() });
    assertEquals(await makeExportDirs(shares), [at(real)]);
    assertEquals((await Deno.stat(at(real))).isDirectory, true);
    assertEquals(await makeExportDirs(shares), []);
  }
});

Deno.test("assertSafeExports() rejects a missing export among protected files or behind a dangling symlink", async () => {
  await using on = await host();
  const { at } = on;
  await on.refuses("work/.toolsmith/new", "work/.toolsmith");
  await on.refuses("snapshots/new", "snapshots", {
    snapshots: { dir: at("snapshots") },
  });
  // The workspace's own `.toolsmith/` must not be created by an export.
  await Deno.mkdir(at("bare"));
  const workspace = at("bare");
  await on.refuses("bare/.toolsmith", "bare/.toolsmith", { workspace });
  await Deno.symlink(at("nowhere"), at("dangling"));
  for (const name of ["dangling", "dangling/new"]) {
    await expectFailure(
      "file_unreadable",
      () => resolveShares(undefined, [{ path: at(name), tag: "out" }]),
    );
  }
  const made = ["bare/.toolsmith", "work/.toolsmith/new", "nowhere"];
  for (const name of made) {
    await assertRejects(() => Deno.lstat(at(name)), Deno.errors.NotFound);
  }
});

/** A host with protected files in one directory, and checks of exports there. */
async function host() {
  const dir = await temporaryDir();
  const at = (name: string) => resolve(dir.path, name);
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
  const usual: ProtectedPathsOptions = { image, workspace: at("work"), env };
  const refused = async (
    name: string,
    files: Partial<ProtectedPathsOptions> = {},
  ) => {
    const exports = [{ path: at(name), tag: "out" }];
    const shares = await resolveShares(undefined, exports);
    const { message } = await expectFailure(
      "usage",
      () => assertSafeExports(shares, { ...usual, ...files }),
    );
    return message;
  };
  return {
    at,
    refused,
    async refuses(
      name: string,
      held: string,
      files?: Partial<ProtectedPathsOptions>,
    ) {
      assertEquals(
        await refused(name, files),
        `Cannot export ${at(name)}: the guest could write to ${at(held)}`,
      );
    },
    async allows(name: string, files: Partial<ProtectedPathsOptions> = {}) {
      const exports = [{ path: at(name), tag: "out" }];
      const shares = await resolveShares(undefined, exports);
      await assertSafeExports(shares, { ...usual, ...files });
    },
    [Symbol.asyncDispose]: () => dir[Symbol.asyncDispose](),
  };
}

Deno.test("assertSafeExports() accepts a directory that holds only results", async () => {
  await using at = await host();
  await Deno.mkdir(at.at("tmp/results"));
  await Deno.mkdir(at.at("work/.toolsmithy"));
  for (const name of ["out", "out/deep", "tmp/results", "work/.toolsmithy"]) {
    await at.allows(name);
  }
});

Deno.test("assertSafeExports() rejects an export that contains a protected file or lies in a protected directory", async () => {
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
  // TMPDIR holds the sockets of other VMs.
  await on.refuses("tmp", "tmp");
});

Deno.test("assertSafeExports() rejects an export with a symlink to a protected file", async () => {
  await using on = await host();
  const { at } = on;
  await Deno.mkdir(at("linked"));
  await Deno.symlink("../work/.toolsmith", at("linked/.toolsmith"));
  const linked = { image: at("mf/image.qcow2"), workspace: at("linked") };
  // The link itself, which the guest could replace, and its target.
  await on.refuses("linked", "linked/.toolsmith", linked);
  await on.refuses("work", "work/.toolsmith", linked);
  await Deno.symlink(at("mf"), at("out/link"));
  const manifest = { hostOnly: [at("out/link/tools.json")] };
  await on.refuses("out", "out/link", manifest);
  await on.refuses("mf", "mf/tools.json", manifest);
});

Deno.test("assertSafeExports() rejects an export that contains a directory of PATH", async () => {
  await using on = await host();
  const { at } = on;
  const variables = { TMPDIR: at("tmp"), TOOLSMITH_QEMU: at("bin/qemu") };
  const path = (...dirs: string[]): Partial<ProtectedPathsOptions> => ({
    env: new Map(Object.entries({ ...variables, PATH: dirs.join(":") })),
  });
  await Deno.writeTextFile(at("mf/oras"), "", { mode: 0o755 });
  // The guest could create a program that is found first.
  await on.refuses("out", "out", path(at("out"), at("mf")));
  await on.refuses("out", "out/none/bin", path(at("out/none/bin"), at("mf")));
  await on.refuses("mf", "mf/oras", path(at("none"), at("mf")));
  // Other programs are looked up in later directories.
  await on.refuses("out", "out", path(at("mf"), at("out")));
  await on.allows("out/deep", path(at("out"), at("mf")));
  // The guest could replace a symlink on the way.
  await Deno.mkdir(at("links"));
  await Deno.symlink(at("mf"), at("links/bin"));
  await on.refuses("links", "links/bin", path(at("links/bin")));
});

Deno.test("assertSafeExports() rejects an export with the target of a program's symlink", async () => {
  await using on = await host();
  const { at } = on;
  for (const name of ["oras", "deno", "toolsmith", "sh", "find"]) {
    await Deno.mkdir(at(`real-${name}`));
    await Deno.writeTextFile(at(`real-${name}/it`), "", { mode: 0o755 });
    await Deno.symlink(at(`real-${name}/it`), at(`mf/${name}`));
    await on.refuses(`real-${name}`, `real-${name}/it`, {
      env: new Map([["PATH", at("mf")]]),
    });
  }
});

Deno.test("assertSafeExports() rejects an export with QEMU's ROMs, modules or firmware", async () => {
  await using on = await host();
  const { at } = on;
  // Relative to the real path of QEMU.
  await Deno.mkdir(at("qemu/bin"), { recursive: true });
  await Deno.writeTextFile(at("qemu/bin/qemu"), "", { mode: 0o755 });
  await Deno.symlink(at("qemu/bin/qemu"), at("mf/qemu"));
  const env = new Map([
    ["TOOLSMITH_QEMU", at("mf/qemu")],
    ["HOME", at("home")],
  ]);
  for (const name of ["share/qemu", "lib/qemu", "lib64/qemu"]) {
    await Deno.mkdir(at(`qemu/${name}/deep`), { recursive: true });
    await on.refuses(`qemu/${name}`, `qemu/${name}`, { env });
    await on.refuses(`qemu/${name}/deep`, `qemu/${name}`, { env });
    await on.refuses(dirname(`qemu/${name}`), `qemu/${name}`, { env });
  }
  await Deno.mkdir(at("home/.config"), { recursive: true });
  await on.refuses("home/.config", "home/.config/qemu/firmware", { env });
  env.set("XDG_CONFIG_HOME", at("out/config"));
  await on.refuses("out", "out/config/qemu/firmware", { env });
  await on.allows("home/.config", { env });
});

Deno.test("assertSafeExports() rejects an export with Toolsmith, Deno or Deno's cache", async () => {
  await using on = await host();
  const { at } = on;
  const lib = join(PROJECT_ROOT, "lib");
  await on.refuses(lib, lib);
  await on.refuses(join(lib, "vm"), lib);
  const deno = await Deno.realPath(Deno.execPath());
  await on.refuses(dirname(deno), deno);
  using _here = replaceMethod(Deno, { cwd: () => at("mf") });
  const message = await on.refused(PROJECT_ROOT);
  assertMatch(message, /could write to .*\/(?:tests|mod\.ts|\$deno)/);
  const variables = new Map([["HOME", at("home")]]);
  using _environment = replaceMethod(processEnvironment, {
    get: (name: string) => variables.get(name),
  });
  const cache = Deno.build.os === "darwin" ? "Library/Caches" : ".cache";
  await Deno.mkdir(at(`home/${cache}/deno/npm`), { recursive: true });
  await on.refuses(`home/${cache}`, `home/${cache}/deno`);
  await on.refuses(`home/${cache}/deno/npm`, `home/${cache}/deno`);
  variables.set("DENO_DIR", at("out/deno"));
  await on.refuses("out", "out/deno");
  await on.allows(`home/${cache}/deno/npm`);
});

Deno.test("assertSafeExports() rejects an export with the manifest's search path or snapshots", async () => {
  await using on = await host();
  const { at } = on;
  await Deno.mkdir(at("out/deep/er"));
  using _here = replaceMethod(Deno, { cwd: () => at("out/deep") });
  await on.refuses("out", "out/deep/.toolsmith");
  await on.refuses("out/deep", "out/deep/.toolsmith");
  await on.allows("out/deep/er");
  // A guest could create a missing `.toolsmith/`.
  await on.refuses("mf", "mf/.toolsmith", {
    ...{ image: at("bin/image"), workspace: at("mf") },
  });
  const env = new Map([["HOME", at("home")]]);
  await Deno.mkdir(at("home/.cache/toolsmith"), { recursive: true });
  const machines = "home/.cache/toolsmith/machines";
  await on.refuses("home/.cache/toolsmith", machines, { env });
});

Deno.test("resolveShares() accepts seven directories and reports an invalid one with a hint", async () => {
  await using dir = await temporaryDir();
  const { path } = dir;
  const exports = (count: number) =>
    Array.from({ length: count }, (_, n) => ({ path, tag: `t${n}` }));
  assertEquals((await resolveShares(undefined, exports(7))).length, 7);
  assertEquals((await resolveShares(path, exports(6))).length, 7);
  const many = await expectFailure(
    "usage",
    () => resolveShares(path, exports(7)),
  );
  assertEquals(many.message, "Too many exports: 7, at most 6");
  const said = async (tags: string[], code: "usage" = "usage") => {
    const asked = tags.map((tag) => ({ path, tag }));
    const { message, hint } = await expectFailure(
      code,
      () => resolveShares(undefined, asked),
    );
    return [message, hint];
  };
  const hint = `--export ${path}:TAG`;
  assertEquals(await said(["a b"]), [
    ...[
      "Invalid mount tag: a b",
      `use up to 31 letters, digits, - or _: ${hint}`,
    ],
  ]);
  assertEquals(await said(["a", "a"]), [
    ...[
      "Two directories have the same tag: a",
      `give each directory its own tag: ${hint}`,
    ],
  ]);
  const none = join(path, "none");
  const gone = await expectFailure(
    "file_unreadable",
    () => resolveShares(none, []),
  );
  assertEquals(gone.message, `Not a directory: ${none}`);
  // The default tag is the name of the real path.
  await Deno.mkdir(join(path, "results"));
  await Deno.symlink("results", join(path, "link"));
  const [named] = await resolveShares(undefined, [{
    path: join(path, "link"),
  }]);
  assertEquals(named, {
    ...{ path: join(path, "results"), tag: "results", writable: true },
  });
  assertEquals(parseExport(":tag"), { path: ":tag" });
  assertEquals(parseExport("a:"), { path: "a:" });
});

Deno.test("assertSafeExports() terminates on circular symlinks and does not check a read-only workspace", async () => {
  await using on = await host();
  const { at } = on;
  await Deno.symlink(at("out/b"), at("out/a"));
  await Deno.symlink(at("out/a"), at("out/b"));
  await on.refuses("out", "out/a", { hostOnly: [at("out/a/file")] });
  await on.allows("bin/../out/deep", { hostOnly: [at("mf")] });
  const shares = await resolveShares(at("work"), []);
  await assertSafeExports(shares, { image: at("work/a"), env: new Map() });
  // The error is the same with several exports.
  const both = await resolveShares(undefined, [
    { path: at("out"), tag: "a" },
    { path: at("mf"), tag: "b" },
  ]);
  const files = { image: at("mf/image"), env: new Map([["PATH", "/none"]]) };
  const error = await expectFailure(
    "usage",
    () => assertSafeExports(both, files),
  );
  assertEquals(error.hint, "export a directory that contains only results");
});

asRoot(
  "assertSafeExports() rejects a bind mount of a directory of PATH",
  async () => {
    await using dir = await temporaryDir();
    const [bin, other] = ["bin", "other"].map((it) => join(dir.path, it));
    for (const path of [bin, other]) await Deno.mkdir(path);
    const mount = ["--bind", bin, other];
    assertEquals((await runProcess("mount", { args: mount })).code, 0);
    try {
      const shares = [{ path: other, tag: "out", writable: true }];
      const env = new Map([["PATH", bin]]);
      const { message } = await expectFailure(
        "usage",
        () => assertSafeExports(shares, { image: join(dir.path, "i"), env }),
      );
      assertEquals(
        message,
        `Cannot export ${other}: the guest could write to ${bin}`,
      );
    } finally {
      await runProcess("umount", { args: [other] });
    }
  },
);
