import { assert, assertEquals } from "@std/assert";
import {
  GuestCannotMountError,
  prepareGuestForSnapshot,
  setUpGuest,
} from "../../lib/guest/setup.ts";
import { CommandRefusedError } from "../../lib/qemu/errors.ts";
import type { Monitor } from "../../lib/qemu/monitor.ts";
import type { QmpCommand } from "../../lib/qemu/qmp.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { replaceMethod } from "../support/replace_method.ts";
import { holdTimers } from "../support/timers.ts";

const SHARES = [
  { path: "/work", tag: "work", writable: false },
  { path: "/out", tag: "out", writable: true },
];

/** A guest whose scripts end with this status; records agent requests. */
function guest(status: Record<string, unknown>, time?: () => unknown) {
  const asked: QmpCommand[] = [];
  const monitor = {
    // deno-lint-ignore require-await -- what throws is to reject.
    async agent(command: QmpCommand) {
      asked.push(command);
      const [name] = command;
      if (name === "guest-set-time") return time?.();
      return name === "guest-exec" ? { pid: 7 } : status;
    },
  } as Monitor;
  return { monitor, asked };
}

function wordsOf([, args]: QmpCommand): string[] {
  return (args!.arg as string[]).slice(2);
}

/** A script that ended with a status and printed something. */
const ended = (exitcode: number, text = "") => ({
  ...{ exited: true, exitcode, "out-data": btoa(text) },
});

Deno.test("setUpGuest() mounts directories and sets the clock with one agent command", async () => {
  const { monitor, asked } = guest(ended(0));
  await setUpGuest(monitor, SHARES);
  assertEquals(asked.length, 2);
  const mounts = ["work", "/mnt/work", "ro", "out", "/mnt/out", "rw"];
  assertEquals(wordsOf(asked[0]), ["sh", "", "", "", ...mounts]);
  using _clock = replaceMethod(Date, { now: () => 1_700_000_000_600 });
  await setUpGuest(monitor, [], { setClock: true });
  assertEquals(asked.length, 4);
  assertEquals(wordsOf(asked[2]), ["sh", "1700000000.600", "1700000001", ""]);
});

Deno.test("setUpGuest() falls back to guest-set-time when the guest's date command fails", async () => {
  const { monitor, asked } = guest(ended(0, "clock\n"));
  using _clock = replaceMethod(Date, { now: () => 1_700_000_000_600 });
  await setUpGuest(monitor, SHARES, { setClock: true });
  const nanoseconds = { time: 1_700_000_000_600_000_000 };
  assertEquals(asked.at(-1), ["guest-set-time", nanoseconds]);
  const refusing = guest(ended(0, "clock\n"), () => {
    throw new CommandRefusedError("no such command");
  });
  await setUpGuest(refusing.monitor, SHARES, { setClock: true });
  // Output of mount is not mistaken for the clock message.
  const other = guest(ended(0, "no clock\nclocks\n"));
  await setUpGuest(other.monitor, SHARES);
  assertEquals(other.asked.length, 2);
  const stop = new AbortController();
  const stopped = guest(ended(0, "clock\n"), () => {
    stop.abort(new Error("enough"));
    throw new CommandRefusedError("no such command");
  });
  const options = { setClock: true, signal: stop.signal };
  const error = await setUpGuest(stopped.monitor, SHARES, options)
    .catch((error) => error);
  assertEquals(error.message, "enough");
});

Deno.test("setUpGuest() throws GuestCannotMountError with the mount error", async () => {
  const cases: [Record<string, unknown>, string][] = [
    [ended(1, "clock\nunknown filesystem '9p'\n"), "unknown filesystem '9p'"],
    [ended(32), "mount gave no reason"],
    [{ exited: true }, "mount gave no reason"],
  ];
  for (const [status, why] of cases) {
    const { monitor } = guest(status);
    const error = await expectFailure(
      "guest_failed",
      () => setUpGuest(monitor, SHARES),
    );
    assert(error instanceof GuestCannotMountError);
    assertEquals(
      error.message,
      `Cannot mount a host directory in the guest: ${why}`,
    );
    assertEquals(
      error.hint,
      "use an image whose kernel has 9p and 9pnet_virtio",
    );
  }
});

