import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { dirname, join, resolve } from "@std/path";
import {
  assertSafeExports,
  type HostFiles,
  makeExports,
  parseExport,
  planShares,
} from "../../lib/vm/shares.ts";
import { processEnvironment } from "../../lib/environment.ts";
import { ROOT } from "../../scripts/deno.ts";
import { failure } from "../support/failure.ts";
import { run } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { asRoot } from "../support/users.ts";
import { replace } from "../support/replace.ts";

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
  await failure("file_unreadable", () => plan({ path: join(file, "none") }));
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

Deno.test("a workspace that does not exist is refused", async () => {
  await using dir = await temporaryDir();
  const none = join(dir.path, "none");
  const { message, hint } = await failure(
    "file_unreadable",
    () => planShares(none, []),
  );
  assertEquals(message, `Not a directory: ${none}`);
  assert(hint);
});

Deno.test("an export that does not exist is made once it is found to be safe, with its parents", async () => {
  await using on = await host();
  const { at } = on;
  await Deno.symlink(at("out"), at("link"));
  for (const [name, real] of [["out/a/b", "out/a/b"], ["link/c", "out/c"]]) {
    const shares = await planShares(at("work"), [{ path: at(name) }]);
    assertEquals(shares[1].path, at(real));
    await assertSafeExports(shares, { image: at("work/x"), env: new Map() });
    assertEquals(await makeExports(shares), [at(real)]);
    assertEquals((await Deno.stat(at(real))).isDirectory, true);
    assertEquals(await makeExports(shares), []);
  }
});

Deno.test("an export that does not exist is neither made nor allowed where the host's own files lie, or behind a link that leads nowhere", async () => {
  await using on = await host();
  const { at } = on;
  await on.refuses("work/.toolsmith/new", "work/.toolsmith");
  await on.refuses("snapshots/new", "snapshots", {
    snapshots: { dir: at("snapshots") },
  });
  // Nor one that would make the workspace's own directory.
  await Deno.mkdir(at("bare"));
  const workspace = at("bare");
  await on.refuses("bare/.toolsmith", "bare/.toolsmith", { workspace });
  await Deno.symlink(at("nowhere"), at("dangling"));
  for (const name of ["dangling", "dangling/new"]) {
    await failure(
      "file_unreadable",
      () => planShares(undefined, [{ path: at(name), tag: "out" }]),
    );
  }
  const made = ["bare/.toolsmith", "work/.toolsmith/new", "nowhere"];
  for (const name of made) {
    await assertRejects(() => Deno.lstat(at(name)), Deno.errors.NotFound);
  }
});

/** A host's files in one directory, and what becomes of an export there. */
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
  const usual: HostFiles = { image, workspace: at("work"), env };
  const refused = async (name: string, files: Partial<HostFiles> = {}) => {
    const exports = [{ path: at(name), tag: "out" }];
    const shares = await planShares(undefined, exports);
    const { message } = await failure(
      "usage",
      () => assertSafeExports(shares, { ...usual, ...files }),
    );
    return message;
  };
  return {
    at,
    refused,
    async refuses(name: string, held: string, files?: Partial<HostFiles>) {
      assertEquals(
        await refused(name, files),
        `Cannot export ${at(name)}: the guest could write to ${at(held)}`,
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

Deno.test("assertSafeExports refuses what holds a directory of PATH, wherever the program is", async () => {
  await using on = await host();
  const { at } = on;
  const variables = { TMPDIR: at("tmp"), TOOLSMITH_QEMU: at("bin/qemu") };
  const path = (...dirs: string[]): Partial<HostFiles> => ({
    env: new Map(Object.entries({ ...variables, PATH: dirs.join(":") })),
  });
  await Deno.writeTextFile(at("mf/oras"), "", { mode: 0o755 });
  // The guest would make what is found first, in a directory of its own too.
  await on.refuses("out", "out", path(at("out"), at("mf")));
  await on.refuses("out", "out/none/bin", path(at("out/none/bin"), at("mf")));
  await on.refuses("mf", "mf/oras", path(at("none"), at("mf")));
  // Behind the directory of one program, others are looked up.
  await on.refuses("out", "out", path(at("mf"), at("out")));
  await on.allows("out/deep", path(at("out"), at("mf")));
  // A link on the way could be replaced.
  await Deno.mkdir(at("links"));
  await Deno.symlink(at("mf"), at("links/bin"));
  await on.refuses("links", "links/bin", path(at("links/bin")));
});

Deno.test("assertSafeExports refuses the target of a program's link", async () => {
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

Deno.test("assertSafeExports refuses what QEMU loads: ROMs, modules, firmware", async () => {
  await using on = await host();
  const { at } = on;
  // What is beside QEMU counts from where its links lead.
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

Deno.test("assertSafeExports refuses Toolsmith itself, Deno, and Deno's cache", async () => {
  await using on = await host();
  const { at } = on;
  const lib = join(ROOT, "lib");
  await on.refuses(lib, lib);
  await on.refuses(join(lib, "vm"), lib);
  const deno = await Deno.realPath(Deno.execPath());
  await on.refuses(dirname(deno), deno);
  using _here = replace(Deno, { cwd: () => at("mf") });
  const message = await on.refused(ROOT);
  assertMatch(message, /could write to .*\/(?:tests|mod\.ts|\$deno)/);
  const variables = new Map([["HOME", at("home")]]);
  using _environment = replace(processEnvironment, {
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

Deno.test("assertSafeExports refuses where the next start looks for a manifest, and where snapshots lie", async () => {
  await using on = await host();
  const { at } = on;
  await Deno.mkdir(at("out/deep/er"));
  using _here = replace(Deno, { cwd: () => at("out/deep") });
  await on.refuses("out", "out/deep/.toolsmith");
  await on.refuses("out/deep", "out/deep/.toolsmith");
  await on.allows("out/deep/er");
  // A guest could make one that a workspace has not.
  await on.refuses("mf", "mf/.toolsmith", {
    ...{ image: at("bin/image"), workspace: at("mf") },
  });
  const env = new Map([["HOME", at("home")]]);
  await Deno.mkdir(at("home/.cache/toolsmith"), { recursive: true });
  const machines = "home/.cache/toolsmith/machines";
  await on.refuses("home/.cache/toolsmith", machines, { env });
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

asRoot(
  "assertSafeExports refuses a directory of PATH that is mounted under another name",
  async () => {
    await using dir = await temporaryDir();
    const [bin, other] = ["bin", "other"].map((it) => join(dir.path, it));
    for (const path of [bin, other]) await Deno.mkdir(path);
    const mount = ["--bind", bin, other];
    assertEquals((await run("mount", { args: mount })).code, 0);
    try {
      const shares = [{ path: other, tag: "out", writable: true }];
      const env = new Map([["PATH", bin]]);
      const { message } = await failure(
        "usage",
        () => assertSafeExports(shares, { image: join(dir.path, "i"), env }),
      );
      assertEquals(
        message,
        `Cannot export ${other}: the guest could write to ${bin}`,
      );
    } finally {
      await run("umount", { args: [other] });
    }
  },
);
