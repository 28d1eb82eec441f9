import { assertEquals } from "@std/assert";
import { nextCommandId } from "../lib/events.ts";

Deno.test("nextCommandId() numbers the commands of a process from 1", () => {
  assertEquals([nextCommandId(), nextCommandId()], [1, 2]);
});
