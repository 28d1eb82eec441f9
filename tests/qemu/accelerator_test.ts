/**
 * Which accelerators are used: QEMU is a script, as no host offers each kind of
 * KVM, but for the boot sector, which a real one runs.
 */
import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  accelerators,
  type AcceleratorsOptions,
  keepVerdict,
  parseAccelerator,
  wantedAccelerator,
} from "../../lib/qemu/accelerator.ts";
import { sleep } from "../../lib/system/time.ts";
import { failure } from "../support/failure.ts";
import { temporaryDir } from "../support/directory.ts";
import { needs, parts } from "../support/parts.ts";
import { hurriedTimers } from "../support/timers.ts";
import { asRoot } from "../support/users.ts";

const HANGS = "exec sleep 600";
const SLOW = "KVM is offered but slower than emulation here";

interface Bench {
  dir: string;
  program: string;
  /** How often QEMU was started with an accelerator. */
  starts(accelerator: "kvm" | "tcg"): number;
  /** Asks for the accelerators of a Linux host with KVM. */
  ask(more?: AcceleratorsOptions): Promise<{ names: string[]; why: string[] }>;
  /** Replaces what QEMU does. */
  qemu(kvm: string, tcg?: string): Promise<void>;
  /** Paths of what is in the temporary directory. */
  left(): string[];
}

/** Defines a test with a QEMU that is a script for each accelerator. */
function test(
  name: string,
  [kvm, tcg]: [kvm: string, tcg?: string],
  fn: (bench: Bench) => Promise<void>,
  define = (name: string, fn: () => Promise<void>) =>
    Deno.test({ name, ignore: Deno.build.os === "windows", fn }),
) {
  define(name, async () => {
    await using dir = await temporaryDir();
    const [program, tmp] = [join(dir.path, "qemu"), join(dir.path, "tmp")];
    const notes = join(dir.path, "notes");
    await Deno.mkdir(tmp);
    const qemu = (kvm: string, tcg = HANGS) =>
      Deno.writeTextFile(
        program,
        `#!/bin/sh\necho "$*" >>'${notes}'\n` +
          `case $* in *accel=tcg*) ${tcg} ;; *) ${kvm} ;; esac\n`,
        { mode: 0o755 },
      );
    await qemu(kvm, tcg);
    const env = new Map([["TMPDIR", tmp]]);
    await fn({
      ...{ dir: dir.path, program, qemu },
      starts: (accelerator) =>
        (tryRead(notes).match(RegExp(`accel=${accelerator}`, "g")) ?? [])
          .length,
      async ask(more = {}) {
        const why: string[] = [];
        const names = await accelerators(program, {
          ...{ os: "linux", arch: "x86_64", kvm: "/dev/null", env },
          onRejected: (reason) => why.push(reason),
          ...more,
        });
        return { names, why };
      },
      left: () =>
        Array.from(Deno.readDirSync(tmp), ({ name }) => join(tmp, name)),
    });
  });
}

function tryRead(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return "";
  }
}

/** Lets the head start, and the longest race, pass at once. */
const hurry = () => hurriedTimers((ms) => ms >= 1000 ? 50 : ms);

test("accelerators() names KVM and HVF where they may work, TCG everywhere", [
  "exit 0",
], async ({ ask, dir, left }) => {
  const names = async (options: AcceleratorsOptions) =>
    (await ask(options)).names;
  assertEquals(await names({ kvm: join(dir, "none") }), ["tcg"]);
  assertEquals(await names({}), ["kvm", "tcg"]);
  assertEquals(await names({ os: "darwin" }), ["hvf", "tcg"]);
  assertEquals(await names({ os: "windows" }), ["tcg"]);
  assertEquals(await names({ arch: "aarch64" }), ["tcg"]);
  assertEquals(await names({ guest: "aarch64" }), ["tcg"]);
  assertEquals(left().length, 2);
  const arm64 = { arch: "aarch64", guest: "aarch64" } as const;
  assertEquals(await names(arm64), ["kvm", "tcg"]);
  assertEquals(await names({ ...arm64, os: "darwin" }), ["hvf", "tcg"]);
});

