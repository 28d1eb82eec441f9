/**
 * The order of boot attempts: restore, boot and save, boot. QEMU is a script that exits,
 * so that every attempt fails and is recorded.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { createEmitter } from "../../lib/events.ts";
import { AcceleratorError } from "../../lib/qemu/errors.ts";
import type { QemuPlan } from "../../lib/qemu/qemu_process.ts";
import type { BootOptions } from "../../lib/vm/boot_options.ts";
import { writeOverlay } from "../../lib/image/overlay.ts";
import { sleep } from "../../lib/system/time.ts";
import { findSnapshotSlot } from "../../lib/vm/_snapshot_slot.ts";
import { startVm } from "../../lib/vm/_start_vm.ts";
import { temporaryDir } from "../support/directory.ts";
import { collectEvents } from "../support/guest.ts";
import { makeQcow2, writeImage } from "../support/qcow2.ts";

const DIGEST = `sha256:${"a".repeat(64)}`;

interface Bench {
  dir: string;
  plan: QemuPlan;
  options: BootOptions;
  /** Calls startVm(); returns its error and warnings. */
  tries(more?: Partial<BootOptions>): Promise<{ error: Error; said: string[] }>;
  /** Saves a snapshot with an overlay of a disk; returns its key. */
  save(disk?: string): Promise<string>;
  /** QEMU's arguments in each attempt. */
  runs(): string[];
}

/** Defines a test with a fake QEMU that records its arguments and runs a script. */
function test(name: string, script: string, fn: (on: Bench) => Promise<void>) {
  Deno.test({
    name,
    ignore: Deno.build.os === "windows",
    async fn() {
      await using dir = await temporaryDir();
      const notes = join(dir.path, "notes");
      const program = join(dir.path, "qemu");
      const noting = `#!/bin/sh\necho "$*" >>'${notes}'\n${script}\n`;
      await Deno.writeTextFile(program, noting, { mode: 0o755 });
      const env = new Map([["TMPDIR", dir.path], ["PATH", "/usr/bin:/bin"]]);
      const image = join(dir.path, "a.qcow2");
      await writeImage(image, makeQcow2({}));
      const plan: QemuPlan = {
        ...{ program, env, disk: image, ephemeral: true, memory: 64, cpus: 1 },
        ...{ accelerator: "tcg", shares: [], extra: [] },
      };
      const snapshots = { dir: join(dir.path, "machines"), digest: DIGEST };
      const options: BootOptions = { image, env, snapshots };
      await fn({
        ...{ dir: dir.path, plan, options },
        async tries(more = {}) {
          const { events, onEvent } = collectEvents("warning");
          const error = await startVm(
            { ...plan, signal: more.signal },
            { ...options, ...more },
            createEmitter(onEvent),
          ).catch((error) => error);
          return { error, said: events.map(({ message }) => message) };
        },
        async save(disk = image) {
          const slot = await findSnapshotSlot(
            plan,
            options,
            createEmitter(undefined),
          );
          await using staging = (await slot!.tryCreateStaging())!;
          const mode = { mode: 0o600 };
          await Deno.writeTextFile(staging.state, "state", mode);
          await Deno.writeTextFile(staging.memory, "memory", mode);
          await writeOverlay(staging.disk, disk);
          await staging.commit();
          return slot!.key;
        },
        runs: () => Deno.readTextFileSync(notes).trim().split("\n"),
      });
      const left = Array.from(
        Deno.readDirSync(join(dir.path, "machines")),
        ({ name }) => name,
      ).filter((name) => name.includes("staging"));
      assertEquals(left, [], "what was to be saved is left");
    },
  });
}

const mapped = (args: string) => args.includes("memory-backend-file");
const ENDED = "QEMU exited with status 1: no such option";
const NOT_MAPPED =
  `The VM was not saved: QEMU cannot map guest memory: ${ENDED}`;

