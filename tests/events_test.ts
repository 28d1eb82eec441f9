import { assertEquals } from "@std/assert";
import { nextCommandId } from "../lib/events.ts";

Deno.test("the commands of a process are numbered from 1", () => {
  assertEquals([nextCommandId(), nextCommandId()], [1, 2]);
});
