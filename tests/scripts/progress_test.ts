import { assertEquals } from "@std/assert";
import { Progress } from "../../scripts/progress.ts";

// Whatever the tests run on.
Deno.env.set("TERM", "xterm");

/** A progress with a clock of its own, and what it writes. */
function make(terminal: boolean) {
  const decoder = new TextDecoder();
  const here = { text: "", now: 0 };
  const progress = new Progress({
    prefix: "setup: ",
    now: () => here.now,
    output: {
      isTerminal: () => terminal,
      // A pipe that takes a few bytes at a time.
      writeSync(bytes) {
        const taken = bytes.subarray(0, 7);
        here.text += decoder.decode(taken, { stream: true });
        return taken.length;
      },
    },
  });
  const after = (seconds: number) => {
    here.now += seconds * 1000;
    here.text = "";
    progress.tick();
    return here.text;
  };
  return { here, progress, after };
}

Deno.test("Progress: a log gets a line for a step, and one each half a minute", () => {
  const { here, progress, after } = make(false);
  {
    using _ = progress.step("building oras");
    assertEquals(here.text, "setup: building oras\n");
    assertEquals(after(29), "");
    assertEquals(after(1), "setup: still building oras (30 s)\n");
    assertEquals(after(29), "");
    assertEquals(after(5), "setup: still building oras (64 s)\n");
    here.text = "";
  }
  assertEquals(here.text, "");
});

Deno.test("Progress: a terminal shows all steps in one line, with their seconds", () => {
  const { here, progress, after } = make(true);
  const erase = "\r\x1b[K";
  {
    using _one = progress.step("building oras");
    using _two = progress.watch("running apt");
    const status = "setup: building oras (2 s), running apt (2 s)";
    assertEquals(after(2), erase + status);
    here.text = "";
    progress.line("a line");
    const again = "setup: building oras (2 s), running apt (2 s)";
    assertEquals(here.text, `${erase}setup: a line\n${again}`);
    here.text = "";
  }
  assertEquals(here.text.split(erase).at(-1), "setup: building oras: 2 s\n");
});
