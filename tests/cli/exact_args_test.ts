import { assertEquals, assertStringIncludes } from "@std/assert";
import { assertExactArgs } from "../../lib/cli/exact_args.ts";
import { run } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { scriptCommand } from "../support/script.ts";

/** Says which argument was refused, and why. */
const ASK = `
  import { assertExactArgs } from "/lib/cli/exact_args.ts";
  try {
    assertExactArgs(Deno.args);
    console.log("fine");
  } catch (error) {
    console.log(error.code + ": " + error.message);
  }
`;

Deno.test("an argument that was not given to this process is refused, with its place", async () => {
  assertExactArgs(["plain", "\u00e4"]);
  const args = ["a", "\ufffd never given", "\ufffd nor this"];
  const error = await failure("usage", () => assertExactArgs(args));
  assertEquals(
    error.message,
    "Argument 2 is not UTF-8: \ufffd never given",
  );
  assertStringIncludes(error.hint!, "UTF-8");
});

Deno.test({
  name: "an argument that is not UTF-8 is refused, and U+FFFD is an argument",
  ignore: Deno.build.os !== "linux",
  async fn() {
    await using dir = await temporaryDir();
    /** Passes arguments that a shell writes, byte for byte. */
    const ask = async (args: string[], permissions = ["-A"]) => {
      const options = { permissions };
      const command = await scriptCommand(`${dir.path}/ask.ts`, ASK, options);
      const words = args.map((bytes) => `"$(printf '${bytes}')"`).join(" ");
      const { stdout } = await run("sh", {
        args: ["-c", `exec "$@" ${words}`, "sh", Deno.execPath(), ...command],
        env: { LC_ALL: "C.UTF-8" },
      });
      return stdout.trimEnd();
    };
    const refused = (place: number, shown: string) =>
      `usage: Argument ${place} is not UTF-8: ${shown}`;
    const [fffd, bom] = ["\\357\\277\\275", "\\357\\273\\277"];
    const all: [string[], string][] = [
      [["a\\377b"], refused(1, "a\ufffdb")],
      [["a", `a${fffd}b`, "c"], "fine"],
      // Behind a byte order mark, and the last of them.
      [["a", `${bom}${fffd}`], "fine"],
      [[fffd, "x\\377", "y"], refused(2, "x\ufffd")],
      [["", `${fffd}`, "x\\300"], refused(3, "x\ufffd")],
    ];
    for (const [args, said] of all) {
      assertEquals(await ask(args), said, args.join(" "));
    }
    // Without the permission to see what was given, both are refused.
    assertEquals(await ask([`a${fffd}`], []), refused(1, "a\ufffd"));
  },
});
