/**
 * What is shown around a command that has the terminal. Its machine does not
 * start: there is no QEMU.
 */
import { assert, assertEquals } from "@std/assert";
import type { Screen } from "../../lib/cli/screen.ts";
import { hasTerminal, runOnThisTerminal } from "../../lib/cli/on_terminal.ts";
import { failure } from "../support/failure.ts";
import { perform, recordedIo } from "../support/io.ts";
import { localImage } from "../support/local_image.ts";
import { needs } from "../support/parts.ts";

/** A terminal that the guest has from its start, or never. */
function terminal(taken: boolean, onChange: (taken: boolean) => void): Screen {
  if (taken) onChange(true);
  return {
    input: () => Promise.resolve(new ReadableStream<Uint8Array>()),
    output: () => Promise.resolve(),
    size: () => ({ columns: 80, rows: 24 }),
    onResize() {},
    [Symbol.asyncDispose]: () => Promise.resolve(onChange(false)),
  };
}

for (const taken of [false, true]) {
  Deno.test({
    name: taken
      ? "what happens while the guest has the terminal is shown when it has it no more"
      : "what happens until the guest has the terminal is shown as it happens",
    ...needs("qemuImg"),
    async fn() {
      await using work = await localImage();
      const { manifest, named, cache } = work;
      const init = ["init", "--file", work.image, ...named];
      assertEquals(await perform(init, recordedIo()), 0);
      await Deno.remove(cache, { recursive: true }).catch(() => {});
      let given = false;
      let before = 0;
      const recorded = recordedIo({
        env: new Map([["TOOLSMITH_QEMU", "/none"]]),
        screen: (onChange) =>
          terminal(taken, (now) => {
            if (!now) [given, before] = [true, recorded.events.length];
            onChange(now);
          }),
      });
      const output = { json: false, quiet: true, progress: false };
      const request = {
        ...{ manifest, command: "sh", args: [], env: {}, output },
        vm: { hydrate: { cache } },
      };
      const run = () => runOnThisTerminal(request, recorded.io);
      await failure("qemu_not_found", run);
      assert(recorded.events.some(({ type }) => type === "cache_placed"));
      assertEquals([given, before > 0], [true, !taken]);
      // A view that was closed would draw over the guest's screen.
      assertEquals(recorded.late(), 0);
      const views = recorded.views.map(({ flags, open }) => [flags, open]);
      assertEquals(views, Array(2).fill([output, false]));
    },
  });
}

Deno.test("a terminal is one to type on and to read", () => {
  const { stdin, stdout } = Deno;
  const are = [stdin.isTerminal, stdout.isTerminal];
  try {
    for (const types of [false, true]) {
      for (const reads of [false, true]) {
        stdin.isTerminal = () => types;
        stdout.isTerminal = () => reads;
        assertEquals(hasTerminal(), types && reads);
      }
    }
  } finally {
    [stdin.isTerminal, stdout.isTerminal] = are;
  }
});
