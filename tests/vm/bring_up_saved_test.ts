/**
 * How a machine is restored, or saved for the next time, step by step: QEMU and
 * the guest are fakes, as real ones fail in few of these ways when asked to.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import type { GuestShare } from "../../lib/qemu/args.ts";
import { RefusedError } from "../../lib/qemu/errors.ts";
import { tryLock } from "../../lib/system/lock.ts";
import { settlesWithin } from "../../lib/system/time.ts";
import { bringUp, endMachine } from "../../lib/vm/_bring_up.ts";
import { NotSavable } from "../../lib/vm/_course.ts";
import { failure } from "../support/failure.ts";
import { refusal, type Request } from "../support/fake_machine.ts";
import {
  bringUpFake,
  drive,
  fakeSlot,
  fakeStaging,
  fakeStart,
  IMAGE,
  ready,
  readyEvent,
  TEMPORARY,
} from "../support/fake_start.ts";

const socketsHere = { ignore: Deno.build.os === "windows" };
const WORK: GuestShare = { path: "/work", tag: "work", writable: false };
const OUT: GuestShare = { path: "/out", tag: "out", writable: true };

function test(name: string, fn: () => Promise<void>) {
  Deno.test({ name, ...socketsHere, fn });
}

test("a restored machine runs once its snapshot is read, with its own disk and the host's time", async () => {
  let told: string[] = [];
  const agent = ({ execute }: Request) => {
    throw new Error(`it was asked for ${execute}`);
  };
  const { done, events } = await bringUpFake({
    agent,
    waiting: {
      setUp(marker, words) {
        told = words;
        return `${marker}0 7\n`;
      },
    },
    qemu([name]) {
      if (name === "query-block") {
        return [drive(TEMPORARY, "/m/key.qcow2", IMAGE)];
      }
    },
    start: ({ done, start }) => ({
      slot: fakeSlot(done),
      files: { path: "/m/key.state", disk: "/m/key.qcow2" },
      qemu: { ...start.qemu, disk: "/m/key.qcow2" },
    }),
  }, (_, fake) => {
    assertEquals<unknown>(readyEvent(fake), {
      ...{ type: "boot_ready", image: IMAGE, how: "restored" },
      agent: undefined,
    });
  });
  assertEquals(events[0].how, "restore");
  assertEquals(done.slice(0, 3), ["loaded", "query-block", "cont"]);
  assertEquals(told.length, 2);
  const [seconds, whole] = told;
  assert(Math.abs(Number(seconds) - Date.now() / 1000) < 300, seconds);
  assertEquals(whole, `${Math.round(Number(seconds))}`);
});

test("a snapshot that was replaced meanwhile is not restored", async () => {
  await using fake = await fakeStart({
    start: ({ done }) => ({
      slot: fakeSlot(done, { unchanged: () => Promise.resolve(false) }),
      files: { path: "/m/key.state", disk: "/m/key.qcow2" },
    }),
  });
  const error = await failure("boot_failed", () => bringUp(fake.start));
  assertEquals(error.message, "it was replaced by another");
  assertEquals(fake.done, ["loaded", "query-block"]);
});

test("a machine that is saved comes to rest, stands still, and names the one that goes on", async () => {
  const scripts: string[][] = [];
  await using fake = await fakeStart({
    agent(request) {
      const { execute, arguments: args } = request;
      if (execute === "guest-exec") scripts.push(args.arg as string[]);
      return ready(request);
    },
    start: (fake) => ({
      slot: fakeSlot(fake.done, { mapped: true }),
      staging: fakeStaging(fake),
      plan: { ...fake.start.plan, shares: [WORK, OUT] },
    }),
  });
  const saved = await bringUp(fake.start);
  assert(!("facts" in saved));
  assertEquals(saved.agent, "qemu-ga 7.2.22");
  assert(saved.stopped <= performance.now());
  assertEquals(saved.successor.qemu.dir, "/nonexistent/successor");
  // It may still have to be asked, and is ended by whoever has started it.
  assertEquals(fake.done, [
    ...["query-block", "cont", "typing left", "stop"],
    ...["migrate-set-parameters", "migrate", "query-migrate", "qmp closed"],
  ]);
  assertEquals(fake.events.length, 1);
  // Cloud-init's end, then rest; an export's device is not there yet. Then a shell
  // waits for the first command.
  assertEquals(scripts.length, 3);
  assertEquals(scripts[1].slice(2), ["sh", "30", "work", "/mnt/work"]);
  assertEquals(scripts[2].slice(2, 5), ["sh", "toolsmith.prepared", "yes"]);
  const locked = await tryLock(join(fake.guest.dir, "toolsmith.prepared.lock"));
  assertEquals(locked, undefined);
  // It goes with its machine.
  await endMachine(fake.start);
  const port = await fake.guest.first("err");
  assert(await settlesWithin(port.read(new Uint8Array(1)), 5000));
  await assertRejects(() => Deno.lstat(fake.guest.dir), Deno.errors.NotFound);
});

test("a restored machine is set up by the shell that waits in it, which becomes its first command", async () => {
  const asked: string[] = [];
  const { done } = await bringUpFake({
    agent(request) {
      asked.push(request.execute);
      return ready(request);
    },
    start: (fake) => ({
      slot: fakeSlot(fake.done),
      files: { path: "/m/key.state", disk: "/m/key.qcow2" },
      plan: { ...fake.start.plan, shares: [WORK] },
    }),
  }, async (vm) => {
    assertEquals(vm.facts.shares, [WORK]);
    const { code, stdout } = await vm.exec("echo", { args: ["ä\n"] });
    assertEquals([code, stdout], [
      3,
      "no /mnt/work /mnt/work 3 GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=* echo \\0303\\0244\\0012",
    ]);
    assertEquals(asked, []);
  });
  assertEquals(done.slice(0, 3), ["loaded", "query-block", "cont"]);
  // The ports that it had are unplugged behind it.
  assertEquals(done.filter((it) => it === "device_del").length, 3);
});

test("a restored machine that is let go of before it was used has no shell that waits", async () => {
  await using fake = await fakeStart({
    start: ({ done }) => ({
      slot: fakeSlot(done),
      files: { path: "/m/key.state", disk: "/m/key.qcow2" },
    }),
  });
  const vm = await bringUp(fake.start);
  assert("facts" in vm);
  await vm.release();
  assertEquals(fake.done.filter((it) => it === "device_del").length, 3);
});

test("the machine that goes on in the place of one that was saved reports its boot", async () => {
  const stopped = performance.now() - 50;
  const { done } = await bringUpFake({
    start: (fake) => ({
      slot: fakeSlot(fake.done, {
        mapped: true,
        // It is not in its place yet.
        unchanged: () => Promise.resolve(false),
        place: (_, ms) =>
          void fake.done.push(`placed: ${ms >= 50 && ms < performance.now()}`),
      }),
      staging: fakeStaging(fake),
      files: { path: "/m/state", disk: "/m/disk" },
      saved: { stopped, agent: "toolsmith", successor: fake.start },
    }),
  }, (_, fake) => {
    assertEquals<unknown>(readyEvent(fake), {
      ...{ type: "boot_ready", image: IMAGE, how: "booted" },
      agent: "toolsmith",
    });
    assertEquals(fake.events.length, 1);
  });
  assertEquals(done.slice(0, 4), [
    ...["loaded", "query-block", "cont", "placed: true"],
  ]);
});

test("where that one does not run, the machine is not saved in that way again", async () => {
  await using fake = await fakeStart({
    qemu: ([name]) =>
      name === "cont"
        ? new RefusedError("no cont; its console shows nothing")
        : undefined,
    start: (fake) => ({
      slot: fakeSlot(fake.done, { mapped: true }),
      files: { path: "/m/state", disk: "/m/disk" },
      saved: { stopped: 0, agent: undefined, successor: fake.start },
    }),
  });
  const error = await bringUp(fake.start).catch((error) => error);
  assert(error instanceof NotSavable);
  assertEquals(error.message, "no cont");
});

test("a guest in which no shell can wait runs on, and is not saved", async () => {
  const { done } = await bringUpFake({
    start: (fake) => ({
      slot: fakeSlot(fake.done),
      staging: fakeStaging(fake),
    }),
    agent: (request) =>
      request.execute === "guest-exec" &&
        (request.arguments.arg as string[]).includes("yes")
        ? refusal("no process")
        : ready(request),
  });
  const failed = done.find((it) => it.startsWith("failed"));
  assertEquals(
    failed,
    "failed: The guest agent refused guest-exec: no process",
  );
  assert(!done.includes("stop"));
  assert(done.includes("staging removed"));
});

test("a machine that cannot be saved, or was typed into, runs on without a snapshot", async () => {
  const refused = await bringUpFake({
    qemu: ([name]) =>
      name === "migrate" ? new RefusedError("no migration") : undefined,
    start: (fake) => ({
      slot: fakeSlot(fake.done, { mapped: true }),
      staging: fakeStaging(fake),
    }),
  });
  assertEquals(refused.done.slice(4, 10), [
    ...["migrate-set-parameters", "migrate", "cont", "failed: no migration"],
    ...["successor ended", "staging removed"],
  ]);
  const alone = await bringUpFake({
    start: (fake) => ({
      slot: fakeSlot(fake.done),
      staging: fakeStaging(fake),
      startSuccessor: () => Promise.reject(new Error("no process")),
    }),
  });
  assertEquals(alone.done.slice(2, 5), [
    ...["typing left", "failed: no process", "staging removed"],
  ]);
  const typed = await bringUpFake({
    start: (fake) => ({
      slot: fakeSlot(fake.done),
      staging: fakeStaging(fake),
      typing: { ...fake.start.typing, used: () => true },
    }),
  });
  assertEquals(typed.done.slice(0, 5), [
    ...["query-block", "cont", "typing left", "successor ended"],
    ...["staging removed"],
  ]);
  assert(!typed.done.includes("stop"));
});
