/**
 * In which order a machine is tried: restored, saved, or just booted. Its QEMU is
 * a script that ends, so that each try is seen and none goes on.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { snapshotStore } from "../../lib/cache/snapshots.ts";
import { emitter } from "../../lib/events.ts";
import { AcceleratorError } from "../../lib/qemu/errors.ts";
import type { MachinePlan } from "../../lib/qemu/machine.ts";
import type { BootOptions } from "../../lib/vm/options.ts";
import { writeOverlay } from "../../lib/image/overlay.ts";
import { findSlots } from "../../lib/vm/_snapshot.ts";
import { startVm } from "../../lib/vm/_start.ts";
import { temporaryDir } from "../support/directory.ts";
import { collect } from "../support/guest.ts";
import { qcow2, writeImage } from "../support/qcow2.ts";

const DIGEST = `sha256:${"a".repeat(64)}`;

interface Bench {
  dir: string;
  plan: MachinePlan;
  options: BootOptions;
  /** Tries to start; returns what it failed with, and was warned of. */
  tries(more?: Partial<BootOptions>): Promise<{ error: Error; said: string[] }>;
  /** The arguments of each try. */
  runs(): string[];
}

/** A QEMU that notes its arguments, and ends as the script says. */
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
      await writeImage(image, qcow2({}));
      const plan: MachinePlan = {
        ...{ program, env, disk: image, ephemeral: true, memory: 64, cpus: 1 },
        ...{ accelerator: "tcg", shares: [], extra: [] },
      };
      const snapshots = { dir: join(dir.path, "machines"), digest: DIGEST };
      const options: BootOptions = { image, env, snapshots };
      await fn({
        ...{ dir: dir.path, plan, options },
        async tries(more = {}) {
          const { events, onEvent } = collect("warning");
          const error = await startVm(
            { ...plan, signal: more.signal },
            { ...options, ...more },
            emitter(onEvent),
          ).catch((error) => error);
          return { error, said: events.map(({ message }) => message) };
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
const ENDED = "QEMU ended with status 1: no such option";

test(
  "memory that cannot be mapped is said so, and the machine is saved in another way",
  "echo no such option >&2; exit 1",
  async ({ dir, tries, runs }) => {
    await Deno.mkdir(join(dir, "machines"), { mode: 0o700 });
    const { error, said } = await tries();
    assertEquals(error.message, ENDED);
    assertEquals(said, [`The guest's memory cannot be mapped: ${ENDED}`]);
    assertEquals(runs().map(mapped), [true, false]);
    assert(runs()[0].includes("share=on"), runs()[0]);
    // Until it is saved, the disk is worth nothing.
    assert(runs().slice(0, 2).every((it) => it.includes("cache=unsafe")));
    assert(!runs().some((args) => args.includes("-incoming")));
  },
);

test(
  "a QEMU that is not there, or whose accelerator does not work, is not tried in another way",
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
  "a snapshot that does not restore is dropped, and the machine boots",
  "echo no such option >&2; exit 1",
  async ({ dir, plan, options, tries, runs }) => {
    const emit = emitter(undefined);
    const slots = await findSlots(plan, { ...options, emit } as never);
    for (const { key, mapped } of slots) {
      await using staging = await snapshotStore(options.snapshots!.dir).stage(
        key,
      );
      await Deno.writeTextFile(staging!.state, "state", { mode: 0o600 });
      if (mapped) {
        await Deno.writeTextFile(staging!.memory, "memory", { mode: 0o600 });
      }
      await writeOverlay(staging!.disk, plan.disk);
      await staging!.place();
    }
    assertEquals(slots.map(({ mapped }) => mapped), [true, false]);
    const { error, said } = await tries();
    assertEquals(error.message, ENDED);
    // The better one is tried; what was found of the other was not looked for.
    assertEquals(said, [
      `The snapshot was removed: ${ENDED}; booting instead`,
      `The guest's memory cannot be mapped: ${ENDED}`,
    ]);
    const [restored, ...booted] = runs();
    assert(restored.endsWith("-incoming defer"), restored);
    assert(restored.includes("share=off"), restored);
    assert(restored.includes(`${slots[0].key}.memory`), restored);
    assertEquals(booted.map(mapped), [true, false]);
    // Now the other is found, with the disk that was saved with it.
    const again = await tries();
    assertEquals(again.said.length, 2);
    const third = runs()[3];
    assert(third.endsWith("-incoming defer") && !mapped(third), third);
    assert(third.includes(`file=${dir}/machines/${slots[1].key}.qcow2`), third);
  },
);

test(
  "a snapshot whose disk lies above another file than the image never reaches QEMU",
  "exit 1",
  async ({ dir, plan, options, tries, runs }) => {
    const other = join(dir, "other.qcow2");
    await Deno.copyFile(plan.disk, other);
    const emit = emitter(undefined);
    const [{ key }] = await findSlots(plan, { ...options, emit } as never);
    await using staging = await snapshotStore(options.snapshots!.dir)
      .stage(key);
    await writeOverlay(staging!.disk, other);
    await Deno.writeTextFile(staging!.state, "state", { mode: 0o600 });
    await Deno.writeTextFile(staging!.memory, "memory", { mode: 0o600 });
    await staging!.place();
    await staging![Symbol.asyncDispose]();
    const { said } = await tries();
    assertMatch(said[0], /^The snapshot was removed: .* is based on .*other/);
    assert(!runs().some((args) => args.includes("-incoming")));
  },
);

test(
  "a machine is not saved where that is not wanted, or its memory has no room",
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
      "QEMU ended with status 1: without a word",
    );
    plan.memory = 2 ** 40;
    const large = await tries();
    assertEquals([large.said, runs().slice(2).map(mapped)], [[], [false]]);
    assert(!runs()[2].includes("share=on"), runs()[2]);
  },
);

test(
  "a start that is cancelled is the caller's, and leaves nothing",
  "sleep 60",
  async ({ dir, tries }) => {
    await Deno.mkdir(join(dir, "machines"), { mode: 0o700 });
    const stop = new AbortController();
    const starting = tries({ signal: stop.signal });
    setTimeout(() => stop.abort(new Error("enough")), 100);
    const { error, said } = await starting;
    assertEquals([error.message, said], ["enough", []]);
    const aborted = AbortSignal.abort(new Error("never"));
    const never = await tries({ signal: aborted });
    assertEquals(never.error.message, "never");
  },
);