test("accelerators() starts no QEMU for what it found out before", [
  "exit 0",
], async ({ ask, starts, program, left }) => {
  for (let time = 0; time < 2; time++) {
    assertEquals(await ask(), { names: ["kvm", "tcg"], why: [] });
  }
  assertEquals([starts("kvm"), starts("tcg")], [1, 0]);
  await ask({ afresh: true });
  assertEquals(starts("kvm"), 2);
  const [path] = left();
  const name = program.replaceAll(/\W+/g, "_").slice(-80);
  assert(path.endsWith(`toolsmith-${Deno.uid()}-verdict-kvm-${name}`), path);
  assertEquals(Deno.lstatSync(path).mode! & 0o777, 0o600);
});

test(
  "accelerators() rejects a KVM that emulation outruns, until the next boot",
  [
    HANGS,
    "exit 0",
  ],
  async ({ ask, starts, left }) => {
    using _timers = hurry();
    assertEquals(await ask(), { names: ["tcg"], why: [SLOW] });
    assertEquals(await ask(), { names: ["tcg"], why: [] });
    assertEquals(starts("kvm"), 1);
    const [verdict, ...others] = left();
    assertEquals(others, []);
    const text = await Deno.readTextFile(verdict);
    await Deno.writeTextFile(verdict, text.replace(/"boot":"./, '"boot":"_'));
    assertEquals(await ask(), { names: ["tcg"], why: [SLOW] });
  },
);

test("accelerators() lets another version of QEMU prove itself", [
  "echo KVM is broken >&2; exit 1",
], async ({ ask, qemu }) => {
  const why = ["KVM does not work here: KVM is broken"];
  assertEquals(await ask(), { names: ["tcg"], why });
  await qemu("exit 0");
  assertEquals(await ask(), { names: ["kvm", "tcg"], why: [] });
});

test("accelerators() believes no verdict of an earlier design", [
  "exit 0",
], async ({ ask, program, left }) => {
  await ask();
  const [verdict] = left();
  const note = verdict.replace("-verdict-", "-no-");
  await Deno.writeTextFile(note, program);
  const [key] = (await Deno.readTextFile(verdict)).split("\n");
  const older = key.replace(/"layout":\d+/, '"layout":0');
  await Deno.writeTextFile(verdict, `${older}\nslow`);
  assertEquals((await ask()).names, ["kvm", "tcg"]);
});

test(
  "accelerators() rejects no KVM on a host so busy that emulation is slower",
  [
    'until [ -e "$TMPDIR/raced" ]; do sleep 0.02; done; exit 0',
    `: >"$TMPDIR/raced"; ${HANGS}`,
  ],
  async ({ ask, starts }) => {
    using _timers = hurriedTimers((ms) => ms === 1000 ? 50 : ms);
    assertEquals(await ask(), { names: ["kvm", "tcg"], why: [] });
    assertEquals([starts("kvm"), starts("tcg")], [1, 1]);
  },
);

test("accelerators() waits for a KVM where QEMU cannot emulate", [
  'until [ -e "$TMPDIR/raced" ]; do sleep 0.02; done; exit 0',
  `: >"$TMPDIR/raced"; exit 1`,
], async ({ ask }) => {
  using _timers = hurriedTimers((ms) => ms === 1000 ? 50 : ms);
  assertEquals(await ask(), { names: ["kvm", "tcg"], why: [] });
});

test("accelerators() keeps no verdict where neither KVM nor emulation ends", [
  HANGS,
  HANGS,
], async ({ ask, left }) => {
  using _timers = hurry();
  assertEquals(await ask(), { names: ["kvm", "tcg"], why: [] });
  assertEquals(left(), []);
});

test("accelerators() reports QEMU's words about a KVM that stops its guest", [
  `echo KVM internal error >&2; ${HANGS}`,
  "exit 0",
], async ({ ask }) => {
  using _timers = hurry();
  const why = ["KVM does not work here: KVM internal error"];
  assertEquals(await ask(), { names: ["tcg"], why });
});

test(
  "accelerators() tries again after a missing permission, but not after a crash",
  [
    "echo Permission denied >&2; exit 1",
  ],
  async ({ ask, qemu, left }) => {
    const denied = ["KVM does not work here: Permission denied"];
    assertEquals(await ask(), { names: ["tcg"], why: denied });
    assertEquals(left(), []);
    await qemu("kill -ABRT $$");
    const [why] = (await ask()).why;
    assertEquals(why, "KVM does not work here: QEMU ended with status 134");
    await qemu("echo failed to set MSR >&2; exit 3");
    assertEquals((await ask()).why, [
      "KVM does not work here: failed to set MSR",
    ]);
    assertEquals(left().length, 1);
  },
);

test("accelerators() ends QEMU and removes its directory when it is aborted", [
  HANGS,
], async ({ ask, starts, left }) => {
  const stop = new AbortController();
  const asked = ask({ signal: stop.signal }).catch((error) => error);
  while (starts("kvm") === 0) await sleep(10);
  stop.abort(new Error("enough"));
  assertEquals((await asked).message, "enough");
  assertEquals(left(), []);
});

test(
  "accelerators() reports a missing QEMU",
  ["exit 0"],
  async ({ ask, program }) => {
    await Deno.remove(program);
    const error = await failure("qemu_not_found", () => ask());
    assertEquals(error.message, `QEMU not found: ${program}`);
  },
);

test(
  "accelerators() believes no verdict that another user wrote",
  ["exit 0"],
  async ({ ask, left, starts }) => {
    await ask();
    await Deno.chown(left()[0], 4242, 4242);
    await ask();
    assertEquals(starts("kvm"), 2);
  },
  asRoot,
);

test("accelerators() writes no verdict through a link in its place", [
  "exit 0",
], async ({ ask, left, dir }) => {
  await ask();
  const [verdict] = left();
  const victim = join(dir, "victim");
  await Deno.writeTextFile(victim, "mine");
  await Deno.remove(verdict);
  await Deno.symlink(victim, verdict);
  await ask();
  assertEquals(await Deno.readTextFile(victim), "mine");
  assert(Deno.lstatSync(verdict).isFile);
});

test("keepVerdict() replaces a verdict, unless a permission is missing", [
  "exit 0",
], async ({ ask, program, dir }) => {
  const env = new Map([["TMPDIR", join(dir, "tmp")]]);
  const keep = (why: string) => keepVerdict("kvm", program, { why, env });
  await ask();
  await keep("KVM does not work here: Permission denied");
  assertEquals((await ask()).names, ["kvm", "tcg"]);
  await keep("KVM does not work here: entry failed");
  assertEquals(await ask(), { names: ["tcg"], why: [] });
});

test(
  "the boot sector counts and resets in QEMU's emulation",
  // Emulation plays KVM, and its rival leaves it all the time that it needs.
  [`exec '${parts.qemu}' $(echo "$*" | sed 's/kvm/tcg/; s/-cpu host/-cpu max/')`],
  async ({ ask, left }) => {
    assertEquals((await ask()).names, ["kvm", "tcg"]);
    assertEquals(left().length, 1);
  },
  (name, fn) => Deno.test({ name, ...needs("qemu"), fn }),
);

Deno.test("parseAccelerator() returns what QEMU knows and reports anything else", async () => {
  const names = ["kvm", "hvf", "tcg"].map((it) => parseAccelerator(it, ""));
  assertEquals(names, ["kvm", "hvf", "tcg"]);
  assertEquals(parseAccelerator(undefined, ""), undefined);
  assertEquals(
    wantedAccelerator(new Map([["TOOLSMITH_ACCEL", ""]])),
    undefined,
  );
  const env = new Map([["TOOLSMITH_ACCEL", "xen"]]);
  const error = await failure("usage", () => wantedAccelerator(env));
  assertEquals(error.message, "Not an accelerator: TOOLSMITH_ACCEL=xen");
  assertEquals(
    error.hint,
    "use TOOLSMITH_ACCEL=kvm, TOOLSMITH_ACCEL=hvf or TOOLSMITH_ACCEL=tcg",
  );
});
