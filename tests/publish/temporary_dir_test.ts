import { assertEquals, assertRejects } from "@std/assert";
import { dirname, join } from "@std/path";
import { makeLockedTemporaryDir } from "../../lib/publish/_temporary_dir.ts";
import { tryFileLock } from "../../lib/system/lock.ts";
import { temporaryDir } from "../support/directory.ts";
import { replaceMethod } from "../support/replace_method.ts";

/** Runs code with an empty directory as TMPDIR. */
async function withTmp(
  work: (tmp: string, names: () => string[]) => Promise<void>,
  made: (dir: string) => Promise<void> = async () => {},
) {
  await using dir = await temporaryDir();
  const { makeTempDir } = Deno;
  using _system = replaceMethod(Deno, {
    async makeTempDir(options: Deno.MakeTempOptions) {
      const path = await makeTempDir({ ...options, dir: dir.path });
      await made(path);
      return path;
    },
  });
  const names = () =>
    Array.from(Deno.readDirSync(dir.path), ({ name }) => name).sort();
  await work(dir.path, names);
}

Deno.test("makeLockedTemporaryDir() makes an empty directory, locks it while in use and removes it afterwards", async () => {
  await withTmp(async (tmp, names) => {
    for (const purpose of ["publish", "verify"] as const) {
      const own = await makeLockedTemporaryDir(purpose);
      assertEquals(Array.from(Deno.readDirSync(own.path)), []);
      const [name] = names();
      assertEquals(name.startsWith(`toolsmith-${purpose}-`), true);
      assertEquals(own.path, join(tmp, name, "files"));
      assertEquals(await tryFileLock(join(tmp, name, "lock")), undefined);
      await Deno.writeTextFile(join(own.path, "x"), "x");
      await own[Symbol.asyncDispose]();
      assertEquals(names(), []);
    }
  });
});

Deno.test("makeLockedTemporaryDir() removes abandoned directories and nothing else", async () => {
  await withTmp(async (tmp, names) => {
    const make = async (...path: string[]) => {
      await Deno.mkdir(join(tmp, ...path), { recursive: true });
    };
    const write = (...path: string[]) =>
      Deno.writeTextFile(join(tmp, ...path), "");
    // Killed before locking, while filling, and while cleaning up.
    await make("toolsmith-publish-made");
    await make("toolsmith-verify-filled", "files");
    await write("toolsmith-verify-filled", "lock");
    await write("toolsmith-verify-filled", "files", "image.qcow2");
    await make("toolsmith-publish-cleared");
    await write("toolsmith-publish-cleared", "lock");
    // Removed, and created again by the oras of a killed publish.
    await make("toolsmith-verify-again", "files");
    await write("toolsmith-verify-again", "files", "image.qcow2");
    // Not abandoned: in use, unlocked but not empty, or named differently.
    await make("toolsmith-publish-used", "files");
    using _held = await tryFileLock(
      join(tmp, "toolsmith-publish-used", "lock"),
    );
    await make("toolsmith-publish-kept", "other");
    await make("toolsmith-test-x");
    await make("x-toolsmith-publish-x");
    await write("toolsmith-publish-file");
    const kept = [
      "toolsmith-publish-file",
      "toolsmith-publish-kept",
      "toolsmith-publish-used",
      "toolsmith-test-x",
      "x-toolsmith-publish-x",
    ];
    {
      await using own = await makeLockedTemporaryDir("verify");
      const name = dirname(own.path).slice(tmp.length + 1);
      assertEquals(names(), [...kept, name].sort());
    }
    assertEquals(names(), kept);
    assertEquals(
      Array.from(Deno.readDirSync(
        join(tmp, "toolsmith-publish-used"),
      )).length,
      2,
    );
  });
});

Deno.test("makeLockedTemporaryDir() starts over when another process removes or locks its directory", async () => {
  const thefts: ((dir: string) => Promise<unknown>)[] = [
    (dir) => Deno.remove(dir),
    async (dir) => taken.use((await tryFileLock(join(dir, "lock")))!),
  ];
  using taken = new DisposableStack();
  await withTmp(async (_tmp, names) => {
    await using own = await makeLockedTemporaryDir("publish");
    assertEquals(thefts.length, 0);
    assertEquals(Array.from(Deno.readDirSync(own.path)), []);
    // The other process's directory, and this one.
    assertEquals(names().length, 2);
  }, async (dir) => {
    await thefts.shift()?.(dir);
  });
});

Deno.test("makeLockedTemporaryDir() removes its directory and lock when it cannot be filled", async () => {
  const dirs: string[] = [];
  await withTmp(async () => {
    await assertRejects(
      () => makeLockedTemporaryDir("publish"),
      Deno.errors.AlreadyExists,
    );
    using free = await tryFileLock(join(dirs[0], "lock"));
    assertEquals(free !== undefined, true);
  }, async (dir) => {
    dirs.push(dir);
    await Deno.writeTextFile(join(dir, "files"), "");
  });
});

Deno.test("makeLockedTemporaryDir() removes the lock of an abandoned directory last", async () => {
  const { remove } = Deno;
  const removed: string[] = [];
  await withTmp(async (tmp) => {
    const own = await makeLockedTemporaryDir("publish");
    await Deno.writeTextFile(join(own.path, "x"), "x");
    using _system = replaceMethod(Deno, {
      remove(path: string, options: Deno.RemoveOptions) {
        const there = Array.from(Deno.readDirSync(dirname(own.path)));
        removed.push(path.slice(tmp.length), `${there.length} there`);
        return remove(path, options);
      },
    });
    await own[Symbol.asyncDispose]();
    const name = dirname(own.path).slice(tmp.length);
    assertEquals(removed, [`${name}/files`, "2 there", name, "1 there"]);
  });
});

Deno.test("makeLockedTemporaryDir() holds the lock of an abandoned directory until the directory is removed", async () => {
  const { remove } = Deno;
  await withTmp(async (tmp, names) => {
    const left = join(tmp, "toolsmith-publish-left");
    const lock = join(left, "lock");
    await Deno.mkdir(join(left, "files"), { recursive: true });
    await Deno.writeTextFile(lock, "");
    let removals = 0;
    using undo = new DisposableStack();
    undo.use(replaceMethod(Deno, {
      async remove(path: string, options: Deno.RemoveOptions) {
        removals++;
        // Its owner may have been about to lock it.
        using owner = await tryFileLock(lock);
        assertEquals(owner, undefined);
        await remove(path, options);
      },
    }));
    await using own = await makeLockedTemporaryDir("publish");
    undo.dispose();
    assertEquals(removals, 2);
    assertEquals(names(), [dirname(own.path).slice(tmp.length + 1)]);
  });
});

Deno.test("makeLockedTemporaryDir() removes its directory although another process locks it meanwhile", async () => {
  const { remove } = Deno;
  await withTmp(async (_tmp, names) => {
    const own = await makeLockedTemporaryDir("publish");
    const dir = dirname(own.path);
    let attempts = 0;
    using _system = replaceMethod(Deno, {
      async remove(path: string, options: Deno.RemoveOptions) {
        if (path !== dir || ++attempts > 1) return await remove(path, options);
        // Between the removals of the lock and of the directory.
        await remove(join(dir, "lock"));
        using _other = await tryFileLock(join(dir, "lock"));
        await remove(dir);
      },
    });
    await own[Symbol.asyncDispose]();
    assertEquals([attempts, names()], [2, []]);
  });
});
