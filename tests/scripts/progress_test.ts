import { assertEquals } from "@std/assert";
import { Progress } from "../../scripts/progress.ts";

// Independent of this terminal.
Deno.env.set("TERM", "xterm");

/** A Progress with a fake clock and recorded output. */
function make(terminal: boolean) {
  const decoder = new TextDecoder();
  const here = { text: "", now: 0 };
  const progress = new Progress({
    prefix: "setup: ",
    now: () => here.now,
    output: {
      isTerminal: () => terminal,
      // A pipe that accepts a few bytes at a time.
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
    progress.refresh();
    return here.text;
  };
  return { here, progress, after };
}

Deno.test("Setup progress: a log gets a line per step and another every 30 seconds", () => {
  const { here, progress, after } = make(false);
  {
    using _ = progress.beginLoggedStep("building oras");
    assertEquals(here.text, "setup: building oras\n");
    assertEquals(after(29), "");
    assertEquals(after(1), "setup: still building oras (30 s)\n");
    assertEquals(after(29), "");
    assertEquals(after(5), "setup: still building oras (64 s)\n");
    here.text = "";
  }
  assertEquals(here.text, "");
});

Deno.test("Setup progress: a terminal shows all steps with their seconds in one line", () => {
  const { here, progress, after } = make(true);
  const erase = "\r\x1b[K";
  {
    using _one = progress.beginLoggedStep("building oras");
    using _two = progress.beginStep("running apt");
    const status = "setup: building oras (2 s), running apt (2 s)";
    assertEquals(after(2), erase + status);
    here.text = "";
    progress.printLine("a line");
    const again = "setup: building oras (2 s), running apt (2 s)";
    assertEquals(here.text, `${erase}setup: a line\n${again}`);
    here.text = "";
  }
  assertEquals(here.text.split(erase).at(-1), "setup: building oras: 2 s\n");
});
