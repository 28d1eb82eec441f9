import { assert, assertEquals, assertRejects } from "@std/assert";
import { lock, tryLock } from "../../lib/system/lock.ts";
import { run } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { runScript, startScript } from "../support/script.ts";

const HOLD = `
  import { lock } from "/lib/system/lock.ts";
  using _held = await lock(Deno.args[0]);
  console.log("held");
  await new Promise((done) => setTimeout(done, 600_000));
`;

Deno.test("a lock is had once at a time, and again when it is released", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/lock`;
  {
    using _held = await lock(path);
    assertEquals(await tryLock(path), undefined);
  }
  using again = await tryLock(path);
  assert(again);
});

Deno.test("locks of two files do not touch", async () => {
  await using dir = await temporaryDir();
  using _one = await lock(`${dir.path}/one`);
  using other = await tryLock(`${dir.path}/other`);
  assert(other);
});

Deno.test("who waits is notified once, and gets the lock when it is released", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/lock`;
  let notified = 0;
  const first = await lock(path);
  const waiting = Promise.withResolvers<void>();
  const second = lock(path, {
    onWait() {
      notified++;
      waiting.resolve();
    },
  });
  await waiting.promise;
  // It asks a few times more.
  await new Promise((done) => setTimeout(done, 350));
  first[Symbol.dispose]();
  (await second)[Symbol.dispose]();
  assertEquals(notified, 1);
});

Deno.test("a free lock is had without a word", async () => {
  await using dir = await temporaryDir();
  using _held = await lock(`${dir.path}/lock`, {
    onWait() {
      throw new Error("nobody has it");
    },
  });
});

Deno.test("an abort ends the wait, and leaves nothing open", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/lock`;
  using _held = await lock(path);
  const abort = new AbortController();
  await assertRejects(
    () =>
      lock(path, {
        signal: abort.signal,
        onWait: () => abort.abort(new Error("enough")),
      }),
    Error,
    "enough",
  );
});

Deno.test("an abort that came before takes no lock, also where it is free", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/lock`;
  const signal = AbortSignal.abort(new Error("too late"));
  await assertRejects(() => lock(path, { signal }), Error, "too late");
  await assertRejects(() => Deno.lstat(path), Deno.errors.NotFound);
});

Deno.test({
  name:
    "a link, a directory or a pipe in a lock's place is refused, and followed by none",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const [path, victim] = [`${dir.path}/lock`, `${dir.path}/victim`];
    for (const target of ["victim", "nothing"]) {
      await Deno.writeTextFile(victim, "mine");
      await Deno.symlink(target, path);
      await failure("file_unreadable", () => lock(path));
      await failure("file_unreadable", () => tryLock(path));
      await Deno.remove(path);
    }
    assertEquals(await Deno.readTextFile(victim), "mine");
    await assertRejects(() => Deno.lstat(`${dir.path}/nothing`));
    await Deno.mkdir(path);
    await failure("file_unreadable", () => lock(path));
    await Deno.remove(path);
    await run("mkfifo", { args: [path] });
    await failure("file_unreadable", () => lock(path));
  },
});

/** Does something to a path after it was looked at and before it is opened. */
async function between<T>(
  change: (path: string) => Promise<unknown>,
  work: () => Promise<T>,
): Promise<T> {
  const { lstat } = Deno;
  Deno.lstat = async (path) => {
    Deno.lstat = lstat;
    try {
      return await lstat(path);
    } finally {
      await change(String(path));
    }
  };
  try {
    return await work();
  } finally {
    Deno.lstat = lstat;
  }
}

Deno.test({
  name: "what takes a lock's place while it is opened is not locked",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const [path, victim] = [`${dir.path}/lock`, `${dir.path}/victim`];
    for (const take of [lock, tryLock]) {
      await Deno.writeTextFile(path, "");
      await Deno.writeTextFile(victim, "mine");
      const swap = async () => {
        await Deno.remove(path);
        await Deno.symlink(victim, path);
      };
      const error = await failure(
        "file_unreadable",
        () => between(swap, () => take(path)),
      );
      assertEquals(
        error.message,
        `Cannot lock ${path}: it is not a plain file`,
      );
      // Nobody holds what was opened by mistake.
      using free = await tryLock(victim);
      assert(free);
      await Deno.remove(path);
    }
  },
});

Deno.test("a lock's file that another process makes or removes meanwhile is no failure", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/lock`;
  const make = () => Deno.writeTextFile(path, "");
  for (const change of [make, Deno.remove]) {
    using held = await between(change, () => tryLock(path));
    assert(held, "nobody else has it");
    assertEquals(await tryLock(path), undefined);
  }
});

Deno.test({
  name: "a lock's file is private: another user cannot hold it",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const path = `${dir.path}/lock`;
    using _held = await lock(path);
    assertEquals((await Deno.stat(path)).mode! & 0o777, 0o600);
  },
});

Deno.test("a directory that is not there is an error, not a wait", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/none/lock`;
  await assertRejects(() => lock(path), Deno.errors.NotFound);
  await assertRejects(() => tryLock(path), Deno.errors.NotFound);
});

Deno.test("the lock of a process that is killed is free", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/lock`;
  const options = { args: [path] };
  const holder = await startScript(`${dir.path}/hold.ts`, HOLD, options);
  await using child = holder.child;
  await holder.says("held");
  assertEquals(await tryLock(path), undefined);
  const waiting = Promise.withResolvers<void>();
  const mine = lock(path, { onWait: waiting.resolve });
  await waiting.promise;
  Deno.kill(child.pid, "SIGKILL");
  using _held = await mine;
  assertEquals((await child.ended).signal, "SIGKILL");
});

Deno.test("a Deno that can only wait for a lock takes it, and knows that another has it", async () => {
  await using dir = await temporaryDir();
  const script = `
    import { lock, tryLock } from "/lib/system/lock.ts";
    delete Deno.FsFile.prototype.tryLock;
    const [path] = Deno.args;
    const held = await lock(path);
    console.log(await tryLock(path) === undefined);
    let waits = 0;
    const next = lock(path, { onWait: () => waits++ });
    setTimeout(() => held[Symbol.dispose](), 200);
    await next;
    console.log(waits);
    const other = await lock(path + "2");
    console.log(await tryLock(path + "2") === undefined);
    Deno.exit();
  `;
  const args = [`${dir.path}/lock`];
  const said = await runScript(`${dir.path}/old.ts`, script, { args });
  assertEquals(said, "true\n1\ntrue\n");
});

Deno.test("processes that count under a lock count right", async () => {
  await using dir = await temporaryDir();
  const [lockFile, counter] = [`${dir.path}/lock`, `${dir.path}/count`];
  await Deno.writeTextFile(counter, "0");
  const script = `
    import { lock } from "/lib/system/lock.ts";
    for (let i = 0; i < 5; i++) {
      using _held = await lock(Deno.args[0]);
      const count = Number(await Deno.readTextFile(Deno.args[1]));
      await new Promise((done) => setTimeout(done, 5));
      await Deno.writeTextFile(Deno.args[1], String(count + 1));
    }
  `;
  const args = [lockFile, counter];
  await Promise.all(
    [1, 2, 3].map((n) => runScript(`${dir.path}/${n}.ts`, script, { args })),
  );
  assertEquals(await Deno.readTextFile(counter), "15");
});
