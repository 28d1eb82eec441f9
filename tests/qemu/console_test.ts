import fc from "fast-check";
import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import {
  connectToConsole,
  findConsoleFailure,
  printableConsoleTail,
  textTailBuffer,
} from "../../lib/qemu/_console.ts";
import { temporaryDir } from "../support/directory.ts";

Deno.test("printableConsoleTail() removes escape sequences and control characters", () => {
  const text =
    "\x1bc\x1b[?7l\x1b[2J\x1b[1;31mred\x1b[0m\r\n\r\n\x07bell\x9b1m\x00\n";
  assertEquals(printableConsoleTail(text), "red\nbell1m");
});

Deno.test("printableConsoleTail() returns the last 16 lines", () => {
  const lines = Array.from({ length: 40 }, (_, n) => `line ${n}`);
  const shown = printableConsoleTail(lines.join("\r\n")).split("\n");
  assertEquals(shown.length, 16);
  assertEquals(shown.at(-1), "line 39");
  assertEquals(printableConsoleTail(""), "");
});

Deno.test("printableConsoleTail() cuts long lines and replaces bidirectional controls", () => {
  const line = `\u202e${"x".repeat(60_000)}`;
  const shown = printableConsoleTail(line);
  assertEquals(shown, `?${"x".repeat(299)}`);
  const failure = findConsoleFailure(`Kernel panic - not syncing ${line}\n`);
  assert(failure!.message.length < 340 && !failure!.message.includes("\u202e"));
});

Deno.test("findConsoleFailure() detects a kernel panic and returns its message", () => {
  const message = "Kernel panic - not syncing: Attempted to kill init!";
  const text = `[    2.4] ${message}\r\n[    2.5] CPU: 0 PID: 1\r\n`;
  assertEquals(findConsoleFailure(text.slice(0, 40)), undefined);
  const error = findConsoleFailure(text)!;
  assertEquals([error.code, error.message], [
    "guest_panicked",
    `The guest's kernel panicked: ${message}`,
  ]);
});

function assertNotBootable(text: string, why: string) {
  const error = findConsoleFailure(text)!;
  assertEquals(error.code, "boot_failed");
  assertEquals(error.message, `The image does not boot: ${why}`);
  assertMatch(error.hint!, /--firmware .* --arch /);
}

Deno.test("findConsoleFailure() detects firmware that finds no bootable device", () => {
  const text =
    "Boot failed: not a bootable disk\r\n\r\nNo bootable device.\r\n";
  assertNotBootable(text, "No bootable device");
});

Deno.test("findConsoleFailure() detects the prompt of the UEFI shell, and that even the shell did not start", () => {
  const starts =
    '\x1b[2JBdsDxe: starting Boot0002 "EFI Internal Shell" from Fv(7CB8BDC9)\r\n';
  assertEquals(findConsoleFailure(starts), undefined);
  const prompt = "\x1b[08;01H\x1b[33m\x1b[40mShell> \x1b[37m\x1b[40m";
  const message = "UEFI firmware found nothing to boot";
  assertNotBootable(`${starts}Press ESC\r${prompt}`, message);
  const nothing = "BdsDxe: No bootable option or device was found.\r\n";
  assertNotBootable(starts + nothing, message);
});

Deno.test("findConsoleFailure() ignores a failed disk while the firmware tries others", () => {
  const text = "Boot failed: not a bootable disk\r\nBooting from DVD/CD...\r\n";
  assertEquals(findConsoleFailure(text), undefined);
  assertEquals(findConsoleFailure(""), undefined);
});

Deno.test("printableConsoleTail() returns no control characters, for any input", () => {
  const steering = fc.constantFrom(
    "\x1b[2J",
    "\x1b]0;t\x07",
    "\r",
    "\x9b",
    "\n",
  );
  const texts = fc.array(fc.oneof(fc.string({ unit: "binary" }), steering));
  fc.assert(fc.property(texts, (parts) => {
    const tail = printableConsoleTail(parts.join(""));
    assert(tail.split("\n").length <= 16);
    // deno-lint-ignore no-control-regex
    assert(!/[\x00-\x09\x0b-\x1f\x7f-\x9f]/.test(tail), tail);
  }));
});

Deno.test("textTailBuffer() keeps only the last characters of a long text", () => {
  const kept = textTailBuffer(10);
  for (let turn = 0; turn < 100; turn++) {
    kept.add(new TextEncoder().encode(`${turn} line\n`));
  }
  assertEquals(kept.text(), "e\n99 line\n");
});

Deno.test("textTailBuffer() decodes a UTF-8 character split between two chunks", () => {
  const kept = textTailBuffer(10);
  const bytes = new TextEncoder().encode("aé");
  kept.add(bytes.subarray(0, 2));
  assertEquals(kept.text(), "a");
  kept.add(bytes.subarray(2));
  assertEquals(kept.text(), "aé");
});

Deno.test({
  name:
    "connectToConsole() reads all output, keeps its last 64 KiB, and writes input",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const path = join(dir.path, "console");
    using listener = Deno.listen({ transport: "unix", path });
    const seen: number[] = [];
    const serial = await connectToConsole(
      path,
      ({ length }) => seen.push(length),
    );
    const guest = await listener.accept();
    await serial.write(new TextEncoder().encode("typed"));
    const typed = new Uint8Array(10);
    assertEquals(await guest.read(typed), 5);
    const bytes = new TextEncoder().encode(`x${"y".repeat(64 * 1024 - 1)}z`);
    for (let at = 0; at < bytes.length;) {
      at += await guest.write(bytes.subarray(at));
    }
    guest.close();
    await serial.closed;
    assertEquals(seen.reduce((sum, count) => sum + count), bytes.length);
    assert(seen.length > 1 && Math.max(...seen) <= 16 * 1024, `${seen}`);
    assertEquals(serial.last(), `${"y".repeat(64 * 1024 - 1)}z`);
    // Closing again is harmless.
    serial.close();
  },
});

Deno.test({
  name:
    "connectToConsole(): close() ends the connection while the guest is silent",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const path = join(dir.path, "console");
    using listener = Deno.listen({ transport: "unix", path });
    const serial = await connectToConsole(path);
    using guest = await listener.accept();
    serial.close();
    serial.close();
    await serial.closed;
    assertEquals(serial.last(), "");
    assertEquals(await guest.read(new Uint8Array(1)), null);
  },
});
