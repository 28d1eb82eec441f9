import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import {
  unsafeDirReason,
  untrustedReason,
} from "../../lib/system/ownership.ts";
import { runProcess } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { runScript } from "../support/script.ts";
import { asRoot } from "../support/users.ts";

const OTHER = 4321;

const test = (name: string, fn: () => Promise<void>) =>
  Deno.test({ name, ignore: Deno.build.os === "windows", fn });

test("untrustedReason() trusts a file of this user below a private directory", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/record.json`;
  await Deno.writeTextFile(path, "{}", { mode: 0o644 });
  assertEquals(await untrustedReason(path), undefined);
  assertEquals(await untrustedReason(`${dir.path}/not/there`), undefined);
});

test("untrustedReason() rejects a file that others can write, and with requirePrivate one that others can read", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/record.json`;
  await Deno.writeTextFile(path, "{}");
  await Deno.chmod(path, 0o666);
  const why = await untrustedReason(path);
  assertEquals(why, `${path} can be written by other users (mode 666)`);
  await Deno.chmod(path, 0o644);
  assertEquals(await untrustedReason(path), undefined);
  const secret = await untrustedReason(path, { requirePrivate: true });
  assertEquals(secret, `${path} can be read by other users (mode 644)`);
  await Deno.chmod(path, 0o600);
  assertEquals(
    await untrustedReason(path, { requirePrivate: true }),
    undefined,
  );
});

test("untrustedReason() rejects a path below a directory that others can write, unless the directory is sticky", async () => {
  await using dir = await temporaryDir();
  const above = `${dir.path}/above`;
  const path = `${above}/below/record.json`;
  await Deno.mkdir(`${above}/below`, { recursive: true });
  await Deno.writeTextFile(path, "{}");
  await Deno.chmod(above, 0o777);
  const why = await untrustedReason(path);
  assertEquals(why, `${above} can be written by other users (mode 777)`);
  await Deno.chmod(above, 0o1777);
  assertEquals(await untrustedReason(path), undefined);
  // The checked path itself is untrusted, even if sticky.
  assertStringIncludes(await untrustedReason(above) ?? "", "mode 1777");
});

test("untrustedReason() checks the target of a symbolic link", async () => {
  await using dir = await temporaryDir();
  const open = `${dir.path}/open`;
  await Deno.mkdir(open);
  await Deno.writeTextFile(`${open}/record.json`, "{}");
  await Deno.symlink("open", `${dir.path}/link`);
  const path = `${dir.path}/link/record.json`;
  assertEquals(await untrustedReason(path), undefined);
  await Deno.chmod(open, 0o777);
  assertStringIncludes(
    await untrustedReason(path) ?? "",
    `${open} can be written`,
  );
  // As many links as Linux follows, and one more.
  await Deno.symlink(dir.path, `${dir.path}/1`);
  for (let at = 2; at <= 41; at++) {
    await Deno.symlink(`${at - 1}`, `${dir.path}/${at}`);
  }
  assertEquals(await untrustedReason(`${dir.path}/40`), undefined);
  const many = await untrustedReason(`${dir.path}/41`);
  assertStringIncludes(many ?? "", "has too many levels of symbolic links");
  await Deno.symlink("circle", `${dir.path}/circle`);
  const circle = await untrustedReason(`${dir.path}/circle`);
  assertEquals(
    circle,
    `${dir.path}/circle has too many levels of symbolic links`,
  );
});

test("untrustedReason() and unsafeDirReason() throw when the path cannot be checked", async () => {
  const path = `/tmp/${"x".repeat(300)}`;
  await assertRejects(() => untrustedReason(path), Error, "name too long");
  await assertRejects(() => unsafeDirReason(path), Error, "name too long");
});

asRoot(
  "untrustedReason() rejects a file, a parent directory and a link of another user",
  async () => {
    await using dir = await temporaryDir();
    const path = `${dir.path}/theirs/record.json`;
    await Deno.mkdir(`${dir.path}/theirs`);
    await Deno.writeTextFile(path, "{}");
    await Deno.chown(path, OTHER, OTHER);
    assertEquals(
      await untrustedReason(path),
      `${path} belongs to user ${OTHER}`,
    );
    await Deno.chown(path, 0, 0);
    await Deno.chown(`${dir.path}/theirs`, OTHER, OTHER);
    const above = await untrustedReason(path);
    assertEquals(above, `${dir.path}/theirs belongs to user ${OTHER}`);
    await Deno.chown(`${dir.path}/theirs`, 0, 0);
    const link = `${dir.path}/link`;
    await Deno.symlink(path, link);
    await runProcess("chown", { args: ["-h", `${OTHER}`, link] });
    assertEquals(
      await untrustedReason(link),
      `${link} belongs to user ${OTHER}`,
    );
  },
);

asRoot(
  "untrustedReason() accepts group write access only for the owner's private group",
  async () => {
    await using dir = await temporaryDir();
    const path = `${dir.path}/record.json`;
    await Deno.writeTextFile(path, "{}");
    await Deno.chown(path, 0, 0);
    await Deno.chmod(path, 0o664);
    assertEquals(await untrustedReason(path), undefined);
    await Deno.chown(path, 0, OTHER);
    const why = await untrustedReason(path);
    assertEquals(why, `${path} can be written by other users (mode 664)`);
  },
);

test("untrustedReason() rejects every path without --allow-sys=uid", async () => {
  await using dir = await temporaryDir();
  const script = `
    import { untrustedReason } from "/lib/system/ownership.ts";
    console.log(await untrustedReason(Deno.args[0]));
  `;
  const said = await runScript(`${dir.path}/ask.ts`, script, {
    args: [dir.path],
    permissions: ["--allow-read"],
  });
  assertStringIncludes(said, "--allow-sys=uid");
});

asRoot(
  "unsafeDirReason() rejects a directory that another user owns or can change",
  async () => {
    await using dir = await temporaryDir();
    const own = `${dir.path}/own`;
    await Deno.mkdir(own);
    await Deno.symlink("own", `${dir.path}/link`);
    // Parent directories are not checked.
    await Deno.chmod(dir.path, 0o777);
    assertEquals(await unsafeDirReason(own), undefined);
    assertEquals(await unsafeDirReason(`${dir.path}/link`), undefined);
    await Deno.chmod(own, 0o777);
    assertEquals(
      await unsafeDirReason(`${dir.path}/link`),
      `${dir.path}/link can be written by other users (mode 777)`,
    );
    await Deno.chmod(own, 0o1777);
    assertEquals(await unsafeDirReason(own), undefined);
    await Deno.chown(own, OTHER, OTHER);
    assertEquals(await unsafeDirReason(own), `${own} belongs to user ${OTHER}`);
  },
);
