import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { dirname, join } from "@std/path";
import { runProcess } from "../../lib/system/process.ts";
import { findHardLink } from "../../lib/vm/shares.ts";
import { assertSafeExports, resolveShares } from "../../lib/vm/shares.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { changeTimerDelays } from "../support/timers.ts";

/** A temporary directory with export directories and a file writer. */
async function bench() {
  const { path, ...dir } = await temporaryDir();
  const at = (name: string) => join(path, name);
  const write = async (name: string) => {
    await Deno.mkdir(dirname(at(name)), { recursive: true });
    await Deno.writeTextFile(at(name), name);
    return at(name);
  };
  await Deno.mkdir(at("out"));
  await Deno.mkdir(at("more"));
  return { ...dir, path, at, write };
}

/** Defines a test with its own temporary directory. */
function test(
  name: string,
  body: (on: Awaited<ReturnType<typeof bench>>) => Promise<void>,
) {
  Deno.test({
    name,
    ignore: Deno.build.os === "windows",
    async fn() {
      await using on = await bench();
      await body(on);
    },
  });
}

test("assertSafeExports() rejects an export with a hard link to a protected host file", async ({ at, write }) => {
  const files = [
    "manifest/tools.json",
    "cache/demo/0123/image.qcow2",
    "bin/qemu",
    "bin/oras",
    "docker/config.json",
    "work/.toolsmith/machine.json",
    "overlay.qcow2",
    "snapshots/key/memory",
  ];
  for (const name of files) await write(name);
  const [shares, env] = [
    await resolveShares(undefined, [{ path: at("more") }, { path: at("out") }]),
    new Map([
      ["TOOLSMITH_QEMU", at("bin/qemu")],
      ["TOOLSMITH_ORAS", at("bin/oras")],
    ]),
  ];
  const check = () =>
    assertSafeExports(shares, {
      ...{ env, workspace: at("work"), overlay: at("overlay.qcow2") },
      image: at("cache/demo/0123/image.qcow2"),
      hostOnly: [at("manifest/tools.json"), at("cache"), at("docker")],
      snapshots: { dir: at("snapshots") },
    });
  await check();
  await Deno.mkdir(at("out/deep/er"), { recursive: true });
  for (const name of files) {
    const link = at("out/deep/er/link");
    await Deno.link(at(name), link);
    const { message, hint } = await expectFailure("usage", check);
    const file = at(name);
    assertEquals(
      message,
      `Cannot export ${at("out")}: the guest could write to ${file}`,
    );
    assertEquals(hint, `remove the hard link to ${file} from ${at("out")}`);
    await Deno.remove(link);
  }
  await check();
});

test("findHardLink() ignores links outside the exports and unrelated multiply linked files", async ({ at, write }) => {
  const file = await write("host/file");
  await Deno.link(file, at("elsewhere"));
  await write("out/a");
  await Deno.link(at("out/a"), at("out/b"));
  await Deno.symlink(file, at("out/symlink"));
  const dirs = [at("out")];
  assertEquals(await findHardLink(dirs, [at("host"), at("none")]), undefined);
  assertEquals(await findHardLink(dirs, []), undefined);
  await Deno.link(file, at("out/c"));
  const found = { exportDir: at("out"), file };
  assertEquals(await findHardLink(dirs, [at("none"), at("host")]), found);
  assertEquals(await findHardLink(dirs, [file]), found);
});

test("findHardLink() finds links with names that are not UTF-8 and paths beyond PATH_MAX", async ({ at, write }) => {
  const file = await write("host/file");
  const dirs = [at("more"), at("out")];
  const script = `
    cd "$1" && ln ../host/file "$(printf 'a\\377')"
  `;
  const odd = await runProcess("sh", { args: ["-c", script, "sh", at("out")] });
  assertEquals(odd.code, 0, odd.stderr);
  const found = { exportDir: at("out"), file };
  assertEquals(await findHardLink(dirs, [at("host")]), found);
  await Deno.remove(at("out"), { recursive: true });
  await Deno.mkdir(at("out"));
  // Longer than PATH_MAX, built level by level.
  const deep = `
    ln "$1/host/file" "$1/out/link" && cd "$1/out" && name=$(printf %200s | tr ' ' x)
    for _ in $(seq 30); do
      mkdir $name && mv link $name/ && cd -P $name || exit
    done
  `;
  const { code, stderr } = await runProcess("bash", {
    args: ["-c", deep, "sh", at("")],
  });
  assertEquals(code, 0, stderr);
  assertEquals(await findHardLink(dirs, [at("host")]), found);
  await runProcess("rm", { args: ["-rf", at("out")] });
});

test("findHardLink() compares exports with more than 100 files", async ({ at, write }) => {
  const names = Array.from({ length: 250 }, (_, nth) => `host/${nth}`);
  for (const name of names) await Deno.link(await write(name), `${at(name)}l`);
  const dirs = [at("out")];
  assertEquals(await findHardLink(dirs, [at("host")]), undefined);
  for (const name of [names[0], names[99], names[249]]) {
    await Deno.link(at(name), at("out/link"));
    const found = await findHardLink(dirs, names.map(at));
    assertEquals(found, { exportDir: at("out"), file: at(name) });
    await Deno.remove(at("out/link"));
  }
});

test("findHardLink() ends when aborted and throws usage after its timeout", async ({ at, write }) => {
  const signal = AbortSignal.abort(new Error("enough"));
  await assertRejects(
    () => findHardLink([at("out")], [at("out")], { signal }),
    Error,
    "enough",
  );
  await write("bin/find");
  await Deno.writeTextFile(at("bin/find"), "#!/bin/sh\nexec sleep 600\n");
  await Deno.chmod(at("bin/find"), 0o755);
  const before = Deno.env.get("PATH")!;
  Deno.env.set("PATH", `${at("bin")}:${before}`);
  using _timers = changeTimerDelays((ms) => ms === 30_000 ? 100 : ms);
  try {
    const { message, hint } = await expectFailure(
      "usage",
      () => findHardLink([at("out")], [at("out")]),
    );
    assertStringIncludes(message, `Cannot export ${at("out")}: `);
    assertEquals(hint, "export a directory with fewer files");
  } finally {
    Deno.env.set("PATH", before);
  }
});