test(
  "startVm() boots without saving, and warns, when memory cannot be mapped",
  "echo no such option >&2; exit 1",
  async ({ dir, tries, runs }) => {
    await Deno.mkdir(join(dir, "machines"), { mode: 0o700 });
    const { error, said } = await tries();
    assertEquals(error.message, ENDED);
    assertEquals(said, [NOT_MAPPED]);
    assertEquals(runs().map(mapped), [true, false]);
    assert(runs()[0].includes("share=on"), runs()[0]);
    // Before the save, the disk needs no flushes.
    const unsafe = runs().map((it) => it.includes("cache=unsafe"));
    assertEquals(unsafe, [true, false]);
    assert(!runs().some((args) => args.includes("-incoming")));
  },
);

test(
  "startVm() does not retry when QEMU is missing or its accelerator fails",
  "exit 127",
  async ({ dir, plan, tries, runs }) => {
    await Deno.mkdir(join(dir, "machines"), { mode: 0o700 });
    const { error, said } = await tries();
    assertEquals([(error as { code?: string }).code, said], [
      ...["qemu_not_found", []],
    ]);
    assertEquals(runs().length, 1);
    plan.accelerator = "kvm";
    const script = `#!/bin/sh\necho kvm is broken >&2\nexit 1\n`;
    await Deno.writeTextFile(plan.program, script);
    const broken = await tries();
    assert(broken.error instanceof AcceleratorError);
    assertEquals([broken.error.message, broken.said], ["kvm is broken", []]);
  },
);

test(
  "startVm() removes a snapshot that does not restore and boots",
  "echo no such option >&2; exit 1",
  async ({ dir, save, tries, runs }) => {
    const key = await save();
    const { error, said } = await tries();
    assertEquals(error.message, ENDED);
    assertEquals(said, [
      `The snapshot was removed: ${ENDED}; booting instead`,
      NOT_MAPPED,
    ]);
    const [restored, ...booted] = runs();
    assert(restored.endsWith("-incoming defer"), restored);
    assert(restored.includes("share=off"), restored);
    for (const part of ["memory", "qcow2"]) {
      assert(restored.includes(`${dir}/machines/${key}.${part}`), restored);
    }
    assertEquals(booted.map(mapped), [true, false]);
    assertEquals((await tries()).said, [NOT_MAPPED]);
  },
);

test(
  "startVm() rejects a snapshot whose disk is not based on the image",
  "exit 1",
  async ({ dir, plan, save, tries, runs }) => {
    const other = join(dir, "other.qcow2");
    await Deno.copyFile(plan.disk, other);
    await save(other);
    const { said } = await tries();
    assertMatch(
      said[0],
      /^The snapshot was removed: .* its backing file is .*other/,
    );
    assert(!runs().some((args) => args.includes("-incoming")));
  },
);

test(
  "startVm() does not save when save is false or disk space is short",
  "exit 1",
  async ({ dir, plan, tries, runs }) => {
    await Deno.mkdir(join(dir, "machines"), { mode: 0o700 });
    const digest = DIGEST;
    const snapshots = { dir: join(dir, "machines"), digest, save: false };
    const unsaved = await tries({ snapshots });
    assertEquals([unsaved.said, runs().map(mapped)], [[], [false]]);
    const none = await tries({ snapshots: undefined });
    assertEquals([none.said, runs().map(mapped)], [[], [false, false]]);
    assertEquals(
      none.error.message,
      "QEMU exited with status 1: no error output",
    );
    plan.memory = 2 ** 40;
    const large = await tries();
    const why = `not enough disk space in ${dir}/machines for ${
      2 ** 40
    } MiB of guest memory`;
    assertEquals([large.said, runs().slice(2).map(mapped)], [
      ...[[`The VM was not saved: ${why}`], [false]],
    ]);
    assert(!runs()[2].includes("share=on"), runs()[2]);
  },
);

test(
  "startVm() rejects with the caller's abort reason and leaves no files",
  "sleep 60",
  async ({ dir, tries }) => {
    await Deno.mkdir(join(dir, "machines"), { mode: 0o700 });
    const stop = new AbortController();
    const starting = tries({ signal: stop.signal });
    while (!await Deno.stat(join(dir, "notes")).catch(() => false)) {
      await sleep(10);
    }
    stop.abort(new Error("enough"));
    const { error, said } = await starting;
    assertEquals([error.message, said], ["enough", []]);
    const aborted = AbortSignal.abort(new Error("never"));
    const never = await tries({ signal: aborted });
    assertEquals(never.error.message, "never");
  },
);
