import { assertEquals } from "@std/assert";
import { endOnAbort } from "../../lib/guest/_limits.ts";

Deno.test("a cancel while a command starts ends the command", () => {
  const killed: string[] = [];
  const signal = AbortSignal.abort();
  using _watch = endOnAbort((name) => killed.push(name), { signal });
  assertEquals(killed, ["TERM"]);
});

Deno.test("a command that ignores TERM and KILL is given up", async () => {
  const killed: string[] = [];
  const stop = new AbortController();
  const options = { signal: stop.signal, killAfterMs: 10 };
  using watch = endOnAbort((name) => killed.push(name), options);
  assertEquals(killed, []);
  stop.abort();
  await watch.givenUp;
  assertEquals(killed, ["TERM", "KILL"]);
});
