/**
 * Accelerator detection. QEMU is a script, as no host has every kind of broken KVM;
 * only the boot sector's test runs a real QEMU.
 */
import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  acceleratorFromEnv,
  acceleratorVerdict,
  type FindAcceleratorsOptions,
  findFastestAccelerator,
  parseAccelerator,
} from "../../lib/qemu/accelerator.ts";
import { sleep } from "../../lib/system/time.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { temporaryDir } from "../support/directory.ts";
import { foundTools, requires } from "../support/parts.ts";
import { changeTimerDelays, holdTimers } from "../support/timers.ts";
import { asRoot } from "../support/users.ts";

const HANGS = "exec sleep 600";
const SLOW = "KVM is available but slower than emulation on this host";

interface Bench {
  dir: string;
  program: string;
  /** Number of QEMU starts with an accelerator. */
  starts(accelerator: "kvm" | "tcg"): number;
  /** Calls findFastestAccelerator() for a Linux host with KVM. */
  ask(
    more?: FindAcceleratorsOptions,
  ): Promise<{ name: string; why: string[] }>;
  /** Replaces the scripts that play QEMU. */
  qemu(kvm: string, tcg?: string): Promise<void>;
  /** Paths in the temporary directory. */
  left(): string[];
}

/** Defines a test with a fake QEMU: a script for each accelerator. */
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
        const name = await findFastestAccelerator(program, {
          ...{ hostOs: "linux", hostArch: "x86_64", kvm: "/dev/null", env },
          onRejected: (reason) => why.push(reason),
          ...more,
        });
        return { name, why };
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

/** Shortens the head start. */
const hurry = () => changeTimerDelays((ms) => ms === 1000 ? 50 : ms);

test(
  "findFastestAccelerator() returns the host's KVM or HVF, else TCG",
  [
    "exit 0",
  ],
  async ({ ask, dir, left }) => {
    const found = async (options: FindAcceleratorsOptions) =>
      (await ask(options)).name;
    assertEquals(await found({ kvm: join(dir, "none") }), "tcg");
    assertEquals(await found({}), "kvm");
    assertEquals(await found({ hostOs: "darwin" }), "hvf");
    assertEquals(await found({ hostOs: "windows" }), "tcg");
    assertEquals(await found({ hostArch: "aarch64" }), "tcg");
    assertEquals(await found({ guest: "aarch64" }), "tcg");
    assertEquals(left().length, 2);
    const arm64 = { hostArch: "aarch64", guest: "aarch64" } as const;
    assertEquals(await found(arm64), "kvm");
    assertEquals(await found({ ...arm64, hostOs: "darwin" }), "hvf");
  },
);

test("findFastestAccelerator() starts no QEMU when a verdict is cached", [
  "exit 0",
], async ({ ask, starts, program, left }) => {
  // The fake QEMU may be slow: no race against emulation starts.
  using _head = holdTimers(1000);
  for (let time = 0; time < 2; time++) {
    assertEquals(await ask(), { name: "kvm", why: [] });
  }
  assertEquals([starts("kvm"), starts("tcg")], [1, 0]);
  await ask({ reprobe: true });
  assertEquals(starts("kvm"), 2);
  const [path] = left();
  const name = program.replaceAll(/\W+/g, "_").slice(-80);
  assert(path.endsWith(`toolsmith-${Deno.uid()}-verdict-kvm-${name}`), path);
  assertEquals(Deno.lstatSync(path).mode! & 0o777, 0o600);
});