/** Lets the timeout expire at the third status poll. */
async function expectTimeout(
  ms: number,
  work: (monitor: Monitor) => Promise<unknown>,
): Promise<void> {
  const { monitor, asked } = guest({ exited: false });
  using timers = holdTimers(ms);
  const { agent } = monitor;
  monitor.agent = (...command) => {
    if (asked.length === 3) timers.expire();
    return agent(...command);
  };
  await work(monitor);
  assertEquals([asked.length, timers.count()], [4, 0]);
}

Deno.test("setUpGuest() times out after 120 s, or later if the boot may take longer", async () => {
  for (const [bootTimeoutMs, seconds] of [[undefined, 120], [300_000, 300]]) {
    await expectTimeout(seconds! * 1000, async (monitor) => {
      const error = await expectFailure(
        "guest_failed",
        () => setUpGuest(monitor, SHARES, { bootTimeoutMs }),
      );
      assertEquals(
        error.message,
        `Cannot mount host directories in the guest within ${seconds} s`,
      );
    });
  }
});

Deno.test("prepareGuestForSnapshot() waits for systemd as long as the boot took, at least 30 s, and ignores errors of the guest", async () => {
  for (const [bootMs, wait] of [[100, "30"], [40_001, "41"]] as const) {
    const { monitor, asked } = guest(ended(1));
    await prepareGuestForSnapshot(monitor, SHARES, { bootMs });
    const mounts = ["work", "/mnt/work", "out", "/mnt/out"];
    assertEquals(wordsOf(asked[0]), ["sh", wait, ...mounts]);
  }
  // A guest that does not settle is saved as it is.
  const prepare = (bootMs: number) => (monitor: Monitor) =>
    prepareGuestForSnapshot(monitor, [], { bootMs });
  await expectTimeout(60_000, prepare(100));
  await expectTimeout(80_002, prepare(40_001));
  const monitor = {
    agent: () => Promise.reject(new CommandRefusedError("not allowed")),
  } as unknown as Monitor;
  await prepareGuestForSnapshot(monitor, [], { bootMs: 100 });
});

Deno.test("prepareGuestForSnapshot() throws on abort and for a programming error, unlike for errors of the guest", async () => {
  const stop = new AbortController();
  const failing = (work: () => Error) => {
    const agent = () => Promise.reject(work());
    const monitor = { agent } as unknown as Monitor;
    const how = { bootMs: 100, signal: stop.signal };
    return prepareGuestForSnapshot(monitor, [], how).catch((error) =>
      error.message
    );
  };
  assertEquals(await failing(() => new TypeError("a bug")), "a bug");
  const cancelled = await failing(() => {
    stop.abort(new Error("enough"));
    return new CommandRefusedError("not allowed");
  });
  assertEquals(cancelled, "enough");
});

Deno.test("setUpGuest() passes a card's settings on, and warns why the guest has no network", async () => {
  const card = {
    ...{ mac: "52:55:c6:12:00:02", address: "198.18.0.2", bits: 15 },
    ...{ mask: "255.254.0.0", gateway: "198.18.0.1" },
  };
  const words = "52:55:c6:12:00:02 198.18.0.2 15 255.254.0.0 198.18.0.1";
  const good = guest(ended(0));
  const events: object[] = [];
  const options = { card, emit: (event: object) => void events.push(event) };
  await setUpGuest(good.monitor, SHARES, options);
  assertEquals(events, []);
  const mounts = ["work", "/mnt/work", "ro", "out", "/mnt/out", "rw"];
  assertEquals(wordsOf(good.asked[0]), [
    ...["sh", "", "", words],
    ...mounts,
  ]);
  const bad = guest(ended(0, "clock\nnetwork: no card\x1b 52\n"));
  await setUpGuest(bad.monitor, [], options);
  const both = guest(ended(1, "network: no card\nmount: no 9p\n"));
  const error = await setUpGuest(both.monitor, SHARES, options)
    .catch((error) => error);
  assertEquals(
    error.message,
    "Cannot mount a host directory in the guest: mount: no 9p",
  );
  const warning = (message: string) => ({ type: "warning", message });
  assertEquals(events, [
    warning("No network in the guest: no card? 52"),
    warning("No network in the guest: no card"),
  ]);
});
