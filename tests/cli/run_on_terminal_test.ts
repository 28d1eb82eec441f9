/**
 * Tests the events printed around a command on a terminal. The VM does not start, as
 * there is no QEMU.
 */
import { assert, assertEquals } from "@std/assert";
import type { CommandTerminal } from "../../lib/cli/command_terminal.ts";
import { type runCommand, runInGuest } from "../../lib/cli/commands/run.ts";
import type { FlagValues } from "../../lib/cli/flag.ts";
import { parseCommandLine } from "../../lib/cli/command_line.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { performCommand, recordedIo } from "../support/recorded_io.ts";
import { makeLocalImage } from "../support/local_image.ts";
import { requires } from "../support/parts.ts";

/** A command screen that the guest takes over at once, or never. */
function terminal(
  taken: boolean,
  onChange: (taken: boolean) => void,
): CommandTerminal {
  if (taken) onChange(true);
  return {
    keystrokes: () => Promise.resolve(new ReadableStream<Uint8Array>()),
    output: () => Promise.resolve(),
    size: () => ({ columns: 80, rows: 24 }),
    onResize() {},
    [Symbol.asyncDispose]: () => Promise.resolve(onChange(false)),
  };
}

for (const taken of [false, true]) {
  Deno.test({
    name: taken
      ? "run --tty holds events back until the guest has released the terminal"
      : "run --tty holds no events back before the guest takes the terminal",
    ...requires("qemuImg"),
    async fn() {
      await using work = await makeLocalImage();
      const { manifest, named, cache } = work;
      const init = ["init", "--file", work.image, ...named];
      assertEquals(await performCommand(init, recordedIo()), 0);
      await Deno.remove(cache, { recursive: true }).catch(() => {});
      const recorded = recordedIo({
        env: new Map([["TOOLSMITH_QEMU", "/none"]]),
        screen: (onChange) => terminal(taken, onChange),
      });
      const args = ["run", "--tty", "--manifest", manifest, "--cache", cache];
      const read = parseCommandLine(args);
      if (read.kind !== "command") throw new Error(read.kind);
      const given = read.given as FlagValues<typeof runCommand.flags>;
      const run = () => runInGuest(["sh"], given, recorded.io);
      await expectFailure("qemu_not_found", run);
      assert(recorded.events.some(({ type }) => type === "cache_placed"));
      assertEquals(recorded.holds, taken ? [true, false] : [false]);
    },
  });
}