test(
  "findFastestAccelerator() rejects a KVM that is slower than emulation, until the host reboots",
  [
    HANGS,
    // Only once the start of KVM can be counted.
    'until grep -q accel=kvm "$TMPDIR/../notes"; do sleep 0.02; done; exit 0',
  ],
  async ({ ask, starts, left }) => {
    using _timers = hurry();
    assertEquals(await ask(), { name: "tcg", why: [SLOW] });
    assertEquals(await ask(), { name: "tcg", why: [] });
    assertEquals(starts("kvm"), 1);
    const [verdict, ...others] = left();
    assertEquals(others, []);
    const text = await Deno.readTextFile(verdict);
    await Deno.writeTextFile(verdict, text.replace(/"boot":"./, '"boot":"_'));
    assertEquals(await ask(), { name: "tcg", why: [SLOW] });
  },
);

test("findFastestAccelerator() probes KVM again after a QEMU upgrade", [
  "echo KVM is broken >&2; exit 1",
], async ({ ask, qemu }) => {
  const why = ["KVM does not work on this host: KVM is broken"];
  assertEquals(await ask(), { name: "tcg", why });
  await qemu("exit 0");
  assertEquals(await ask(), { name: "kvm", why: [] });
});

test(
  "findFastestAccelerator() accepts a slow KVM if emulation is even slower",
  [
    'until [ -e "$TMPDIR/raced" ]; do sleep 0.02; done; exit 0',
    `: >"$TMPDIR/raced"; ${HANGS}`,
  ],
  async ({ ask, starts }) => {
    using _timers = hurry();
    assertEquals(await ask(), { name: "kvm", why: [] });
    assertEquals([starts("kvm"), starts("tcg")], [1, 1]);
  },
);

test("findFastestAccelerator() waits for KVM when QEMU cannot emulate", [
  'until [ -e "$TMPDIR/raced" ]; do sleep 0.02; done; exit 0',
  `: >"$TMPDIR/raced"; exit 1`,
], async ({ ask }) => {
  using _timers = hurry();
  assertEquals(await ask(), { name: "kvm", why: [] });
});

test(
  "findFastestAccelerator() caches no verdict when KVM and emulation both hang",
  [
    HANGS,
    HANGS,
  ],
  async ({ ask, left }) => {
    using _timers = changeTimerDelays((ms) => ms >= 1000 ? 50 : ms);
    assertEquals(await ask(), { name: "kvm", why: [] });
    assertEquals(left(), []);
  },
);

test("findFastestAccelerator() reports QEMU's error when KVM stops the guest", [
  `echo KVM internal error >&2; : >"$TMPDIR/said"; ${HANGS}`,
  'until [ -e "$TMPDIR/said" ]; do sleep 0.02; done; exit 0',
], async ({ ask }) => {
  using _timers = hurry();
  const why = ["KVM does not work on this host: KVM internal error"];
  assertEquals(await ask(), { name: "tcg", why });
});

test(
  "findFastestAccelerator() probes again after a permission error, but not after a crash",
  [
    "echo Permission denied >&2; exit 1",
  ],
  async ({ ask, qemu, left }) => {
    const denied = ["KVM does not work on this host: Permission denied"];
    assertEquals(await ask(), { name: "tcg", why: denied });
    assertEquals(left(), []);
    await qemu("kill -ABRT $$");
    const [why] = (await ask()).why;
    assertEquals(
      why,
      "KVM does not work on this host: QEMU exited with status 134",
    );
    await qemu("echo failed to set MSR >&2; exit 3");
    assertEquals((await ask()).why, [
      "KVM does not work on this host: failed to set MSR",
    ]);
    assertEquals(left().length, 1);
  },
);

test(
  "findFastestAccelerator() kills QEMU and removes its directory when aborted",
  [
    HANGS,
  ],
  async ({ ask, starts, left }) => {
    const stop = new AbortController();
    const asked = ask({ signal: stop.signal }).catch((error) => error);
    while (starts("kvm") === 0) await sleep(10);
    stop.abort(new Error("enough"));
    assertEquals((await asked).message, "enough");
    assertEquals(left(), []);
  },
);

test(
  "findFastestAccelerator() throws qemu_not_found when QEMU is missing",
  ["exit 0"],
  async ({ ask, program }) => {
    await Deno.remove(program);
    const error = await expectFailure("qemu_not_found", () => ask());
    assertEquals(error.message, `QEMU not found: ${program}`);
  },
);

test(
  "findFastestAccelerator() ignores a cached verdict that another user wrote",
  ["exit 0"],
  async ({ ask, left, starts }) => {
    await ask();
    await Deno.chown(left()[0], 4242, 4242);
    await ask();
    assertEquals(starts("kvm"), 2);
  },
  asRoot,
);

test(
  "findFastestAccelerator() replaces a symlink at the verdict's path instead of following it",
  [
    "exit 0",
  ],
  async ({ ask, left, dir }) => {
    await ask();
    const [verdict] = left();
    const victim = join(dir, "victim");
    await Deno.writeTextFile(victim, "mine");
    await Deno.remove(verdict);
    await Deno.symlink(victim, verdict);
    await ask();
    assertEquals(await Deno.readTextFile(victim), "mine");
    assert(Deno.lstatSync(verdict).isFile);
  },
);

test(
  "acceleratorVerdict() replaces a cached verdict, but caches no permission error",
  [
    "exit 0",
  ],
  async ({ ask, program, dir }) => {
    const env = new Map([["TMPDIR", join(dir, "tmp")]]);
    const keep = acceleratorVerdict("kvm", program, env).write;
    await ask();
    await keep("KVM does not work on this host: Permission denied");
    assertEquals((await ask()).name, "kvm");
    await keep("KVM does not work on this host: entry failed");
    assertEquals(await ask(), { name: "tcg", why: [] });
  },
);

test(
  "acceleratorVerdict() is in /tmp when TMPDIR is empty",
  ["exit 0"],
  async ({ program }) => {
    const env = new Map([["TMPDIR", ""]]);
    await acceleratorVerdict("kvm", program, env).write("slow");
    const name = program.replaceAll(/\W+/g, "_").slice(-80);
    const path = `/tmp/toolsmith-${Deno.uid()}-verdict-kvm-${name}`;
    assert((await Deno.readTextFile(path)).endsWith("\nslow"));
    await Deno.remove(path);
  },
);

test(
  "accelerator probe: the boot sector counts and resets its VM in a real QEMU",
  // Emulation plays KVM; the fake emulation never finishes, so it cannot win the race.
  [`exec '${foundTools.qemu}' $(echo "$*" | sed 's/kvm/tcg/; s/-cpu host/-cpu max/')`],
  async ({ ask, left }) => {
    assertEquals((await ask()).name, "kvm");
    assertEquals(left().length, 1);
  },
  (name, fn) => Deno.test({ name, ...requires("qemu"), fn }),
);

Deno.test("parseAccelerator() returns kvm, hvf or tcg and throws usage for any other name", async () => {
  const names = ["kvm", "hvf", "tcg"].map((it) => parseAccelerator(it, ""));
  assertEquals(names, ["kvm", "hvf", "tcg"]);
  assertEquals(parseAccelerator(undefined, ""), undefined);
  assertEquals(
    acceleratorFromEnv(new Map([["TOOLSMITH_ACCEL", ""]])),
    undefined,
  );
  const env = new Map([["TOOLSMITH_ACCEL", "xen"]]);
  const error = await expectFailure("usage", () => acceleratorFromEnv(env));
  assertEquals(error.message, "Unknown accelerator: TOOLSMITH_ACCEL=xen");
  assertEquals(
    error.hint,
    "use TOOLSMITH_ACCEL=kvm, TOOLSMITH_ACCEL=hvf or TOOLSMITH_ACCEL=tcg",
  );
});
