import { assertEquals } from "@std/assert";
import { isAbsolute, join, SEPARATOR } from "../lib/path.ts";
import { temporaryDir } from "./support/directory.ts";
import { runScript } from "./support/script.ts";

// Access to `process` makes Deno load its Node emulation, half of the start time.
const START = `
Object.defineProperty(globalThis, "process", {
  get: () => console.log(new Error("process").stack),
});
await import("/lib/../mod.ts");
const { main } = await import("/lib/../cli.ts");
console.log(await main(["--version"]));
`;

Deno.test("cli.ts and mod.ts start without Deno's Node emulation", async () => {
  await using dir = await temporaryDir();
  const said = await runScript(`${dir.path}/start.ts`, START);
  assertEquals(said.split("\n").slice(1).join("\n"), "0\n", said);
});

Deno.test("lib/path.ts uses this system's path syntax", () => {
  const windows = Deno.build.os === "windows";
  assertEquals(SEPARATOR, windows ? "\\" : "/");
  assertEquals(join("a", "..", "b", "c"), windows ? "b\\c" : "b/c");
  assertEquals(isAbsolute("c:\\a"), windows);
});
