import { assert, assertEquals, assertRejects } from "@std/assert";
import { acquireFileLock, tryFileLock } from "../../lib/system/lock.ts";
import { runProcess } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { runScript, startScript } from "../support/script.ts";
import { changeTimerDelays } from "../support/timers.ts";

const HOLD = `
  import { acquireFileLock } from "/lib/system/lock.ts";
  using _held = await acquireFileLock(Deno.args[0]);
  console.log("held");
  await new Promise((done) => setTimeout(done, 600_000));
`;

Deno.test("acquireFileLock() excludes a second holder until the lock is released", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/lock`;
  {
    using _held = await acquireFileLock(path);
    assertEquals(await tryFileLock(path), undefined);
  }
  using again = await tryFileLock(path);
  assert(again);
});

Deno.test("acquireFileLock() locks two files independently", async () => {
  await using dir = await temporaryDir();
  using _one = await acquireFileLock(`${dir.path}/one`);
  using other = await tryFileLock(`${dir.path}/other`);
  assert(other);
});

Deno.test("acquireFileLock() calls onWait once, and acquires the lock after its release", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/lock`;
  let notified = 0;
  let pauses = 0;
  using _timers = changeTimerDelays(() => Number(!++pauses));
  const first = await acquireFileLock(path);
  const waiting = Promise.withResolvers<void>();
  const second = acquireFileLock(path, {
    onWait() {
      notified++;
      waiting.resolve();
    },
  });
  await waiting.promise;
  while (pauses < 4) await Deno.stat(path);
  first[Symbol.dispose]();
  (await second)[Symbol.dispose]();
  assertEquals(notified, 1);
});

Deno.test("acquireFileLock() does not call onWait when the lock is free", async () => {
  await using dir = await temporaryDir();
  using _held = await acquireFileLock(`${dir.path}/lock`, {
    onWait() {
      throw new Error("nobody has it");
    },
  });
});

Deno.test("acquireFileLock() stops waiting on abort, and closes its file", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/lock`;
  using _held = await acquireFileLock(path);
  const abort = new AbortController();
  await assertRejects(
    () =>
      acquireFileLock(path, {
        signal: abort.signal,
        onWait: () => abort.abort(new Error("enough")),
      }),
    Error,
    "enough",
  );
});

Deno.test("acquireFileLock() takes no lock when its signal is already aborted", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/lock`;
  const signal = AbortSignal.abort(new Error("too late"));
  await assertRejects(
    () => acquireFileLock(path, { signal }),
    Error,
    "too late",
  );
  await assertRejects(() => Deno.lstat(path), Deno.errors.NotFound);
});

Deno.test({
  name:
    "acquireFileLock() rejects a symbolic link, directory or pipe in place of the lock file",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const [path, victim] = [`${dir.path}/lock`, `${dir.path}/victim`];
    for (const target of ["victim", "nothing"]) {
      await Deno.writeTextFile(victim, "mine");
      await Deno.symlink(target, path);
      await expectFailure("file_unreadable", () => acquireFileLock(path));
      await expectFailure("file_unreadable", () => tryFileLock(path));
      await Deno.remove(path);
    }
    assertEquals(await Deno.readTextFile(victim), "mine");
    await assertRejects(() => Deno.lstat(`${dir.path}/nothing`));
    await Deno.mkdir(path);
    await expectFailure("file_unreadable", () => acquireFileLock(path));
    await Deno.remove(path);
    await runProcess("mkfifo", { args: [path] });
    await expectFailure("file_unreadable", () => acquireFileLock(path));
  },
});

/** Changes a path between lstat() and open(). */
async function changeAfterLstat<T>(
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
  name:
    "acquireFileLock() and tryFileLock() reject a file that is swapped for a link while being opened",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const [path, victim] = [`${dir.path}/lock`, `${dir.path}/victim`];
    for (const take of [acquireFileLock, tryFileLock]) {
      await Deno.writeTextFile(path, "");
      await Deno.writeTextFile(victim, "mine");
      const swap = async () => {
        await Deno.remove(path);
        await Deno.symlink(victim, path);
      };
      const error = await expectFailure(
        "file_unreadable",
        () => changeAfterLstat(swap, () => take(path)),
      );
      assertEquals(
        error.message,
        `Cannot lock ${path}: not a regular file`,
      );
      // The file that was opened by mistake is not locked.
      using free = await tryFileLock(victim);
      assert(free);
      await Deno.remove(path);
    }
  },
});

Deno.test("tryFileLock() retries when another process creates or removes the lock file concurrently", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/lock`;
  const make = () => Deno.writeTextFile(path, "");
  for (const change of [make, Deno.remove]) {
    using held = await changeAfterLstat(change, () => tryFileLock(path));
    assert(held, "nobody else has it");
    assertEquals(await tryFileLock(path), undefined);
  }
});

Deno.test({
  name: "acquireFileLock() creates a lock file that only this user can open",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const path = `${dir.path}/lock`;
    using _held = await acquireFileLock(path);
    assertEquals((await Deno.stat(path)).mode! & 0o777, 0o600);
  },
});

Deno.test("acquireFileLock() and tryFileLock() throw NotFound when the directory is missing", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/none/lock`;
  await assertRejects(() => acquireFileLock(path), Deno.errors.NotFound);
  await assertRejects(() => tryFileLock(path), Deno.errors.NotFound);
});

Deno.test("acquireFileLock() acquires a lock whose holder was killed", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/lock`;
  const options = { args: [path] };
  const holder = await startScript(`${dir.path}/hold.ts`, HOLD, options);
  await using child = holder.child;
  await holder.prints("held");
  assertEquals(await tryFileLock(path), undefined);
  const waiting = Promise.withResolvers<void>();
  const mine = acquireFileLock(path, { onWait: waiting.resolve });
  await waiting.promise;
  Deno.kill(child.pid, "SIGKILL");
  using _held = await mine;
  assertEquals((await child.ended).signal, "SIGKILL");
});

Deno.test("acquireFileLock() and tryFileLock() work in a Deno version without FsFile.tryLock", async () => {
  await using dir = await temporaryDir();
  const script = `
    import { acquireFileLock, tryFileLock } from "/lib/system/lock.ts";
    delete Deno.FsFile.prototype.tryLock;
    const [path] = Deno.args;
    const held = await acquireFileLock(path);
    console.log(await tryFileLock(path) === undefined);
    let waits = 0;
    await acquireFileLock(path, {
      onWait() {
        waits++;
        held[Symbol.dispose]();
      },
    });
    console.log(waits);
    const other = await acquireFileLock(path + "2");
    console.log(await tryFileLock(path + "2") === undefined);
    Deno.exit();
  `;
  const args = [`${dir.path}/lock`];
  const said = await runScript(`${dir.path}/old.ts`, script, { args });
  assertEquals(said, "true\n1\ntrue\n");
});

Deno.test("acquireFileLock() prevents lost updates of a counter that several processes increment", async () => {
  await using dir = await temporaryDir();
  const [lockFile, counter] = [`${dir.path}/lock`, `${dir.path}/count`];
  await Deno.writeTextFile(counter, "0");
  const script = `
    import { acquireFileLock } from "/lib/system/lock.ts";
    for (let i = 0; i < 5; i++) {
      using _held = await acquireFileLock(Deno.args[0]);
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
