import { assert, assertEquals } from "@std/assert";
import {
  NoMountsError,
  prepareGuest,
  setUpGuest,
} from "../../lib/guest/setup.ts";
import { RefusedError } from "../../lib/qemu/errors.ts";
import type { Monitor } from "../../lib/qemu/monitor.ts";
import type { Command } from "../../lib/qemu/qmp.ts";
import { failure } from "../support/failure.ts";

const SHARES = [
  { path: "/work", tag: "work", writable: false },
  { path: "/out", tag: "out", writable: true },
];

/** A guest whose scripts end so; what its agent was asked is noted. */
function guest(status: Record<string, unknown>, time?: () => unknown) {
  const asked: Command[] = [];
  const monitor = {
    // deno-lint-ignore require-await -- what throws is to reject.
    async agent(command: Command) {
      asked.push(command);
      const [name] = command;
      if (name === "guest-set-time") return time?.();
      return name === "guest-exec" ? { pid: 7 } : status;
    },
  } as Monitor;
  return { monitor, asked };
}

function wordsOf([, args]: Command): string[] {
  return (args!.arg as string[]).slice(2);
}

/** A script that ended with a status and printed something. */
const ended = (exitcode: number, text = "") => ({
  ...{ exited: true, exitcode, "out-data": btoa(text) },
});

Deno.test("a guest mounts its directories and sets its clock with one command", async () => {
  const { monitor, asked } = guest(ended(0));
  await setUpGuest(monitor, SHARES);
  assertEquals(asked.length, 2);
  const mounts = ["work", "/mnt/work", "ro", "out", "/mnt/out", "rw"];
  assertEquals(wordsOf(asked[0]), ["sh", "", "", ...mounts]);
  await setUpGuest(monitor, [], { clock: true });
  const [, exact, whole, ...rest] = wordsOf(asked[2]);
  assertEquals([asked.length, rest], [4, []]);
  assert(/^\d{10}\.\d{3}$/.test(exact), exact);
  assertEquals(whole, `${Math.round(Number(exact))}`);
  assert(Math.abs(Number(exact) - Date.now() / 1000) < 300, exact);
});

Deno.test("a guest whose own program cannot set the clock has it set by its agent", async () => {
  const { monitor, asked } = guest(ended(0, "clock\n"));
  await setUpGuest(monitor, SHARES, { clock: true });
  const [name, args] = asked.at(-1)!;
  assertEquals(name, "guest-set-time");
  // Nanoseconds.
  assert(Math.abs(args!.time as number / 1e9 - Date.now() / 1000) < 300);
  const refusing = guest(ended(0, "clock\n"), () => {
    throw new RefusedError("no such command");
  });
  await setUpGuest(refusing.monitor, SHARES, { clock: true });
  // Words of a mount are no such note.
  const other = guest(ended(0, "no clock\nclocks\n"));
  await setUpGuest(other.monitor, SHARES);
  assertEquals(other.asked.length, 2);
  const stop = new AbortController();
  const stopped = guest(ended(0, "clock\n"), () => {
    stop.abort(new Error("enough"));
    throw new RefusedError("no such command");
  });
  const options = { clock: true, signal: stop.signal };
  const error = await setUpGuest(stopped.monitor, SHARES, options)
    .catch((error) => error);
  assertEquals(error.message, "enough");
});

Deno.test("a guest that cannot mount says why, without the note about its clock", async () => {
  const cases: [Record<string, unknown>, string][] = [
    [ended(1, "clock\nunknown filesystem '9p'\n"), "unknown filesystem '9p'"],
    [ended(32), "no reason"],
    [{ exited: true }, "no reason"],
  ];
  for (const [status, why] of cases) {
    const { monitor } = guest(status);
    const error = await failure(
      "guest_failed",
      () => setUpGuest(monitor, SHARES),
    );
    assert(error instanceof NoMountsError);
    assertEquals(
      error.message,
      `The guest cannot mount a directory of the host: ${why}`,
    );
    assertEquals(error.hint, "its kernel needs 9p and 9pnet_virtio");
  }
});

/** Does something while a clock goes ten seconds with every look. */
async function quickly(work: () => Promise<void>): Promise<number> {
  const now = performance.now;
  let time = 0;
  performance.now = () => time += 10_000;
  try {
    await work();
  } finally {
    performance.now = now;
  }
  return time;
}

Deno.test("a guest has two minutes to mount its directories", async () => {
  const { monitor, asked } = guest({ exited: false });
  await quickly(async () => {
    const error = await failure(
      "guest_failed",
      () => setUpGuest(monitor, SHARES),
    );
    assertEquals(
      error.message,
      "The guest did not mount its directories within 120 s",
    );
  });
  // One look each ten seconds, but none in the last.
  assertEquals(asked.length - 1, 11);
});

Deno.test("a guest comes to rest for as long as its boot took, and half a minute at least", async () => {
  for (const [bootMs, wait] of [[100, "30"], [40_001, "41"]] as const) {
    const { monitor, asked } = guest(ended(1));
    await prepareGuest(monitor, SHARES, { bootMs });
    const mounts = ["work", "/mnt/work", "out", "/mnt/out"];
    assertEquals(wordsOf(asked[0]), ["sh", wait, ...mounts]);
  }
  // One that does not, or is not allowed to, is saved as it is.
  const restless = guest({ exited: false });
  await quickly(() => prepareGuest(restless.monitor, [], { bootMs: 100 }));
  assertEquals(restless.asked.length - 1, 5);
  const monitor = {
    agent: () => Promise.reject(new RefusedError("not allowed")),
  } as unknown as Monitor;
  await prepareGuest(monitor, [], { bootMs: 100 });
});

Deno.test("a cancel, or a mistake of this program, is no guest without rest", async () => {
  const stop = new AbortController();
  const failing = (work: () => Error) => {
    const agent = () => Promise.reject(work());
    const monitor = { agent } as unknown as Monitor;
    const how = { bootMs: 100, signal: stop.signal };
    return prepareGuest(monitor, [], how).catch((error) => error.message);
  };
  assertEquals(await failing(() => new TypeError("a bug")), "a bug");
  const cancelled = await failing(() => {
    stop.abort(new Error("enough"));
    return new RefusedError("not allowed");
  });
  assertEquals(cancelled, "enough");
});
