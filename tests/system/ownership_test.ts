import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { whyUnsafe, whyUntrusted } from "../../lib/system/ownership.ts";
import { run } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { runScript } from "../support/script.ts";
import { asRoot } from "../support/users.ts";

const OTHER = 4321;

const test = (name: string, fn: () => Promise<void>) =>
  Deno.test({ name, ignore: Deno.build.os === "windows", fn });

test("a file of this user below a private directory is trusted", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/record.json`;
  await Deno.writeTextFile(path, "{}", { mode: 0o644 });
  assertEquals(await whyUntrusted(path), undefined);
  assertEquals(await whyUntrusted(`${dir.path}/not/there`), undefined);
});

test("a file that others can write is not trusted, nor one they can read where it is secret", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/record.json`;
  await Deno.writeTextFile(path, "{}");
  await Deno.chmod(path, 0o666);
  const why = await whyUntrusted(path);
  assertEquals(why, `${path} can be written by other users (mode 666)`);
  await Deno.chmod(path, 0o644);
  assertEquals(await whyUntrusted(path), undefined);
  const secret = await whyUntrusted(path, { secret: true });
  assertEquals(secret, `${path} can be read by other users (mode 644)`);
  await Deno.chmod(path, 0o600);
  assertEquals(await whyUntrusted(path, { secret: true }), undefined);
});

test("a directory above that others can write spoils what is below, unless it is sticky", async () => {
  await using dir = await temporaryDir();
  const above = `${dir.path}/above`;
  const path = `${above}/below/record.json`;
  await Deno.mkdir(`${above}/below`, { recursive: true });
  await Deno.writeTextFile(path, "{}");
  await Deno.chmod(above, 0o777);
  const why = await whyUntrusted(path);
  assertEquals(why, `${above} can be written by other users (mode 777)`);
  await Deno.chmod(above, 0o1777);
  assertEquals(await whyUntrusted(path), undefined);
  // What is asked for itself is not saved by being sticky.
  assertStringIncludes(await whyUntrusted(above) ?? "", "mode 1777");
});

test("what a symbolic link names is looked at in its place", async () => {
  await using dir = await temporaryDir();
  const open = `${dir.path}/open`;
  await Deno.mkdir(open);
  await Deno.writeTextFile(`${open}/record.json`, "{}");
  await Deno.symlink("open", `${dir.path}/link`);
  const path = `${dir.path}/link/record.json`;
  assertEquals(await whyUntrusted(path), undefined);
  await Deno.chmod(open, 0o777);
  assertStringIncludes(
    await whyUntrusted(path) ?? "",
    `${open} can be written`,
  );
  // So many links as Linux follows, and one more.
  await Deno.symlink(dir.path, `${dir.path}/1`);
  for (let at = 2; at <= 41; at++) {
    await Deno.symlink(`${at - 1}`, `${dir.path}/${at}`);
  }
  assertEquals(await whyUntrusted(`${dir.path}/40`), undefined);
  const many = await whyUntrusted(`${dir.path}/41`);
  assertStringIncludes(many ?? "", "leads in a circle");
  await Deno.symlink("circle", `${dir.path}/circle`);
  const circle = await whyUntrusted(`${dir.path}/circle`);
  assertEquals(circle, `${dir.path}/circle leads in a circle`);
});

test("what the system cannot say of a path is an error, and no trust", async () => {
  const path = `/tmp/${"x".repeat(300)}`;
  await assertRejects(() => whyUntrusted(path), Error, "name too long");
  await assertRejects(() => whyUnsafe(path), Error, "name too long");
});

asRoot(
  "a file, a directory above and a link of another user are not trusted",
  async () => {
    await using dir = await temporaryDir();
    const path = `${dir.path}/theirs/record.json`;
    await Deno.mkdir(`${dir.path}/theirs`);
    await Deno.writeTextFile(path, "{}");
    await Deno.chown(path, OTHER, OTHER);
    assertEquals(await whyUntrusted(path), `${path} belongs to user ${OTHER}`);
    await Deno.chown(path, 0, 0);
    await Deno.chown(`${dir.path}/theirs`, OTHER, OTHER);
    const above = await whyUntrusted(path);
    assertEquals(above, `${dir.path}/theirs belongs to user ${OTHER}`);
    await Deno.chown(`${dir.path}/theirs`, 0, 0);
    const link = `${dir.path}/link`;
    await Deno.symlink(path, link);
    await run("chown", { args: ["-h", `${OTHER}`, link] });
    assertEquals(await whyUntrusted(link), `${link} belongs to user ${OTHER}`);
  },
);

asRoot(
  "a group that is the owner's alone may write, another may not",
  async () => {
    await using dir = await temporaryDir();
    const path = `${dir.path}/record.json`;
    await Deno.writeTextFile(path, "{}");
    await Deno.chown(path, OTHER, OTHER);
    await Deno.chmod(path, 0o664);
    // The temporary directory is private to root.
    await Deno.chmod(dir.path, 0o755);
    assertEquals(await whyUntrusted(path, { uid: OTHER }), undefined);
    await Deno.chown(path, OTHER, OTHER + 1);
    const why = await whyUntrusted(path, { uid: OTHER });
    assertEquals(why, `${path} can be written by other users (mode 664)`);
  },
);

test("without the permission to learn who the user is, nothing is trusted", async () => {
  await using dir = await temporaryDir();
  const script = `
    import { whyUnsafe, whyUntrusted } from "/lib/system/ownership.ts";
    console.log(await whyUntrusted(Deno.args[0]));
  `;
  const said = await runScript(`${dir.path}/ask.ts`, script, {
    args: [dir.path],
    permissions: ["--allow-read"],
  });
  assertStringIncludes(said, "--allow-sys=uid");
});

asRoot(
  "a directory is written only if nobody else owns it or can replace what is in it",
  async () => {
    await using dir = await temporaryDir();
    const own = `${dir.path}/own`;
    await Deno.mkdir(own);
    await Deno.symlink("own", `${dir.path}/link`);
    // What lies above does not count.
    await Deno.chmod(dir.path, 0o777);
    assertEquals(await whyUnsafe(own), undefined);
    assertEquals(await whyUnsafe(`${dir.path}/link`), undefined);
    await Deno.chmod(own, 0o777);
    assertEquals(
      await whyUnsafe(`${dir.path}/link`),
      `${dir.path}/link can be written by other users (mode 777)`,
    );
    await Deno.chmod(own, 0o1777);
    assertEquals(await whyUnsafe(own), undefined);
    await Deno.chown(own, OTHER, OTHER);
    assertEquals(await whyUnsafe(own), `${own} belongs to user ${OTHER}`);
  },
);
